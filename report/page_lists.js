// The lists of the page: scores of the picture in view, thumbnails, means, histogram, table.
const NUMBERS = {inf: Infinity, "-inf": -Infinity, nan: null};  // which JSON cannot hold
const number = value => value in NUMBERS ? NUMBERS[value] : value;
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
const protocol = () => +byId("protocol").value;
const score = (row, side, measure, p = protocol()) => row.scores[side]?.[2 * p + measure] ?? null;
const gain = (row, over, side, measure, p = protocol()) => {
  const [a, b] = [score(row, side, measure, p), score(row, over, measure, p)];
  return a === null || b === null || (a === b && !Number.isFinite(a)) ? null : a - b;
};
const chosenSides = () => selects.map(select => +select.value);
// Whether one of the two sides in view has a gain over the other.
const hasGain = () => chosenSides().every(n => SCORED.includes(n)) && chosenSides()[0] !== chosenSides()[1];
const cell = (row, value, digits, signed) =>
  addNode("td", row, figure(value, digits, signed), signed && value < 0 ? {class: "loss"} : {});
const link = (parent, text, href) => addNode("a", parent, text, {href});

byId("lead").textContent = data.lead;
byId("more").hidden = !data.columns.length;
byId("all-pictures").open = SCORED.length > 0;
data.links.forEach(name => { byId("links").append(" "); link(byId("links"), name, name); });
for (const [id, pairs] of [["run", data.run], ["settings", data.settings]])
  for (const [name, value] of pairs) { addNode("dt", byId(id), name); addNode("dd", byId(id), value); }

// Show the scores and files of a picture beside it, and mark it in the lists.
function showFacts(row) {
  const box = byId("scores");
  box.textContent = "";
  if (SCORED.length) {
    const head = addNode("tr", addNode("thead", box));
    for (const label of ["", "PSNR", "gain", "SSIM", "gain"]) addNode("th", head, label, {scope: "col"});
    const body = addNode("tbody", box);
    for (const side of SCORED) {
      const line = addNode("tr", body);
      addNode("th", line, data.sides[side].name, {scope: "row"});
      for (const measure of [0, 1]) {
        cell(line, score(row, side, measure), measure ? 4 : 2);
        if (side === SCORED[0] && data.gains) addNode("td", line, "");
        else cell(line, data.gains ? gain(row, SCORED[0], side, measure) : null, measure ? 4 : 2, true);
      }
    }
  }
  for (const id of ["facts", "figures"]) byId(id).textContent = "";
  const fact = (name, text, list = byId("facts")) => {
    addNode("dt", list, name);
    return addNode("dd", list, text);
  };
  fact("size", `${row.width} × ${row.height}`);
  data.columns.forEach(({label, digits}, n) =>
    fact(label, figure(row.values[n], digits), byId("figures")));
  const files = data.sides.filter(side => row.files[side.kind]);
  if (files.length) {
    const box = fact("files");
    files.forEach(side => { link(box, side.name, row.files[side.kind]); box.append(" "); });
  }
  if (!row.copied) fact("shown", `the files themselves; the page has copies of the first ${data.copied} pictures, `
    + "whose crops can be saved");
  if (row.reduced) fact("shown", `a copy of ${row.copy} pixels on its longer side, which saved crops are `
    + "cut from; zooming in shows the file, if it is still there and the browser supports its format");
  for (const one of [...byId("table").tBodies[0].rows]) one.classList.toggle("current", one.row === row);
  for (const one of byId("strip").children) {
    const on = one.row === row, button = one.firstElementChild;
    if (on) button.setAttribute("aria-current", "true"); else button.removeAttribute("aria-current");
    const strip = byId("strip");
    if (on && (one.offsetLeft < strip.scrollLeft
        || one.offsetLeft + one.offsetWidth > strip.scrollLeft + strip.clientWidth))
      strip.scrollLeft = one.offsetLeft - (strip.clientWidth - one.offsetWidth) / 2;
  }
  byId("previous").disabled = !neighbour(-1);
  byId("next").disabled = !neighbour(1);
}

// The mean gain of a side over the rainy image, over the pictures that have both.
function meanGain(name, p, measure) {
  const side = data.sides.findIndex(one => one.name === name && one.scored);
  const values = data.rows.map(row => gain(row, SCORED[0], side, measure, p))
    .filter(value => value !== null);
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}

// Means: the protocols, each with a row a side; the best in bold.
if (data.means.length) {
  byId("summary").hidden = false;
  const head = addNode("tr", addNode("thead", byId("means")));
  for (const label of ["", "images", "PSNR", "gain", "SSIM", "gain"]) addNode("th", head, label, {scope: "col"});
  data.protocols.forEach((name, p) => {
    const body = addNode("tbody", byId("means"));
    addNode("th", addNode("tr", body), name, {scope: "rowgroup", colspan: 6});
    const values = data.means.map(({values}) => values.slice(2 * p, 2 * p + 2).map(number));
    data.means.forEach(({side, images}, n) => {
      const row = addNode("tr", body);
      addNode("th", row, side, {scope: "row"});
      addNode("td", row, images);
      for (const measure of [0, 1]) {
        const value = values[n][measure], text = figure(value);
        const best = values.every(other => other[measure] === null || !(other[measure] > value));
        addNode("td", row, text, best && values.length > 1 && value !== null ? {class: "best"} : {});
        if (!data.gains || n === 0) addNode("td", row, "");
        else cell(row, meanGain(side, p, measure), 4, true);
      }
    });
  });
}

// Draw the histogram of the gain of the right side over the left one.
function histogram() {
  const box = byId("histogram"), [over, side] = chosenSides();
  box.textContent = "";
  const names = [side, over].map(n => data.sides[n].name).join(" over ");
  if (!hasGain()) { addNode("p", box, "Choose two sides that were scored."); return; }
  const values = data.rows.map(row => gain(row, over, side, 0)).filter(Number.isFinite);
  if (!values.length) { addNode("p", box, `${names}: no finite gain to show`); return; }
  const low = Math.min(...values, 0), high = Math.max(...values, low + 1e-3);
  const step = [.01, .02, .05, .1, .2, .5, 1, 2, 5, 10].find(s => (high - low) / s <= 30) || 20;
  const first = Math.floor(low / step), last = Math.floor(high / step);
  const counts = Array(last - first + 1).fill(0);
  for (const value of values) counts[Math.floor(value / step) - first]++;
  const [width, height, bottom] = [Math.max(20 * counts.length, 300) + 40, 190, 160];
  const sorted = [...values].sort((a, b) => a - b), worse = values.filter(v => v < 0).length;
  const middle = (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
  const said = `PSNR gain of ${names}, ${data.protocols[protocol()]}, ${values.length} ${values.length === 1 ? "picture" : "pictures"}: lowest `
    + `${figure(sorted[0], 2)} dB, median ${figure(middle, 2)} dB, highest ${figure(sorted.at(-1), 2)} dB; `
    + `${worse} below 0`;
  const svg = addNode("svg", box, undefined, {width, height, role: "img", "aria-label": said});
  const most = Math.max(...counts), wide = (width - 40) / counts.length;
  counts.forEach((count, index) => {
    const tall = 140 * count / most, left = 30 + index * wide, from = (first + index) * step;
    const bar = addNode("rect", svg, undefined, {x: left + 1, y: bottom - tall, width: wide - 2,
      height: tall, class: from < 0 ? "negative" : ""});
    addNode("title", bar, `${figure(from, 2)} to ${figure(from + step, 2)} dB: ${count}`);
    if (index % Math.ceil(counts.length / 12) === 0)
      addNode("text", svg, String(+from.toFixed(2)), {x: left, y: bottom + 14});
  });
  addNode("line", svg, undefined, {x1: 30, x2: width - 10, y1: bottom, y2: bottom});
  addNode("text", svg, String(most), {x: 4, y: bottom - 130});
  addNode("text", svg, "dB", {x: width - 20, y: bottom + 28});
  addNode("p", box, said, {class: "faint"});
}

// The columns of the table, and what the pictures can be ordered by.
function listColumns() {
  const columns = data.columns.map(({label, digits}, n) =>
    ({label, digits, group: "", value: row => row.values[n]}));
  for (const side of SCORED)
    for (const measure of [0, 1])
      columns.push({label: MEASURES[measure], digits: 4, group: data.sides[side].name,
        value: row => score(row, side, measure)});
  if (hasGain()) {
    const [over, side] = chosenSides();
    for (const measure of [0, 1])
      columns.push({label: MEASURES[measure], digits: 4, signed: true,
        group: `${data.sides[side].name} over ${data.sides[over].name}`,
        value: row => gain(row, over, side, measure)});
  }
  return columns;
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
  fillLists();
}
function clearSorting() { order = data.rows; sortedBy = null; fillLists(); }

// Both lists of the pictures, in their order. Each line is built once: there may be thousands. Of more than a
// browser shows at ease, the first in the order are listed.
const MOST_LISTED = 2000;
function buildTableHead() {
  shownColumns = listColumns();
  const table = byId("table"), [groups, labels] = [0, 1].map(() => document.createElement("tr"));
  table.tHead.replaceChildren(groups, labels);
  addNode("td", groups);
  shownColumns.forEach(({group}, n) => {
    if (n && shownColumns[n - 1].group === group) groups.lastChild.colSpan++;
    else addNode("th", groups, group, {colspan: 1, scope: "colgroup", class: group ? "group" : ""});
  });
  const names = ["picture", ...shownColumns.map(({label}) => label)];
  names.forEach((label, n) => {
    const heading = addNode("th", labels, undefined, {scope: "col"});
    addNode("button", heading, label, {type: "button"}).addEventListener("click", () =>
      sort(n - 1, heading.getAttribute("aria-sort") === "ascending"));
  });
  const options = shownColumns.map(({label, group}, n) => [n, group ? `${group}: ${label}` : label]);
  byId("order").replaceChildren();
  for (const [value, label] of [["", "as listed"], [-1, "name"], ...options])
    addNode("option", byId("order"), label, {value});
  for (const row of data.rows) row.line = row.thumb = null;
}
function fillLists() {
  const {column, descending} = sortedBy || {};
  [...byId("table").tHead.rows[1].cells].forEach((heading, n) => {
    if (sortedBy && n - 1 === column)
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else heading.removeAttribute("aria-sort");
  });
  byId("order").value = sortedBy ? column : "";
  byId("all").disabled = !sortedBy;
  const listed = order.slice(0, MOST_LISTED);
  byId("table").tBodies[0].replaceChildren(...listed.map(row => row.line ||= buildLine(row)));
  byId("strip").replaceChildren(...listed.map(row => row.thumb ||= buildThumb(row)));
  byId("count").textContent = `${listed.length} of ${data.rows.length} shown`;
  showPicture(current);
}
function buildLine(row) {
  const tr = document.createElement("tr");
  tr.row = row;
  const button = addNode("button", addNode("td", tr), row.name, {type: "button", class: "pick"});
  button.addEventListener("click", () => { showPicture(row); stage.scrollIntoView({block: "center"}); });
  for (const {digits, signed, value} of shownColumns) cell(tr, value(row), digits, signed);
  return tr;
}
function buildThumb(row) {
  const item = document.createElement("li");
  item.row = row;
  const button = addNode("button", item, undefined, {type: "button"});
  const name = `index_files/${String(row.index).padStart(6, "0")}-thumb.jpg`;
  addNode("img", button, undefined, {loading: "lazy", decoding: "async", alt: "", src: name});
  addNode("span", button, row.name);
  const column = SCORED.length && shownColumns[rankingColumn() ?? 0];
  if (column) {
    const {group, label, digits, signed, value} = column;
    addNode("span", button, `${label} ${figure(value(row), signed ? 2 : digits, signed)}`,
      {class: "faint", title: group});
  }
  button.addEventListener("click", () => showPicture(row));
  return item;
}

// The column that the shortest lists are taken by: the gain of the right side over the left, or the change.
function rankingColumn() {
  if (hasGain()) return shownColumns.length - 2;
  const change = data.columns.findIndex(({label}) => label === "change");
  return change < 0 ? null : change;
}
function labelExtremes() {
  const [over, side] = chosenSides().map(n => data.sides[n].name);
  for (const id of ["most", "least"]) {
    byId(id).hidden = rankingColumn() === null || data.rows.length <= 10;
    byId(id).textContent = hasGain() ? `10 ${id === "most" ? "best" : "worst"}` : `10 ${id} changed`;
    byId(id).title = hasGain() ? `by the PSNR gain of ${side} over ${over}` : "";
  }
}
for (const [id, descending] of [["most", true], ["least", false]])
  byId(id).addEventListener("click", () => { sort(rankingColumn(), descending, 10); showPicture(order[0]); });
byId("all").addEventListener("click", clearSorting);
byId("order").addEventListener("input", () =>
  byId("order").value === "" ? clearSorting() : sort(+byId("order").value));

// Called when the protocol or one of the two sides changes.
function updateComparison() {
  const was = sortedBy;
  buildTableHead();
  labelExtremes();
  histogram();
  byId("distribution").hidden = SCORED.length < 2;
  if (was && was.column < shownColumns.length) sort(was.column, was.descending, was.limit);
  else clearSorting();
}
for (const [n, name] of data.protocols.entries()) addNode("option", byId("protocol"), name, {value: n});
byId("choice").hidden = !data.protocols.length;
byId("protocol").addEventListener("input", updateComparison);
updateComparison();
moveLine(50);
