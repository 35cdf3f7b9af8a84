"use strict";
// The picture in view: two sides of it under one slider, zoomed and moved together.
const data = JSON.parse(document.getElementById("data").textContent);
for (const row of data.rows) {
  const longer = Math.max(row.width, row.height);
  row.copied = row.index < data.copied;  // else the page draws the files themselves
  row.copy = Math.min(longer, data.view);  // pixels of the longer side of its copies
  row.reduced = row.copied && longer > data.view;
  row.mask &&= row.copied;
}
const byId = id => document.getElementById(id);
const addNode = (tag, parent, text, attributes = {}) => {
  const svg = ["svg", "rect", "line", "text", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag)
                   : document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return parent.appendChild(node);
};
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const CLEAN = data.sides.findIndex(side => side.kind === "clean");
const stage = byId("stage"), halves = [byId("half0"), byId("half1")], selects = [byId("side0"), byId("side1")];
const SMOOTH = 2;      // screen pixels per picture pixel, above which pixels are drawn as squares
const STEP = 1.25;     // factor by which keys and buttons zoom

let current = data.rows[0], order = data.rows;
// k: CSS pixels per picture pixel; x, y: the place of its corner in the stage.
const view = {k: 1, x: 0, y: 0, fit: true};

const side = half => data.sides[selects[half].value];
const hasSide = (row, number) => row.has.includes(number);
const fitScale = () => Math.min(stage.clientWidth / current.width, stage.clientHeight / current.height);

function placeImages() {
  const [wide, tall] = [current.width * view.k, current.height * view.k];
  const inside = (offset, size, room) =>
    size <= room ? (room - size) / 2 : clamp(offset, room - size, 0);
  view.x = inside(view.x, wide, stage.clientWidth);
  view.y = inside(view.y, tall, stage.clientHeight);
  stage.style.setProperty("--place", `translate(${view.x}px, ${view.y}px) scale(${view.k})`);
  stage.classList.toggle("zoomed", !view.fit);
  stage.classList.toggle("pixels", !view.fit && view.k * devicePixelRatio >= SMOOTH);
  byId("scale").textContent = `${Math.round(100 * view.k * devicePixelRatio)} %`;
  for (const layer of document.querySelectorAll(".half img")) sharpen(layer);
}
function fit() { view.fit = true; view.k = fitScale(); placeImages(); }
function zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
  const k = clamp(view.k * factor, fitScale(), Math.max(64, fitScale()));
  view.x = x - (x - view.x) * k / view.k;
  view.y = y - (y - view.y) * k / view.k;
  view.k = k;
  view.fit = k <= 1.001 * fitScale();  // zoomed in and out again it is not quite the same number
  placeImages();
}

function moveLine(percent) {
  byId("cut").value = percent;
  stage.style.setProperty("--cut", `${byId("cut").value}%`);
  byId("label0").hidden = +byId("cut").value === 0;
  byId("label1").hidden = +byId("cut").value === 100;
}
const flip = () => moveLine(+byId("cut").value > 0 ? 0 : 100);
// The picture that is that many places further in the order, if there is one.
const neighbour = by => order[order.indexOf(current) + by];
const stepBy = by => neighbour(by) && showPicture(neighbour(by));

// One pointer moves the line or the picture; two zoom.
const pointers = new Map();
let dragged = null;
const stagePosition = event => {
  const box = stage.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};
stage.addEventListener("pointerdown", event => {
  if (event.button) return;
  stage.setPointerCapture(event.pointerId);
  const [x, y] = stagePosition(event);
  pointers.set(event.pointerId, [x, y]);
  const near = Math.abs(x - byId("cut").value / 100 * stage.clientWidth) < 24;
  dragged = pointers.size > 1 ? "both" : view.fit || near ? "line" : "picture";
  if (dragged === "line") moveLine(100 * x / stage.clientWidth);
});
stage.addEventListener("pointermove", event => {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const [x, y] = stagePosition(event);
  if (dragged === "line") moveLine(100 * x / stage.clientWidth);
  else if (dragged === "picture") { view.x += x - before[0]; view.y += y - before[1]; placeImages(); }
  else {
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const apart = ([a, b]) => Math.max(1, Math.hypot(a - other[0], b - other[1]));
      view.x += (x - before[0]) / 2; view.y += (y - before[1]) / 2;
      zoom(apart([x, y]) / apart(before), (x + other[0]) / 2, (y + other[1]) / 2);
    }
  }
  pointers.set(event.pointerId, [x, y]);
});
for (const kind of ["pointerup", "pointercancel"])
  stage.addEventListener(kind, event => {
    pointers.delete(event.pointerId);
    if (pointers.size < 2 && dragged === "both") dragged = null;
  });
stage.addEventListener("wheel", event => {
  if (view.fit && event.deltaY > 0) return;  // nothing to zoom out of: the page scrolls
  event.preventDefault();
  zoom(Math.exp(-clamp(event.deltaY, -100, 100) / 300), ...stagePosition(event));
}, {passive: false});
stage.addEventListener("dragstart", event => event.preventDefault());
new ResizeObserver(() => view.fit ? fit() : zoom(1)).observe(stage);

const KEYS = [
  [["ArrowLeft"], "←", "previous picture", () => stepBy(-1)],
  [["ArrowRight"], "→", "next picture", () => stepBy(1)],
  [["f"], "f", "flip between the two sides", flip],
  [["c"], "c", "move the line to the middle", () => moveLine(50)],
  [["+", "="], "+", "zoom in", () => zoom(STEP)],
  [["-"], "-", "zoom out", () => zoom(1 / STEP)],
  [["0"], "0", "fit the picture into the window", fit],
  [["1"], "1", "show one pixel of the picture per screen pixel", () => zoom(1 / view.k / devicePixelRatio)],
  [["Shift+ArrowLeft"], "Shift ←", "pan left", () => pan(1, 0)],
  [["Shift+ArrowRight"], "Shift →", "pan right", () => pan(-1, 0)],
  [["Shift+ArrowUp"], "Shift ↑", "pan up", () => pan(0, 1)],
  [["Shift+ArrowDown"], "Shift ↓", "pan down", () => pan(0, -1)],
  [["a"], "a", "show the attention map", () => !byId("attention").hidden && byId("overlay").click()],
  [["e"], "e", "show the error map: the difference from the clean image", () => CLEAN >= 0 && byId("error").click()],
  [["p"], "p", "play or pause a video", () => !byId("film").hidden && byId("play").click()],
  [["s"], "s", "save the crop in view as a PNG file", () => !byId("save").hidden && saveCrop()],
  [["?"], "?", "list these keys", () => byId("keys").showModal()],
];
const pan = (x, y) => { view.x += 60 * x; view.y += 60 * y; placeImages(); };
for (const [, label, description] of KEYS) {
  addNode("kbd", addNode("dt", byId("keylist")), label);
  addNode("dd", byId("keylist"), description);
}
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey || byId("keys").open) return;
  if (event.target.matches("select, input:not([type=checkbox])")) return;
  const key = (event.shiftKey && event.key.startsWith("Arrow") ? "Shift+" : "") + event.key;
  const binding = KEYS.find(([keys]) => keys.includes(key));
  if (!binding) return;
  event.preventDefault();
  binding[3]();
});

for (const [half, select] of selects.entries()) {
  data.sides.forEach(({name}, number) => addNode("option", select, name, {value: number}));
  select.value = data.opening[half];
  select.addEventListener("input", () => { updateLayers(); updateComparison(); });
  // After a choice by mouse, the arrow keys step through the pictures again.
  let pressed = false;
  select.addEventListener("pointerdown", () => { pressed = true; });
  select.addEventListener("change", () => { if (pressed) select.blur(); pressed = false; });
}
byId("errors").hidden = CLEAN < 0;
byId("cut").addEventListener("input", () => moveLine(byId("cut").value));
for (const id of ["overlay", "error", "times"]) byId(id).addEventListener("input", updateLayers);
for (const [id, act] of Object.entries({
  previous: () => stepBy(-1), next: () => stepBy(1), flip, save: saveCrop, fit, in: () => zoom(STEP),
  out: () => zoom(1 / STEP), pixels: () => zoom(1 / view.k / devicePixelRatio),
  help: () => byId("keys").showModal(),
})) byId(id).addEventListener("click", act);
