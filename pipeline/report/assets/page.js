// The page: what is chosen, the legend, the figures.

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
  const signs = [make("b", { class: "p0" }, "zero"), make("b", { class: "t none" }, "no label")];
  if (low < 0) signs.unshift(make("b", { class: "n8" }, "below zero"));
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
  byId("histogram").replaceChildren(drawHistogram(measures));
  byId("positions-told").textContent = `Mean in ${unit()} by the place of the token, the first places one by one.`;
  byId("positions").replaceChildren(drawPositions(measures));
  const [{ name, highest, lowest }] = measures;
  byId("tokens-told").textContent = `By the mean of ${name}, of tokens with at least ${contents.least} labels.`;
  byId("tokens").replaceChildren(tokenTable("Highest", highest), tokenTable("Lowest", lowest));
  if (contents.groups) drawGroups();
}

const rowOf = (kind, values) => make("tr", {}, ...values.map((value) => make(kind, {}, value)));

function tokenTable(caption, tokens) {
  const rows = tokens.map(([text, count, mean]) => {
    const shown = tokenElement(text.replaceAll(" ", "␣"), mean, mostShown());
    return rowOf("td", [shown, counted(count), signed(inUnit(mean), 2)]);
  });
  const none = rows.length ? [] : [rowOf("td", ["No token has so many.", "", ""])];
  return make("table", {}, make("caption", {}, caption), rowOf("th", ["token", "times", unit()]), ...rows, ...none);
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
let matching = contents.documents.map((_, place) => place);

function fillPicker() {
  const options = matching.map((place) => {
    const shown = contents.documents[place];
    const beginning = textOf({ tokens: shown.tokens.slice(0, 100) }).trim().replace(/\s+/g, " ").slice(0, 60);
    return make("option", { value: place }, `${place + 1} of ${contents.documents.length} · ${visible(beginning) || "(empty)"}`);
  });
  byId("picker").replaceChildren(...(options.length ? options : [make("option", {}, "No document has that.")]));
}

function goTo(place) {
  state.document = place;
  byId("picker").value = place;
  const at = matching.indexOf(place);
  byId("previous").disabled = at <= 0;
  byId("next").disabled = at < 0 || at + 1 >= matching.length;
  showDocument();
}

function search() {
  const wanted = byId("search").value.toLowerCase();
  const all = contents.documents.map((_, place) => place);
  matching = wanted ? all.filter((place) => textOf(contents.documents[place]).toLowerCase().includes(wanted)) : all;
  fillPicker();
  if (matching.length) goTo(matching.includes(state.document) ? state.document : matching[0]);
  else byId("previous").disabled = byId("next").disabled = true;
}

function choose(changes) {
  Object.assign(state, changes);
  for (const name of ["nats", "bits"]) byId(name).setAttribute("aria-pressed", name === unit());
  drawLegend();
  drawFigures();
}

function begin() {
  document.title = byId("title").textContent = contents.title;
  byId("told").replaceChildren(...contents.told.map((text) => make("p", {}, text)));
  const options = () => contents.measures.map(({ name }, place) => make("option", { value: place }, name));
  byId("shade").append(...options());
  byId("beside").append(make("option", { value: "" }, "nothing"), ...options());
  byId("besides").hidden = contents.measures.length < 2;
  byId("grouped").hidden = !contents.groups;
  byId("shade").addEventListener("change", ({ target }) => (choose({ shade: Number(target.value) }), showDocument()));
  byId("beside").addEventListener("change", ({ target }) =>
    (choose({ beside: target.value === "" ? null : Number(target.value) }), showDocument()));
  byId("nats").addEventListener("click", () => choose({ bits: false }));
  byId("bits").addEventListener("click", () => choose({ bits: true }));
  byId("picker").addEventListener("change", ({ target }) => goTo(Number(target.value)));
  byId("previous").addEventListener("click", () => goTo(matching[matching.indexOf(state.document) - 1]));
  byId("next").addEventListener("click", () => goTo(matching[matching.indexOf(state.document) + 1]));
  byId("search").addEventListener("input", search);
  byId("beside").value = contents.beside ?? "";
  choose({ beside: contents.beside });
  fillPicker();
  goTo(0);
}

begin();
