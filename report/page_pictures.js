// The layers of the stage: two sides, the clean image of the error map, the attention map.
// Copies lie in scripts of one call each, as a page on disk may not save what it draws from a file.
const KEPT = 24;  // copies in memory
const copies = new Map(), arriving = new Map();
let busy = 0;     // what is being loaded
function copy(key, address) {
  copies.set(key, address);
  if (copies.size > KEPT) copies.delete(copies.keys().next().value);
}
const keyOf = (row, kind) => `${String(row.index).padStart(6, "0")}-${kind}`;

// The copy of a picture, as an address. Rejected where its script is gone.
function fetched(row, kind) {
  const key = keyOf(row, kind);
  if (copies.has(key)) return Promise.resolve(copies.get(key));
  if (!arriving.has(key)) {
    busy++;
    const script = make("script", document.head, undefined, {src: `index_files/${key}.js`});
    arriving.set(key, new Promise((resolve, reject) => {
      script.onload = () => copies.has(key) ? resolve(copies.get(key)) : reject(new Error(key));
      script.onerror = () => reject(new Error(key));
    }).finally(() => { busy--; arriving.delete(key); script.remove(); }));
  }
  return arriving.get(key);
}

function lost(text) {
  at("lost").hidden = !text;
  at("lost").textContent = text;
}

function show(layer, row, kind) {
  const key = keyOf(row, kind);
  if (layer.key === key) return;
  hide(layer);
  Object.assign(layer, {key, row, kind});
  Object.assign(layer.style, {width: `${row.width}px`, height: `${row.height}px`});
  fetched(row, kind).then(
    address => { if (layer.key === key) { layer.src = address; sharpen(layer); } },
    () => { if (layer.key === key) lost("a picture of this page is missing in index_files"); });
}
function hide(layer) {
  layer.key = layer.whole = null;
  layer.removeAttribute("src");
}

// The whole file takes the place of a reduced copy where more is to be seen than that holds, if
// the file is still there, of a kind that the browser shows, and of the picture's size.
function sharpen(layer) {
  const {row, kind, key} = layer;
  if (!key || !layer.src || layer.whole || !row.reduced || !row.files[kind]) return;
  if (Math.max(row.width, row.height) * view.k * devicePixelRatio <= data.view) return;
  const whole = layer.whole = new Image();
  busy++;
  whole.onload = () => {
    busy--;
    const fits = whole.naturalWidth === row.width && whole.naturalHeight === row.height;
    if (layer.key === key && fits) layer.src = whole.src;
  };
  whole.onerror = () => { busy--; };
  whole.src = row.files[kind];
}

const factor = () => clamp(+at("times").value || 1, 1, 99);

// Show what the controls ask for. A layer that is there already stays as it is.
function layers() {
  const row = current, error = at("error").checked;
  for (const half of [0, 1]) {
    const {name, kind} = side(half), [image, truth] = halves[half].children;
    const there = has(row, +selects[half].value);
    at(`label${half}`).textContent = there ? name : `${name}: no result`;
    image.alt = there ? `${row.name}, ${name}` : "";
    if (there) show(image, row, kind); else hide(image);
    if (there && error) show(truth, row, "clean"); else hide(truth);
  }
  const mask = at("mask"), overlay = row.mask && at("overlay").checked;
  mask.hidden = !overlay;
  mask.alt = "attention map: the stronger the colour, the more the network sees rain";
  if (overlay) show(mask, row, "mask"); else hide(mask);
  stage.classList.toggle("error", error);
  stage.style.setProperty("--times", factor());
  showFilm();
}

function look(row) {
  const same = row.width === current.width && row.height === current.height;
  current = row;
  at("name").textContent = row.name;
  document.title = `${row.name} - ${document.querySelector("h1").textContent}`;
  stage.style.aspectRatio = `${row.width} / ${row.height}`;
  lost("");
  for (const select of selects)
    for (const option of select.options) option.disabled = !has(row, +option.value);
  at("attention").hidden = !row.mask;
  layers();
  if (view.fit || !same) fit(); else place();
  told(row);
}

// What is in view, at the pixels of the copies, without line and labels.
async function save() {
  const row = current, share = row.copy / Math.max(row.width, row.height);
  const [error, times, mask] = [at("error").checked, factor(), at("mask")];
  const kinds = selects.map((select, half) => has(row, +select.value) ? side(half).kind : null);
  const first = (value, size) => clamp(Math.floor(-value / view.k * share), 0, size - 1);
  const last = (room, value, size) => clamp(Math.ceil((room - value) / view.k * share), 1, size);
  const [wide, tall] = [row.width, row.height].map(size => Math.max(1, Math.round(size * share)));
  const [x, y] = [first(view.x, wide), first(view.y, tall)];
  const w = last(stage.clientWidth, view.x, wide) - x, h = last(stage.clientHeight, view.y, tall) - y;
  const line = (at("cut").value / 100 * stage.clientWidth - view.x) / view.k * share - x;
  const canvas = Object.assign(document.createElement("canvas"), {width: w, height: h});
  const brush = canvas.getContext("2d", {willReadFrequently: true});
  const draw = async kind => {
    const image = new Image();
    image.src = await fetched(row, kind);
    await image.decode();
    brush.drawImage(image, -x, -y);
  };
  const pixels = async kind => { await draw(kind); return brush.getImageData(0, 0, w, h); };
  const part = async kind => {
    if (!kind) return brush.createImageData(w, h);
    const found = await pixels(kind);
    if (error) {
      const truth = (await pixels("clean")).data;
      found.data.forEach((value, i) => {
        if (i % 4 < 3) found.data[i] = Math.abs(value - truth[i]) * times;
      });
    }
    return found;
  };
  try {
    const parts = [await part(kinds[0]), await part(kinds[1])];
    const middle = clamp(Math.round(line), 0, w);
    brush.clearRect(0, 0, w, h);
    brush.putImageData(parts[0], 0, 0, 0, 0, middle, h);
    brush.putImageData(parts[1], 0, 0, middle, 0, w - middle, h);
    if (!mask.hidden) {
      brush.globalAlpha = getComputedStyle(mask).opacity;
      await draw("mask");
    }
  } catch {
    lost("the crop is not saved: a picture of this page is missing in index_files");
    return;
  }
  const blob = await new Promise(resolve => canvas.toBlob(resolve));
  const name = row.name.replace(/[^\p{L}\p{N}._-]+/gu, "_").slice(0, 100);
  const link = make("a", document.body, undefined, {
    download: `${name}_${x}_${y}_${w}x${h}.png`, href: URL.createObjectURL(blob)});
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// A video: both sides play in step where the browser can play both; else its middle frame stays.
const films = halves.map((half, side) => half.appendChild(Object.assign(
  document.createElement("video"), {id: `film${side}`, playsInline: true, hidden: true})));
films[0].muted = true;
const plays = () => films.row === current && films.every(film => film.loaded && !film.error);
function showFilm() {
  const row = current;
  if (films.row !== row) {
    films.row = row;
    films.forEach((film, half) => {
      film.pause();
      film.loaded = false;  // not its readyState, which a seek lowers for a moment
      if (row.begin === null) film.removeAttribute("src");
      else film.src = row.files[half ? "after" : "before"];
      Object.assign(film.style, {width: `${row.width}px`, height: `${row.height}px`});
      film.load();
    });
  }
  const shown = row.begin !== null && plays() && !at("overlay").checked
    && selects.every((select, half) => +select.value === half);
  for (const film of films) film.hidden = !shown;
  at("film").hidden = !shown;
  if (!shown) films[1].pause();
}
// The derained film leads. It may begin later in the rainy one, of which it then holds a part.
function follow() {
  const [before, after] = films;
  if (films.row !== current || !plays()) return;
  const due = after.currentTime + current.begin;
  if (after.paused || Math.abs(before.currentTime - due) > .05) before.currentTime = due;
  at("time").value = after.duration ? after.currentTime / after.duration : 0;
}
for (const film of films) {
  film.addEventListener("loadeddata", () => { film.loaded = true; showFilm(); });
  film.addEventListener("error", showFilm);
}
for (const event of ["timeupdate", "seeked", "loadeddata"]) films[1].addEventListener(event, follow);
films[1].addEventListener("play", () => { films[0].play(); at("play").textContent = "Pause"; });
films[1].addEventListener("pause", () => { films[0].pause(); at("play").textContent = "Play"; });
at("play").addEventListener("click", () => films[1].paused ? films[1].play() : films[1].pause());
at("time").addEventListener("input", () => {
  films[1].currentTime = at("time").value * films[1].duration;
});
