// What is told beside the picture in view: scores, thumbnails, means, the distribution, the table.
const number = value => value === "inf" ? Infinity : value === "-inf" ? -Infinity : value;
const figure = (value, digits = 4, signed = false) =>
  value === null || value === undefined || Number.isNaN(value) ? "n/a"
  : (signed && value > 0 ? "+" : "") + (Number.isFinite(value) ? value.toFixed(digits)
    : value > 0 ? "∞" : "-∞");
const SCORED = data.sides.map((side, n) => n).filter(n => data.sides[n].scored);
const MEASURES = ["PSNR", "SSIM"];
for (const row of data.rows) {
  row.values = row.values.map(number);
  row.scores = row.scores.map(scores => scores && scores.map(number));
}
const protocol = () => +at("protocol").value;
const score = (row, side, measure, p = protocol()) => row.scores[side]?.[2 * p + measure] ?? null;
const gain = (row, over, side, measure, p = protocol()) => {
  const [a, b] = [score(row, side, measure, p), score(row, over, measure, p)];
  return a === null || b === null || (a === b && !Number.isFinite(a)) ? null : a - b;
};
const chosen = () => selects.map(select => +select.value);
// Whether one of the two sides in view has a gain over the other.
const gains = () => chosen().every(n => SCORED.includes(n)) && chosen()[0] !== chosen()[1];
const cell = (row, value, digits, signed) =>
  make("td", row, figure(value, digits, signed), signed && value < 0 ? {class: "loss"} : {});
const link = (parent, text, href) => make("a", parent, text, {href});

at("lead").textContent = data.lead;
data.links.forEach(name => { at("links").append(" "); link(at("links"), name, name); });
for (const [id, pairs] of [["run", data.run], ["settings", data.settings]])
  for (const [name, value] of pairs) { make("dt", at(id), name); make("dd", at(id), value); }

// Beside the picture: its scores and its files.
function told(row) {
  const box = at("scores");
  box.textContent = "";
  if (SCORED.length) {
    const head = make("tr", make("thead", box));
    for (const label of ["", "PSNR", "gain", "SSIM", "gain"]) make("th", head, label, {scope: "col"});
    const body = make("tbody", box);
    for (const side of SCORED) {
      const line = make("tr", body);
      make("th", line, data.sides[side].name, {scope: "row"});
      for (const measure of [0, 1]) {
        cell(line, score(row, side, measure), measure ? 4 : 2);
        if (side === SCORED[0] && data.input) make("td", line, "");
        else cell(line, data.input ? gain(row, SCORED[0], side, measure) : null, measure ? 4 : 2, true);
      }
    }
  }
  const facts = at("facts");
  facts.textContent = "";
  const fact = (name, text) => { make("dt", facts, name); return make("dd", facts, text); };
  fact("size", `${row.width} × ${row.height}`);
  data.columns.forEach(({label, digits}, n) => fact(label, figure(row.values[n], digits)));
  const files = data.sides.filter(side => row.files[side.kind]);
  if (files.length) {
    const box = fact("files");
    files.forEach(side => { link(box, side.name, row.files[side.kind]); box.append(" "); });
  }
  if (row.reduced) fact("shown", `a copy of ${row.copy} pixels on its longer side, of which crops are `
    + "saved; zooming in shows the file, if it is still there and the browser can show its kind");
  for (const one of [...at("table").tBodies[0].rows]) one.classList.toggle("shown", one.row === row);
  for (const one of at("strip").children) {
    const on = one.row === row, button = one.firstElementChild;
    if (on) button.setAttribute("aria-current", "true"); else button.removeAttribute("aria-current");
    const strip = at("strip");
    if (on && (one.offsetLeft < strip.scrollLeft
        || one.offsetLeft + one.offsetWidth > strip.scrollLeft + strip.clientWidth))
      strip.scrollLeft = one.offsetLeft - (strip.clientWidth - one.offsetWidth) / 2;
  }
  at("previous").disabled = !beside(-1);
  at("next").disabled = !beside(1);
}

// The mean gain of a side over the input, of those pictures that both have.
function meanGain(name, p, measure) {
  const side = data.sides.findIndex(one => one.name === name && one.scored);
  const values = data.rows.map(row => gain(row, SCORED[0], side, measure, p))
    .filter(value => value !== null);
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}

// Means: the protocols, each with a row a side; the best in bold.
if (data.means.length) {
  at("summary").hidden = false;
  const head = make("tr", make("thead", at("means")));
  for (const label of ["", "images", "PSNR", "gain", "SSIM", "gain"]) make("th", head, label, {scope: "col"});
  data.protocols.forEach((name, p) => {
    const body = make("tbody", at("means"));
    make("th", make("tr", body), name, {scope: "rowgroup", colspan: 6});
    const values = data.means.map(({values}) => values.slice(2 * p, 2 * p + 2).map(number));
    data.means.forEach(({side, images}, n) => {
      const row = make("tr", body);
      make("th", row, side, {scope: "row"});
      make("td", row, images);
      for (const measure of [0, 1]) {
        const value = values[n][measure], text = figure(value);
        const best = values.every(other => other[measure] === null || !(other[measure] > value));
        make("td", row, text, best && values.length > 1 && value !== null ? {class: "best"} : {});
        if (!data.input || n === 0) make("td", row, "");
        else cell(row, meanGain(side, p, measure), 4, true);
      }
    });
  });
}

// The histogram of the gain of the right side over the left one.
function histogram() {
  const box = at("histogram"), [over, side] = chosen();
  box.textContent = "";
  const names = [side, over].map(n => data.sides[n].name).join(" over ");
  if (!gains()) { make("p", box, "Choose two sides that were scored."); return; }
  const values = data.rows.map(row => gain(row, over, side, 0)).filter(Number.isFinite);
  if (!values.length) { make("p", box, `${names}: no finite gain to show`); return; }
  const low = Math.min(...values, 0), high = Math.max(...values, low + 1e-3);
  const step = [.01, .02, .05, .1, .2, .5, 1, 2, 5, 10].find(s => (high - low) / s <= 30) || 20;
  const first = Math.floor(low / step), last = Math.floor(high / step);
  const counts = Array(last - first + 1).fill(0);
  for (const value of values) counts[Math.floor(value / step) - first]++;
  const [width, height, bottom] = [Math.max(20 * counts.length, 300) + 40, 190, 160];
  const sorted = [...values].sort((a, b) => a - b), worse = values.filter(v => v < 0).length;
  const middle = (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
  const said = `PSNR gain of ${names}, ${data.protocols[protocol()]}, ${values.length} pictures: lowest `
    + `${figure(sorted[0], 2)} dB, median ${figure(middle, 2)} dB, highest ${figure(sorted.at(-1), 2)} dB; `
    + `${worse} below 0`;
  const svg = make("svg", box, undefined, {width, height, role: "img", "aria-label": said});
  const most = Math.max(...counts), wide = (width - 40) / counts.length;
  counts.forEach((count, index) => {
    const tall = 140 * count / most, left = 30 + index * wide, from = (first + index) * step;
    const bar = make("rect", svg, undefined, {x: left + 1, y: bottom - tall, width: wide - 2,
      height: tall, class: from < 0 ? "negative" : ""});
    make("title", bar, `${figure(from, 2)} to ${figure(from + step, 2)} dB: ${count}`);
    if (index % Math.ceil(counts.length / 12) === 0)
      make("text", svg, String(+from.toFixed(2)), {x: left, y: bottom + 14});
  });
  make("line", svg, undefined, {x1: 30, x2: width - 10, y1: bottom, y2: bottom});
  make("text", svg, String(most), {x: 4, y: bottom - 130});
  make("text", svg, "dB", {x: width - 20, y: bottom + 28});
  make("p", box, said, {class: "faint"});
}

// The columns of the table, and what the pictures can be ordered by.
function columns() {
  const found = data.columns.map(({label, digits}, n) =>
    ({label, digits, group: "", value: row => row.values[n]}));
  for (const side of SCORED)
    for (const measure of [0, 1])
      found.push({label: MEASURES[measure], digits: 4, group: data.sides[side].name,
        value: row => score(row, side, measure)});
  if (gains()) {
    const [over, side] = chosen();
    for (const measure of [0, 1])
      found.push({label: MEASURES[measure], digits: 4, signed: true,
        group: `${data.sides[side].name} over ${data.sides[over].name}`,
        value: row => gain(row, over, side, measure)});
  }
  return found;
}
let shownColumns = [], sortedBy = null;  // {column: -1 for the name, descending, limit}
function compare(a, b, column) {
  if (column < 0) return a.name.localeCompare(b.name, undefined, {numeric: true});
  const [x, y] = [a, b].map(shownColumns[column].value);
  return x === y ? 0 : x - y;
}
function sort(column, descending = false, limit = undefined) {
  const known = row => column < 0 || shownColumns[column].value(row) !== null;
  const sorted = data.rows.filter(known)
    .sort((a, b) => compare(a, b, column) * (descending ? -1 : 1) || a.index - b.index);
  order = limit ? sorted.slice(0, limit) : [...sorted, ...data.rows.filter(row => !known(row))];
  sortedBy = {column, descending, limit};
  fill();
}
function unsorted() { order = data.rows; sortedBy = null; fill(); }

// Both lists of the pictures, in their order. A page of a thousand makes each line once.
function head() {
  shownColumns = columns();
  const table = at("table"), [groups, labels] = [0, 1].map(() => document.createElement("tr"));
  table.tHead.replaceChildren(groups, labels);
  make("td", groups);
  shownColumns.forEach(({group}, n) => {
    if (n && shownColumns[n - 1].group === group) groups.lastChild.colSpan++;
    else make("th", groups, group, {colspan: 1, scope: "colgroup", class: group ? "group" : ""});
  });
  const names = ["picture", ...shownColumns.map(({label}) => label)];
  names.forEach((label, n) => {
    const heading = make("th", labels, undefined, {scope: "col"});
    make("button", heading, label, {type: "button"}).addEventListener("click", () =>
      sort(n - 1, heading.getAttribute("aria-sort") === "ascending"));
  });
  const options = shownColumns.map(({label, group}, n) => [n, group ? `${group}: ${label}` : label]);
  at("order").replaceChildren();
  for (const [value, label] of [["", "as listed"], [-1, "name"], ...options])
    make("option", at("order"), label, {value});
  for (const row of data.rows) row.line = row.thumb = null;
}
function fill() {
  const {column, descending} = sortedBy || {};
  [...at("table").tHead.rows[1].cells].forEach((heading, n) => {
    if (sortedBy && n - 1 === column)
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else heading.removeAttribute("aria-sort");
  });
  at("order").value = sortedBy ? column : "";
  at("all").disabled = !sortedBy;
  at("table").tBodies[0].replaceChildren(...order.map(row => row.line ||= line(row)));
  at("strip").replaceChildren(...order.map(row => row.thumb ||= thumb(row)));
  at("count").textContent = `${order.length} of ${data.rows.length} shown`;
  look(current);
}
function line(row) {
  const tr = document.createElement("tr");
  tr.row = row;
  const button = make("button", make("td", tr), row.name, {type: "button", class: "pick"});
  button.addEventListener("click", () => { look(row); stage.scrollIntoView({block: "center"}); });
  for (const {digits, signed, value} of shownColumns) cell(tr, value(row), digits, signed);
  return tr;
}
function thumb(row) {
  const item = document.createElement("li");
  item.row = row;
  const button = make("button", item, undefined, {type: "button"});
  const name = `index_files/${String(row.index).padStart(6, "0")}-thumb.jpg`;
  make("img", button, undefined, {loading: "lazy", decoding: "async", alt: "", src: name});
  make("span", button, row.name);
  const column = shownColumns[telling() ?? 0];
  if (column) {
    const {group, label, digits, signed, value} = column;
    make("span", button, `${label} ${figure(value(row), signed ? 2 : digits, signed)}`,
      {class: "faint", title: group});
  }
  button.addEventListener("click", () => look(row));
  return item;
}

// The two most telling lists: by the gain of the right side over the left, or by what changed most.
const telling = () => gains() ? shownColumns.length - 2 : data.by;
function extremes() {
  const [over, side] = chosen().map(n => data.sides[n].name);
  for (const id of ["most", "least"]) {
    at(id).hidden = telling() === null;
    at(id).textContent = gains() ? `Ten where ${side} beats ${over} ${id}` : `Ten ${id} changed`;
  }
}
for (const [id, descending] of [["most", true], ["least", false]])
  at(id).addEventListener("click", () => { sort(telling(), descending, 10); look(order[0]); });
at("all").addEventListener("click", unsorted);
at("order").addEventListener("input", () =>
  at("order").value === "" ? unsorted() : sort(+at("order").value));

// Called when the protocol, or one of the two sides, is another.
function compared() {
  const was = sortedBy;
  head();
  extremes();
  histogram();
  at("distribution").hidden = SCORED.length < 2;
  if (was && was.column < shownColumns.length) sort(was.column, was.descending, was.limit);
  else unsorted();
}
for (const [n, name] of data.protocols.entries()) make("option", at("protocol"), name, {value: n});
at("choice").hidden = !data.protocols.length;
at("protocol").addEventListener("input", compared);
compared();
cut(50);
