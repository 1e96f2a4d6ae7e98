// The page itself. `model`, `samples` and `runtime` come from the files of these names, `ort` is ONNX Runtime Web.
// Names and texts of the model are a stranger's: they are set as text, never as HTML.
"use strict";

const element = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
const model = globalThis.model;
const MOST = 5; // classes shown

class Fault extends Error {} // its message is a sentence for the reader

let session = null;
let turn = 0; // of the newest picture: an answer to an older one comes too late
let stream = null; // of the camera

// --- the model

async function unzip(packed) {
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function loadModel() {
  if (!model || !globalThis.runtime || !globalThis.ort) {
    throw new Fault("A file of this page is missing. Copy the whole folder, or make it anew.");
  }
  if (typeof WebAssembly !== "object" || typeof DecompressionStream !== "function") {
    throw new Fault("This browser cannot run the model: it has no WebAssembly, or is too old. Try a current one.");
  }
  try {
    ort.env.wasm.numThreads = 1; // more need headers that a plain server does not send
    ort.env.wasm.wasmBinary = await unzip(bytes(runtime.wasm));
    ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(new Blob([runtime.loader], { type: "text/javascript" })) };
    session = await ort.InferenceSession.create(bytes(model.onnx), { executionProviders: ["wasm"] });
    await logitsOf(new Uint8Array(model.size * model.size * model.channels)); // the first call takes longer
    element("hint").textContent = "Drop a picture here,\nor paste one";
  } catch (error) {
    throw new Fault(`The model cannot be run in this browser: ${error.message || error}`);
  }
}

async function logitsOf(pixels) {
  const images = new ort.Tensor("uint8", pixels, [1, model.size, model.size, model.channels]);
  return (await session.run({ images })).logits.data;
}

function softmax(logits) {
  const largest = logits.reduce((most, logit) => Math.max(most, logit), -Infinity);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

// --- a picture

async function decode(blob, name) {
  try {
    return await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    throw new Fault(`${name} is no picture that this browser can read. Try a PNG, a JPEG or a WebP file.`);
  }
}

async function show(blob, name) {
  const mine = ++turn;
  stopCamera();
  element("fault").hidden = true;
  try {
    const picture = await decode(blob, name);
    await ready;
    const pixels = pictureToPixels(picture, model.size, model.channels);
    const started = performance.now();
    const logits = await logitsOf(pixels);
    const milliseconds = performance.now() - started;
    if (mine !== turn) return false;
    showPicture(blob, name, picture);
    showSeen(pixels, picture, milliseconds);
    showAnswer(softmax(logits));
    picture.close();
    return true;
  } catch (error) {
    if (mine === turn) tell(error);
    return false;
  }
}

function showPicture(blob, name, picture) {
  const shown = element("picture");
  URL.revokeObjectURL(shown.src);
  shown.src = URL.createObjectURL(blob);
  shown.alt = name;
  shown.classList.toggle("small", Math.min(picture.width, picture.height) < 128);
  shown.hidden = false;
  for (const button of element("samples").children) button.setAttribute("aria-pressed", "false");
}

function showSeen(pixels, picture, milliseconds) {
  const canvas = element("seen");
  canvas.width = canvas.height = model.size;
  const image = new ImageData(model.size, model.size);
  for (let at = 0; at < model.size * model.size; at++) {
    for (let c = 0; c < 3; c++) image.data[4 * at + c] = pixels[model.channels === 1 ? at : 3 * at + c];
    image.data[4 * at + 3] = 255;
  }
  canvas.getContext("2d", { willReadFrequently: true }).putImageData(image, 0, 0);
  const all = `${model.size} × ${model.size} pixels`;
  const same = picture.width === model.size && picture.height === model.size;
  element("size").textContent = same ? `It saw all ${all}.` : `It saw ${all}, made of ${picture.width} × ${picture.height}.`;
  element("time").textContent = `It took ${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms.`;
}

function showAnswer(probabilities) {
  const order = probabilities.map((_, index) => index).sort((a, b) => probabilities[b] - probabilities[a]);
  const best = order.slice(0, MOST).map((index) => [model.label_names[index], probabilities[index]]);
  element("bars").replaceChildren(...best.map(([label, share]) => barOf(label, share)));
  element("before").hidden = true;
  element("result").hidden = false;
  element("answer").scrollIntoView({ block: "nearest" }); // on a phone it lies below
  element("status").textContent = best.map(([label, share]) => `${label} ${percent(share)}`).join(", ");
}

function barOf(label, share) {
  const [item, name, value, track, bar] = ["li", "span", "data", "div", "div"].map((tag) => document.createElement(tag));
  name.textContent = label;
  value.value = String(share);
  value.textContent = percent(share);
  track.className = "track";
  bar.className = "bar";
  bar.style.width = `${100 * share}%`;
  track.append(bar);
  item.append(name, value, track);
  return item;
}

function tell(error) {
  if (!(error instanceof Fault)) console.error(error);
  element("fault").textContent = error instanceof Fault ? error.message : `Something went wrong: ${error.message}`;
  element("fault").hidden = false;
  element("fault").scrollIntoView({ block: "nearest" });
}

// --- where pictures come from

function showFirst(files, otherwise) {
  if (files.length) show(files[0], files[0].name || "The picture");
  else tell(new Fault(otherwise));
}

async function startCamera() {
  element("fault").hidden = true;
  try {
    if (!navigator.mediaDevices) throw new Fault("The camera can be used from https or localhost only. Choose a file.");
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    element("video").srcObject = stream;
    await element("video").play();
    showCamera(true);
    element("take").focus();
  } catch (error) {
    stopCamera();
    tell(new Fault(cameraFault(error)));
  }
}

function cameraFault(error) {
  if (error instanceof Fault) return error.message;
  if (error.name === "NotAllowedError") return "The browser does not let this page use the camera. Allow it, or choose a file.";
  if (error.name === "NotFoundError") return "There is no camera on this device. Choose a file.";
  return `The camera cannot be used: ${error.message}. Choose a file.`;
}

function showCamera(on) {
  element("video").hidden = element("shutter").hidden = !on;
  element("sources").hidden = on;
}

function stopCamera() {
  if (stream) stream.getTracks().forEach((track) => track.stop());
  stream = element("video").srcObject = null;
  showCamera(false);
}

async function takePicture() {
  const video = element("video");
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  await show(blob, "The picture of the camera");
  element("camera").focus();
}

function addSample({ name, type, picture }) {
  const [button, image] = ["button", "img"].map((tag) => document.createElement(tag));
  const blob = new Blob([bytes(picture)], { type });
  image.src = URL.createObjectURL(blob);
  image.alt = "";
  image.onload = () => image.classList.toggle("small", image.naturalWidth < 128);
  button.type = "button";
  button.title = name;
  button.setAttribute("aria-label", `Sample: ${name}`);
  button.setAttribute("aria-pressed", "false");
  button.onclick = async () => {
    if (await show(blob, name)) button.setAttribute("aria-pressed", "true");
  };
  button.append(image);
  element("samples").append(button);
}

function listen() {
  element("choose").onclick = () => element("file").click();
  element("file").onchange = (event) => {
    if (event.target.files.length) showFirst(event.target.files);
    event.target.value = ""; // so that the same file can be chosen again
  };
  element("camera").onclick = startCamera;
  element("take").onclick = takePicture;
  element("cancel").onclick = () => {
    stopCamera();
    element("camera").focus();
  };
  document.onkeydown = (event) => {
    if (event.key === "Escape" && stream) element("cancel").click();
  };
  document.onpaste = (event) => {
    event.preventDefault();
    showFirst(event.clipboardData.files, "There is no picture on the clipboard. Copy a picture, then paste it here.");
  };
  document.ondragover = (event) => {
    event.preventDefault();
    element("frame").classList.add("over");
  };
  document.ondragleave = (event) => {
    if (!event.relatedTarget) element("frame").classList.remove("over");
  };
  document.ondrop = (event) => {
    event.preventDefault();
    element("frame").classList.remove("over");
    showFirst(event.dataTransfer.files, "That was no file. Save the picture first, then drop the file here.");
  };
}

function describe() {
  const names = model.label_names;
  element("count").textContent = names.length === 1 ? "one class" : `${names.length} classes`;
  element("known").textContent = names.join(", ");
  element("facts").textContent = model.facts;
  document.title = `${model.name}: what does it see?`;
}

listen();
if (model) describe();
for (const sample of globalThis.samples || []) addSample(sample);
element("samples").hidden = !element("samples").children.length;
const ready = loadModel();
ready.catch((error) => {
  element("hint").textContent = "";
  tell(error);
});
