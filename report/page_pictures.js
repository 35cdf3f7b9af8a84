// The layers of the stage: two sides, the clean image for the error map, the attention map.
// Each copy is a script of one call: a page on disk may not save what it draws from an image file.
const MOST_COPIES = 24;  // in memory
const copies = new Map(), loading = new Map();
let busy = 0;     // number of images being loaded
function copy(key, address) {
  copies.set(key, address);
  if (copies.size > MOST_COPIES) copies.delete(copies.keys().next().value);
}
const keyOf = (row, kind) => `${String(row.index).padStart(6, "0")}-${kind}`;

// The address of a copy, or of the file where there are none. Rejected if it is missing.
function fetchCopy(row, kind) {
  if (!row.copied) return row.files[kind] ? Promise.resolve(row.files[kind]) : Promise.reject(new Error(kind));
  const key = keyOf(row, kind);
  if (copies.has(key)) return Promise.resolve(copies.get(key));
  if (!loading.has(key)) {
    busy++;
    const script = addNode("script", document.head, undefined, {src: `index_files/${key}.js`});
    loading.set(key, new Promise((resolve, reject) => {
      script.onload = () => copies.has(key) ? resolve(copies.get(key)) : reject(new Error(key));
      script.onerror = () => reject(new Error(key));
    }).finally(() => { busy--; loading.delete(key); script.remove(); }));
  }
  return loading.get(key);
}

function showError(text) {
  byId("lost").hidden = !text;
  byId("lost").textContent = text;
}

function showLayer(layer, row, kind) {
  const key = keyOf(row, kind);
  if (layer.key === key) return;
  hideLayer(layer);
  Object.assign(layer, {key, row, kind});
  Object.assign(layer.style, {width: `${row.width}px`, height: `${row.height}px`,
    objectPosition: "0 0", objectFit: row.copied ? "fill" : "none"});  // a result may have another size
  layer.onerror = () => showError("a file is missing, or the browser does not support its format");
  fetchCopy(row, kind).then(
    address => { if (layer.key === key) { layer.src = address; sharpen(layer); } },
    () => { if (layer.key === key) showError("a picture of this page is missing in index_files"); });
}
function hideLayer(layer) {
  layer.key = layer.whole = null;
  layer.removeAttribute("src");
}

// Replace a reduced copy by the whole file when zoomed in beyond its resolution, if the file is
// still there, the browser supports its format, and it has the picture's size.
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

const factor = () => clamp(+byId("times").value || 1, 1, 99);

// Show the layers that the controls select.
function updateLayers() {
  const row = current, error = byId("error").checked;
  for (const half of [0, 1]) {
    const {name, kind} = side(half), [image, truth] = halves[half].children;
    const there = hasSide(row, +selects[half].value);
    byId(`label${half}`).textContent = there ? name : `${name}: no result`;
    image.alt = there ? `${row.name}, ${name}` : "";
    if (there) showLayer(image, row, kind); else hideLayer(image);
    if (there && error) showLayer(truth, row, "clean"); else hideLayer(truth);
  }
  const mask = byId("mask"), overlay = row.mask && byId("overlay").checked;
  mask.hidden = !overlay;
  mask.alt = "attention map: the stronger the colour, the more the network sees rain";
  if (overlay) showLayer(mask, row, "mask"); else hideLayer(mask);
  stage.classList.toggle("error", error);
  stage.style.setProperty("--times", factor());
  showFilm();
}

function showPicture(row) {
  const same = row.width === current.width && row.height === current.height;
  current = row;
  byId("name").textContent = row.name;
  document.title = `${row.name} - ${document.querySelector("h1").textContent}`;
  stage.style.aspectRatio = `${row.width} / ${row.height}`;
  showError("");
  for (const select of selects)
    for (const option of select.options) option.disabled = !hasSide(row, +option.value);
  byId("attention").hidden = !row.mask;
  byId("save").hidden = !row.copied;
  updateLayers();
  if (view.fit || !same) fit(); else placeImages();
  showFacts(row);
}

// Save what is in view, at the resolution of the copies, without line and labels.
async function saveCrop() {
  const row = current, share = row.copy / Math.max(row.width, row.height);
  const [error, times, mask] = [byId("error").checked, factor(), byId("mask")];
  const kinds = selects.map((select, half) => hasSide(row, +select.value) ? side(half).kind : null);
  const first = (value, size) => clamp(Math.floor(-value / view.k * share), 0, size - 1);
  const last = (room, value, size) => clamp(Math.ceil((room - value) / view.k * share), 1, size);
  const [wide, tall] = [row.width, row.height].map(size => Math.max(1, Math.round(size * share)));
  const [x, y] = [first(view.x, wide), first(view.y, tall)];
  const w = last(stage.clientWidth, view.x, wide) - x, h = last(stage.clientHeight, view.y, tall) - y;
  const line = (byId("cut").value / 100 * stage.clientWidth - view.x) / view.k * share - x;
  const canvas = Object.assign(document.createElement("canvas"), {width: w, height: h});
  const brush = canvas.getContext("2d", {willReadFrequently: true});
  const draw = async kind => {
    const image = new Image();
    image.src = await fetchCopy(row, kind);
    await image.decode();
    brush.drawImage(image, -x, -y);
  };
  const pixels = async kind => { await draw(kind); return brush.getImageData(0, 0, w, h); };
  const part = async kind => {
    if (!kind) return brush.createImageData(w, h);
    const image = await pixels(kind);
    if (error) {
      const truth = (await pixels("clean")).data;
      image.data.forEach((value, i) => {
        if (i % 4 < 3) image.data[i] = Math.abs(value - truth[i]) * times;
      });
    }
    return image;
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
    showError("the crop is not saved: a picture of this page is missing in index_files");
    return;
  }
  const blob = await new Promise(resolve => canvas.toBlob(resolve));
  const name = row.name.replace(/[^\p{L}\p{N}._-]+/gu, "_").slice(0, 100);
  const link = addNode("a", document.body, undefined, {
    download: `${name}_${x}_${y}_${w}x${h}.png`, href: URL.createObjectURL(blob)});
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// A video: both sides play in step if the browser can play both; otherwise the middle frame stays.
const films = halves.map((half, side) => half.appendChild(Object.assign(
  document.createElement("video"), {id: `film${side}`, playsInline: true, hidden: true})));
films[0].muted = true;
const canPlay = () => films.row === current && films.every(film => film.loaded && !film.error);
function showFilm() {
  const row = current;
  if (films.row !== row) {
    films.row = row;
    films.forEach((film, half) => {
      film.pause();
      film.loaded = false;  // not its readyState, which a seek lowers for a moment
      if (row.begin === null) film.removeAttribute("src");
      else film.src = row.files[half ? "derained" : "rainy"];
      Object.assign(film.style, {width: `${row.width}px`, height: `${row.height}px`});
      film.load();
    });
  }
  const playable = row.begin !== null && canPlay() && !byId("overlay").checked
    && selects.every((select, half) => +select.value === half);
  for (const film of films) film.hidden = !playable;
  byId("film").hidden = !playable;
  if (!playable) films[1].pause();
}
// The rainy film follows the derained one, which may begin later.
function syncFilms() {
  const [rainy, derained] = films;
  if (films.row !== current || !canPlay()) return;
  const due = derained.currentTime + current.begin;
  if (derained.paused || Math.abs(rainy.currentTime - due) > .05) rainy.currentTime = due;
  byId("time").value = derained.duration ? derained.currentTime / derained.duration : 0;
}
for (const film of films) {
  film.addEventListener("loadeddata", () => { film.loaded = true; showFilm(); });
  film.addEventListener("error", showFilm);
}
for (const event of ["timeupdate", "seeked", "loadeddata"]) films[1].addEventListener(event, syncFilms);
films[1].addEventListener("play", () => { films[0].play(); byId("play").textContent = "Pause"; });
films[1].addEventListener("pause", () => { films[0].pause(); byId("play").textContent = "Play"; });
byId("play").addEventListener("click", () => films[1].paused ? films[1].play() : films[1].pause());
byId("time").addEventListener("input", () => {
  films[1].currentTime = byId("time").value * films[1].duration;
});
