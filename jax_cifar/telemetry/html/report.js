// Readings under the pointer, or by the arrow keys; without this script the page shows everything else.
"use strict";

// The place of an event in the units of a picture.
function placeIn(svg, event) {
  const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
  const scale = Math.max(view.width / box.width, view.height / box.height);
  return [
    (event.clientX - box.left - box.width / 2) * scale + view.width / 2,
    (event.clientY - box.top - box.height / 2) * scale + view.height / 2,
  ];
}

function follow(svg, { at, move, leave }) {
  svg.addEventListener("pointermove", (event) => at(...placeIn(svg, event)));
  svg.addEventListener("pointerdown", (event) => at(...placeIn(svg, event)));
  svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && leave());
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) {
      event.preventDefault();
      move(...step);
    }
  });
}

function shape(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function readLines(svg) {
  const output = svg.parentElement.querySelector("output"), rest = output.textContent;
  const cursor = svg.querySelector(".cursor"), height = svg.viewBox.baseVal.height;
  const lines = Array.from(svg.querySelectorAll("path[data-x]"), (path) => {
    const places = Array.from(path.getAttribute("d").matchAll(/[ML]([\d.]+) ([\d.]+)/g), (match) => [+match[1], +match[2]]);
    return {
      name: path.dataset.label,
      style: path.getAttribute("class"),
      epochs: path.dataset.x.split(" "),
      values: path.dataset.y.split("|"),
      places,
    };
  });
  const stops = [...new Set(lines.flatMap((line) => line.places.map(([x]) => x)))].sort((a, b) => a - b);
  let now = null;
  const nearest = (places, x) => {
    let best = 0;
    places.forEach((place, index) => {
      if (Math.abs(place[0] - x) < Math.abs(places[best][0] - x)) best = index;
    });
    return best;
  };
  function at(x) {
    now = nearest(stops.map((stop) => [stop]), x);
    const stop = stops[now];
    cursor.replaceChildren(shape("path", { d: `M${stop} 12V${height - 36}` }));
    let epoch = null;
    const told = lines.map((line) => {
      const index = nearest(line.places, stop), [px, py] = line.places[index];
      if (px === stop) epoch = line.epochs[index];
      cursor.append(shape("circle", { cx: px, cy: py, r: 4, class: line.style.replace("line", "dot") }));
      return `${line.name}\u00a0${line.values[index]}`;
    });
    output.textContent = `epoch ${epoch}: ${told.join(", ")}`;
  }
  function leave() {
    now = null;
    cursor.replaceChildren();
    output.textContent = rest;
  }
  const move = (step) => at(stops[Math.max(0, Math.min(stops.length - 1, now === null ? stops.length - 1 : now + step))]);
  follow(svg, { at, move, leave });
}

function readCells(svg) {
  const output = svg.closest("figure").querySelector("output"), rest = output.textContent;
  const cursor = svg.querySelector(".cursor");
  const names = JSON.parse(svg.dataset.names), [left, top, cell] = JSON.parse(svg.dataset.place);
  const counts = new Map(), sums = names.map(() => 0);
  for (const [row, column, count] of JSON.parse(svg.dataset.counts)) {
    counts.set(`${row},${column}`, count);
    sums[row] += count;
  }
  let now = [0, 0];
  function show(row, column) {
    if (row < 0 || column < 0 || row >= names.length || column >= names.length) return leave();
    now = [row, column];
    const count = counts.get(`${row},${column}`) || 0;
    const share = sums[row] ? ` (${((100 * count) / sums[row]).toFixed(1)} %)` : "";
    const said = row === column ? `${names[row]}, recognised` : `${names[row]} taken for ${names[column]}`;
    output.textContent = `${said}: ${count} of ${sums[row]}${share}`;
    cursor.setAttribute("x", left + column * cell);
    cursor.setAttribute("y", top + row * cell);
    cursor.setAttribute("visibility", "visible");
  }
  function leave() {
    output.textContent = rest;
    cursor.setAttribute("visibility", "hidden");
  }
  const within = (value) => Math.max(0, Math.min(names.length - 1, value));
  follow(svg, {
    at: (x, y) => show(Math.floor((y - top) / cell), Math.floor((x - left) / cell)),
    move: (across, down) => show(within(now[0] + down), within(now[1] + across)),
    leave,
  });
}

document.querySelectorAll("svg.lines").forEach(readLines);
document.querySelectorAll("svg.matrix").forEach(readCells);
// On paper nothing can be unfolded.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => (each.open = true)));
