// A square of pixels made smaller or larger exactly as Pillow does it, so that the network sees here what it sees
// there: a canvas scales in its own way in every browser. It is Pillow's antialiased bilinear filter (a triangle as wide
// as the shrinking asks for) in Pillow's own arithmetic: weights as integers of 22 bits, columns first, then rows, each
// rounded to 8 bits; `ImagingResample` in its src/libImaging/Resample.c.
"use strict";

const BITS = 22;
const HALF = 1 << (BITS - 1);
const STRIP = 128; // rows at a time: a whole photograph may be more than a browser gives to one canvas

// For each of `size` pixels along a line of `side`: where its weights begin in `values`, and the pixels that they are of.
function triangleWeights(side, size) {
  const scale = side / size;
  const width = Math.max(scale, 1);
  const inverse = 1 / width;
  const begins = [], firsts = [], counts = [], values = [];
  for (let index = 0; index < size; index++) {
    const center = (index + 0.5) * scale;
    const first = Math.max(Math.trunc(center - width + 0.5), 0);
    const count = Math.min(Math.trunc(center + width + 0.5), side) - first;
    const weights = [];
    for (let x = 0; x < count; x++) weights.push(Math.max(1 - Math.abs((x + first - center + 0.5) * inverse), 0));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    begins.push(values.length);
    firsts.push(first);
    counts.push(count);
    for (const weight of weights) values.push(Math.trunc(0.5 + (weight / sum) * (1 << BITS)));
  }
  return { begins, firsts, counts, values: Int32Array.from(values) };
}

// What is transparent shows white. `pixels` are red, green, blue, alpha; the colours are changed in place.
function putOnWhite(pixels) {
  for (let at = 0; at < pixels.length; at += 4) {
    const alpha = pixels[at + 3];
    if (alpha === 255) continue;
    for (let c = at; c < at + 3; c++) pixels[c] = 255 - alpha + Math.floor((2 * pixels[c] * alpha + 255) / 510);
  }
}

// Weighted sums along lines. The first pixel of line i is at i * lineStep of `from`, and the others follow by `step`.
function resizeLines(from, lines, lineStep, step, weights, to, toLine, toStep) {
  const { begins, firsts, counts, values } = weights;
  for (let line = 0; line < lines; line++) {
    for (let index = 0; index < begins.length; index++) {
      let red = HALF, green = HALF, blue = HALF;
      let at = line * lineStep + firsts[index] * step;
      for (let k = begins[index], end = k + counts[index]; k < end; k++, at += step) {
        red += from[at] * values[k];
        green += from[at + 1] * values[k];
        blue += from[at + 2] * values[k];
      }
      const place = line * toLine + index * toStep;
      to[place] = red >> BITS;
      to[place + 1] = green >> BITS;
      to[place + 2] = blue >> BITS;
    }
  }
}

// Red, green and blue of size x size pixels. `readRows(top, count)` gives rows of the square, `side` pixels of red,
// green, blue and alpha each.
function resizeSquare(side, size, readRows) {
  const weights = triangleWeights(side, size);
  const narrow = new Uint8Array(side * size * 3);
  for (let top = 0; top < side; top += STRIP) {
    const count = Math.min(STRIP, side - top);
    const pixels = readRows(top, count);
    putOnWhite(pixels);
    resizeLines(pixels, count, side * 4, 4, weights, narrow.subarray(top * size * 3), size * 3, 3);
  }
  const square = new Uint8Array(size * size * 3);
  resizeLines(narrow, size, 3, size * 3, weights, square, 3, size * 3);
  return square;
}

// Grey as of Pillow's `convert("L")`: ITU-R BT.601, in integers of 16 bits.
function toGrey(pixels) {
  const grey = (_, at) => (19595 * pixels[3 * at] + 38470 * pixels[3 * at + 1] + 7471 * pixels[3 * at + 2] + 32768) >> 16;
  return Uint8Array.from({ length: pixels.length / 3 }, grey);
}

// The central square of a picture as the network takes it, in one channel or three; `picture` is an ImageBitmap.
function pictureToPixels(picture, size, channels) {
  const side = Math.min(picture.width, picture.height);
  const left = Math.floor((picture.width - side) / 2);
  const above = Math.floor((picture.height - side) / 2);
  const canvas = document.createElement("canvas");
  canvas.width = side;
  canvas.height = Math.min(side, STRIP);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const pixels = resizeSquare(side, size, (top, count) => {
    context.clearRect(0, 0, side, count);
    context.drawImage(picture, left, above + top, side, count, 0, 0, side, count);
    return context.getImageData(0, 0, side, count).data;
  });
  return channels === 1 ? toGrey(pixels) : pixels;
}
