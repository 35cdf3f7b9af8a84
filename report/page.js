"use strict";
// The picture in view: two sides of it under one slider, zoomed and moved together.
const data = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const make = (tag, parent, text, attributes = {}) => {
  const svg = ["svg", "rect", "line", "text", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag)
                   : document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return parent.appendChild(node);
};
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const CLEAN = data.sides.findIndex(side => side.kind === "clean");
const stage = at("stage"), halves = [at("half0"), at("half1")], selects = [at("side0"), at("side1")];
const SMOOTH = 2;      // screen pixels a pixel of the picture, from which on pixels are squares
const STEP = 1.25;     // by which keys and buttons zoom

let current = data.rows[0], order = data.rows;
// k: CSS pixels a pixel of the picture; x, y: where in the stage its corner lies.
const view = {k: 1, x: 0, y: 0, fit: true};

const side = half => data.sides[selects[half].value];
const has = (row, number) => row.has.includes(number);
const fitting = () => Math.min(stage.clientWidth / current.width, stage.clientHeight / current.height);

function place() {
  const [wide, tall] = [current.width * view.k, current.height * view.k];
  const inside = (at, size, room) => size <= room ? (room - size) / 2 : clamp(at, room - size, 0);
  view.x = inside(view.x, wide, stage.clientWidth);
  view.y = inside(view.y, tall, stage.clientHeight);
  stage.style.setProperty("--place", `translate(${view.x}px, ${view.y}px) scale(${view.k})`);
  stage.classList.toggle("zoomed", !view.fit);
  stage.classList.toggle("pixels", !view.fit && view.k * devicePixelRatio >= SMOOTH);
  at("scale").textContent = `${Math.round(100 * view.k * devicePixelRatio)} %`;
  for (const layer of document.querySelectorAll(".half img")) sharpen(layer);
}
function fit() { view.fit = true; view.k = fitting(); place(); }
function zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
  const k = clamp(view.k * factor, fitting(), Math.max(64, fitting()));
  view.x = x - (x - view.x) * k / view.k;
  view.y = y - (y - view.y) * k / view.k;
  view.k = k;
  view.fit = k <= fitting();
  place();
}

function cut(percent) {
  at("cut").value = percent;
  stage.style.setProperty("--cut", `${at("cut").value}%`);
  at("label0").hidden = +at("cut").value === 0;
  at("label1").hidden = +at("cut").value === 100;
}
const flip = () => cut(+at("cut").value > 0 ? 0 : 100);
// The picture that many places further in the order, if there is one.
const beside = by => order[order.indexOf(current) + by];
const step = by => beside(by) && look(beside(by));

// The pointer: one moves the line or the picture, two zoom.
const pointers = new Map();
let dragged = null;
const local = event => {
  const box = stage.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};
stage.addEventListener("pointerdown", event => {
  if (event.button) return;
  stage.setPointerCapture(event.pointerId);
  const [x, y] = local(event);
  pointers.set(event.pointerId, [x, y]);
  const near = Math.abs(x - at("cut").value / 100 * stage.clientWidth) < 24;
  dragged = pointers.size > 1 ? "both" : view.fit || near ? "line" : "picture";
  if (dragged === "line") cut(100 * x / stage.clientWidth);
});
stage.addEventListener("pointermove", event => {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const [x, y] = local(event);
  if (dragged === "line") cut(100 * x / stage.clientWidth);
  else if (dragged === "picture") { view.x += x - before[0]; view.y += y - before[1]; place(); }
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
  zoom(Math.exp(-clamp(event.deltaY, -100, 100) / 300), ...local(event));
}, {passive: false});
stage.addEventListener("dragstart", event => event.preventDefault());
new ResizeObserver(() => view.fit ? fit() : zoom(1)).observe(stage);

const KEYS = [
  [["ArrowLeft"], "←", "previous picture", () => step(-1)],
  [["ArrowRight"], "→", "next picture", () => step(1)],
  [["f"], "f", "flip: one side whole, then the other", flip],
  [["c"], "c", "the line in the middle", () => cut(50)],
  [["+", "="], "+", "zoom in", () => zoom(STEP)],
  [["-"], "-", "zoom out", () => zoom(1 / STEP)],
  [["0"], "0", "fit the picture into the window", fit],
  [["1"], "1", "one pixel of the picture to one of the screen", () => zoom(1 / view.k / devicePixelRatio)],
  [["Shift+ArrowLeft"], "Shift ←", "pan left", () => pan(1, 0)],
  [["Shift+ArrowRight"], "Shift →", "pan right", () => pan(-1, 0)],
  [["Shift+ArrowUp"], "Shift ↑", "pan up", () => pan(0, 1)],
  [["Shift+ArrowDown"], "Shift ↓", "pan down", () => pan(0, -1)],
  [["a"], "a", "attention map", () => !at("attention").hidden && at("overlay").click()],
  [["e"], "e", "error map: what differs from the clean image", () => CLEAN >= 0 && at("error").click()],
  [["p"], "p", "play a video, or pause it", () => !at("film").hidden && at("play").click()],
  [["s"], "s", "save the crop in view as a PNG file", save],
  [["?"], "?", "these keys", () => at("keys").showModal()],
];
const pan = (x, y) => { view.x += 60 * x; view.y += 60 * y; place(); };
for (const [, shown, told] of KEYS) {
  make("kbd", make("dt", at("keylist")), shown);
  make("dd", at("keylist"), told);
}
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey || at("keys").open) return;
  if (event.target.matches("select, input:not([type=checkbox])")) return;
  const key = (event.shiftKey && event.key.startsWith("Arrow") ? "Shift+" : "") + event.key;
  const found = KEYS.find(([keys]) => keys.includes(key));
  if (!found) return;
  event.preventDefault();
  found[3]();
});

for (const [half, select] of selects.entries()) {
  data.sides.forEach(({name}, number) => make("option", select, name, {value: number}));
  select.value = half ? Math.min(data.sides.length - 1, 1) : 0;
  select.addEventListener("input", () => { layers(); compared(); });
  // Keys then go through the pictures again, unless they made the choice.
  let pressed = false;
  select.addEventListener("pointerdown", () => { pressed = true; });
  select.addEventListener("change", () => { if (pressed) select.blur(); pressed = false; });
}
at("errors").hidden = CLEAN < 0;
at("cut").addEventListener("input", () => cut(at("cut").value));
for (const id of ["overlay", "error", "times"]) at(id).addEventListener("input", layers);
for (const [id, act] of Object.entries({
  previous: () => step(-1), next: () => step(1), flip, save, fit, in: () => zoom(STEP),
  out: () => zoom(1 / STEP), pixels: () => zoom(1 / view.k / devicePixelRatio),
  help: () => at("keys").showModal(),
})) at(id).addEventListener("click", act);
