// The page: its controls, its legend and its figures.

function drawLegend() {
  const [scale, most] = [scaleShown(), mostShown()];
  const [low, high] = scale.map((end) => Math.round((end / most) * contents.levels));
  const levels = Array.from({ length: high - low + 1 }, (_, place) => low + place);
  const ramp = levels.map((place) => make("i", { class: place < 0 ? `n${-place}` : `p${place}` }));
  const rowOf = (name, factor) => {
    const row = make("div", { class: "ticks" });
    for (const tick of ticks(scale[0] / factor, scale[1] / factor, 6)) {
      const label = make("span", {}, plain(tick));
      label.style.left = `${((((tick * factor) / most) * contents.levels - low + 0.5) / levels.length) * 100}%`;
      row.append(label);
    }
    return [make("span", {}, name), row];
  };
  const swatch = (level, name) => make("span", {}, make("i", { class: `swatch ${level}` }), name);
  const signs = [swatch("p0", "zero"), make("b", { class: "t none" }, "no label")];
  if (low < 0) signs.unshift(swatch("n8", "below zero"));
  byId("legend").replaceChildren(
    make("div", { class: "range" }, ...rowOf("nats", 1), make("div", { class: "ramp" }, ...ramp), ...rowOf("bits", NATS_A_BIT)),
    make("div", { class: "signs" }, ...signs),
  );
}

function drawFigures() {
  const measures = measuresShown();
  const means = measures.map(({ name, mean, labelled }, place) => make("span", {},
    ...(measures.length > 1 ? [make("i", { class: `key${place ? " beside" : ""}` })] : []),
    `${name}: mean ${mean === null ? "none" : `${signed(inUnit(mean), 3)} ${unit()}`} of ${counted(labelled)} labels.`,
  ));
  byId("histogram-told").replaceChildren(...means);
  byId("positions-told").textContent = `Mean in ${unit()} by the place of the token. ` +
    `Each dot is the mean up to the next dot, of at least ${contents.least} labels.`;
  drawCharts(measures);
  const [{ name, highest, lowest, ranked }] = measures;
  byId("tokens-told").textContent = `By the mean of ${name}, of tokens with at least ${contents.least} labels.`;
  const tables = [["Highest", highest], ["Lowest", lowest]].filter(([, tokens]) => tokens.length);
  byId("tokens").replaceChildren(...(tables.length ? tables.map((table) => tokenTable(...table)) : [noToken(ranked)]));
  if (contents.groups) drawGroups();
}

function drawCharts(measures) {
  byId("histogram").replaceChildren(drawHistogram(measures));
  byId("positions").replaceChildren(drawPositions(measures));
}

// Charts are drawn again when their width changes.
function followWidth() {
  let drawn = chartWidth();
  new ResizeObserver(() => {
    if (chartWidth() === drawn) return;
    drawn = chartWidth();
    drawCharts(measuresShown());
    showCourse();
  }).observe(byId("histogram"));
}

const rowOf = (kind, values) => make("tr", {}, ...values.map((value) => make(kind, {}, value)));

const noToken = (ranked) => (ranked ? `No token of those that occur ${contents.least} times.`
  : `No token occurs ${contents.least} times in the sample.`);

function tokenTable(caption, tokens, ranked) {
  const rows = tokens.map(([text, count, mean]) => {
    const shown = tokenElement(text.replaceAll(" ", "␣"), mean, mostShown());
    return rowOf("td", [shown, counted(count), signed(inUnit(mean), 2)]);
  });
  const named = rows.length ? [rowOf("th", ["token", "times", unit()]), ...rows] : [rowOf("td", [noToken(ranked)])];
  return make("table", {}, make("caption", {}, caption), ...named);
}

function drawGroups() {
  const { column, rows, more } = contents.groups;
  byId("groups-title").textContent = `By ${column}`;
  const table = rows.map(([name, documents, tokens, means]) =>
    rowOf("td", [name, counted(documents), counted(tokens), ...means.map((mean) => (mean === null ? "" : signed(inUnit(mean), 3)))]));
  const names = contents.measures.map(({ name }) => `${name}, ${unit()}`);
  const rest = more ? [make("p", { class: "note" }, `There are more values than these ${rows.length}.`)] : [];
  byId("groups").replaceChildren(make("table", {}, rowOf("th", [column, "documents", "tokens", ...names]), ...table), ...rest);
}

const textOf = (shown) => shown.tokens.map((token) => contents.texts[token]).join("");
const texts = contents.documents.map(textOf);
let matching = contents.documents.map((_, place) => place);

// Orders of the documents: name, key and direction. Documents that lack the value come last.
const orders = [
  ["row", ({ row }) => row, 1],
  ...contents.series.flatMap((name, series) => [
    [`highest ${name}`, ({ means }) => means[series], -1],
    [`lowest ${name}`, ({ means }) => means[series], 1],
  ]),
  ["longest", ({ size }) => size, -1],
  ["shortest", ({ size }) => size, 1],
  ...contents.columns.map((column) => [column, ({ source }) => source[column], 1]),
];

function ordered(places) {
  const [, key, direction] = orders[Number(byId("order").value)];
  const compare = (one, other) => {
    const [first, second] = [one, other].map((place) => key(contents.documents[place]) ?? null);
    if (first === null || second === null) return (first === null) - (second === null);
    return direction * (typeof first === "number" && typeof second === "number" ? first - second : String(first).localeCompare(String(second)));
  };
  return [...places].sort((one, other) => compare(one, other) || one - other);
}

function fillPicker() {
  const options = matching.map((place, at) => {
    const beginning = texts[place].slice(0, 300).trim().replace(/\s+/g, " ").slice(0, 60);
    return make("option", { value: place }, `${at + 1} of ${matching.length} · ${visible(beginning) || "(empty)"}`);
  });
  byId("picker").replaceChildren(...options);
}

function goTo(place) {
  state.document = place;
  [hits, hit] = [hitsIn(place), 0];
  byId("picker").value = place;
  const at = matching.indexOf(place);
  byId("previous").disabled = at <= 0;
  byId("next").disabled = at < 0 || at + 1 >= matching.length;
  showDocument();
  tellHits();
}

const wanted = () => new RegExp(byId("search").value.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "giu");
const found = (place) => (byId("search").value ? [...texts[place].matchAll(wanted())] : []);

// First and last token of each hit in a document.
function hitsIn(place) {
  const ends = [];
  contents.documents[place].tokens.reduce((end, token) => {
    ends.push(end + contents.texts[token].length);
    return ends.at(-1);
  }, 0);
  return found(place).map(({ index, 0: text }) => {
    const first = ends.findIndex((end) => end > index);
    return [first, Math.max(first, ends.findIndex((end) => end >= index + text.length))];
  });
}

function tellHits() {
  const counts = matching.map((place) => found(place).length);
  const all = counts.reduce((sum, count) => sum + count, 0);
  const many = matching.length > 1 ? `, ${counted(all)} in ${counted(matching.length)} documents` : "";
  const none = byId("search").value ? "no hits" : "";
  byId("hits").textContent = hits.length ? `${counted(hit + 1)} of ${counted(hits.length)}${many}` : none;
  byId("steps").hidden = !hits.length;
}

// Move to the next or previous hit, if necessary in another document.
function step(by) {
  const at = matching.indexOf(state.document);
  if (hit + by >= 0 && hit + by < hits.length) hit += by;
  else if (matching.length > 1) {
    goTo(matching[(at + by + matching.length) % matching.length]);
    hit = by > 0 ? 0 : hits.length - 1;
  } else hit = (hit + by + hits.length) % hits.length;
  markHits();
  tellHits();
}

// A search without hits leaves all documents to pick from.
function search() {
  const all = contents.documents.map((_, place) => place);
  const having = all.filter((place) => found(place).length);
  matching = ordered(having.length ? having : all);
  fillPicker();
  goTo(matching.includes(state.document) ? state.document : matching[0]);
}

function drawAgreement() {
  const { names: [one, other], labels, difference, absolute_difference, squared_correlation, r_squared } = contents.agreement;
  const amount = (value) => `${signed(inUnit(value), 3)} ${unit()}`;
  const figures = [["squared correlation\u00a0", squared_correlation], ["R²\u00a0", r_squared]].filter(([, value]) => value !== null)
    .map(([name, value]) => name + signed(value, 3)).join(", ");
  const predicts = r_squared === null ? "" : ` (of ${other} as a prediction of ${one})`;
  const { highest, lowest, ranked } = contents.measures.at(-1);
  byId("agreement").replaceChildren(
    make("p", {}, `${one} against ${other}, on ${counted(labels)} tokens that both label: ${one} is ` +
      `${amount(Math.abs(difference))} ${difference < 0 ? "lower" : "higher"} on average, and the two are ` +
      `${amount(absolute_difference)} apart (mean absolute difference)${figures && `; ${figures}${predicts}`}.`),
    make("div", { class: "tables" }, tokenTable(`${one} is higher`, highest, ranked), tokenTable(`${other} is higher`, lowest, ranked)),
  );
}

// Flags in a sentence are not broken at the end of a line.
const withFlags = (text) => text.split(/((?<![\w-])--[a-z][a-z-]*(?: [A-Z]+\b)?)/)
  .map((part, place) => (place % 2 ? make("code", {}, part) : part));

// Offer all measures except the shaded one to be shown next to it.
function fillBeside() {
  if (state.beside === state.shade) state.beside = null;
  const others = contents.measures.map(({ name }, place) => [place, name]).filter(([place]) => place !== state.shade);
  byId("beside").replaceChildren(make("option", { value: "" }, "nothing"), ...others.map(([value, name]) => make("option", { value }, name)));
  byId("beside").value = state.beside ?? "";
}

function choose(changes) {
  Object.assign(state, changes);
  fillBeside();
  for (const name of ["nats", "bits"]) byId(name).setAttribute("aria-pressed", name === unit());
  drawLegend();
  drawFigures();
  if (contents.agreement) drawAgreement();
}

function begin() {
  document.title = byId("title").textContent = contents.title;
  byId("told").replaceChildren(...contents.told.map((text) => make("p", {}, ...withFlags(text))));
  byId("model").textContent = `Labels by ${contents.model}.`;
  byId("about").open = matchMedia("(min-width: 44rem) and (min-height: 70rem)").matches;
  byId("shade").append(...contents.measures.map(({ name }, value) => make("option", { value }, name)));
  byId("order").append(...orders.map(([name], value) => make("option", { value }, name)));
  byId("besides").hidden = contents.measures.length < 2;
  byId("grouped").hidden = !contents.groups;
  byId("agreed").hidden = !contents.agreement;
  byId("shade").addEventListener("change", ({ target }) => (choose({ shade: Number(target.value) }), showDocument()));
  byId("beside").addEventListener("change", ({ target }) =>
    (choose({ beside: target.value === "" ? null : Number(target.value) }), showDocument()));
  for (const name of ["nats", "bits"])
    byId(name).addEventListener("click", () => (choose({ bits: name === "bits" }), showDocument()));
  byId("picker").addEventListener("change", ({ target }) => goTo(Number(target.value)));
  byId("previous").addEventListener("click", () => goTo(matching[matching.indexOf(state.document) - 1]));
  byId("next").addEventListener("click", () => goTo(matching[matching.indexOf(state.document) + 1]));
  byId("order").addEventListener("change", search);
  byId("search").addEventListener("input", search);
  byId("search").addEventListener("keydown", ({ key, shiftKey }) => key === "Enter" && hits.length && step(shiftKey ? -1 : 1));
  byId("previous-hit").addEventListener("click", () => step(-1));
  byId("next-hit").addEventListener("click", () => step(1));
  choose({ beside: contents.beside });
  search();
  followWidth();
}

begin();
