"use strict";
// Documents: their tokens in the colours of the labels, and the figures of each token. Text is never inserted as markup.

const contents = JSON.parse(document.getElementById("contents").textContent);
const NATS_A_BIT = Math.log(2);
const state = { document: 0, shade: 0, beside: null, bits: false };

const byId = (id) => document.getElementById(id);
const counted = (number) => number.toLocaleString("en-US");
const signed = (number, digits) => number.toFixed(digits).replace("-", "−");
const inUnit = (nats) => (state.bits ? nats / NATS_A_BIT : nats);
const unit = () => (state.bits ? "bits" : "nats");

function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Value of a measure for a token in nats; null if the token lacks a label that the measure needs.
function nats(shown, measure, place) {
  const labels = measure.series.map((series) => shown.labels[series][place]);
  if (labels.includes(null)) return null;
  return labels.reduce((first, other) => first - other) * contents.rounding;
}

// Hits of the search in the shown document: the places of the first and the last token of each hit.
let hits = [];
let hit = 0;

const measuresShown = () =>
  [state.shade, state.beside].filter((place) => place !== null).map((place) => contents.measures[place]);

// Common scale of the measures that are shown together.
function scaleShown() {
  const [lows, highs] = [0, 1].map((end) => measuresShown().map(({ scale }) => scale[end]));
  return [Math.min(...lows), Math.max(...highs)];
}

function mostShown() {
  const [low, high] = scaleShown();
  return Math.max(high, -low);
}

function levelClass(value, most) {
  if (value === null) return "none";
  if (value === 0) return "p0";
  const size = Math.min(contents.levels, Math.max(1, Math.round((Math.abs(value) / most) * contents.levels)));
  return (value > 0 ? "p" : "n") + size;
}

// A space before a word is not shaded, or it would be a speck of colour at a line's end. Line ends are marked, and so are
// the spaces of a token that has only whitespace. Copied text does not contain the marks.
function tokenElement(text, value, most) {
  const level = levelClass(value, most);
  if (/^ \S/.test(text)) return make("span", { class: "t" }, " ", make("b", { class: level }, ...marked(text.slice(1))));
  return make("span", { class: `t ${level}${text ? "" : " part"}` }, ...marked(text));
}

// Control characters, and direction marks, which would reorder the page; like UNSAFE in pipeline/messages.py.
const STEERING = "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069]";
const escapedControl = (control) => `\\u${control.charCodeAt(0).toString(16).padStart(4, "0")}`;
const visible = (text) => text.replace(new RegExp(STEERING, "g"), escapedControl);

function marked(text) {
  const marksSpaces = text.trim() === "";
  return text.split(new RegExp(`(${marksSpaces ? "[\\n ]" : "\\n"}|${STEERING})`)).filter(Boolean).map((part) => {
    if (new RegExp(`^${STEERING}$`).test(part)) return make("i", { class: "control" }, escapedControl(part));
    if (part === "\n") return make("i", { class: "line" }, part);
    return part === " " && marksSpaces ? make("i", { class: "space" }, part) : part;
  });
}

function showDocument() {
  hideTip();
  const shown = contents.documents[state.document];
  const measures = measuresShown();
  const left = shown.size - shown.tokens.length;
  const rest = left ? [make("p", { class: "end" }, `${counted(left)} more tokens are not shown.`)] : [];
  byId("panes").replaceChildren(...measures.map((measure) => paneElement(shown, measure, measures.length > 1)), ...rest);
  scrollTogether([...document.querySelectorAll("#panes .document")]);
  byId("panes").classList.toggle("two", measures.length > 1);
  byId("note").replaceChildren(make("p", {}, described(shown)), sourceElement(shown));
  showCourse();
  markHits();
}

function showCourse() {
  const shown = contents.documents[state.document];
  byId("course").replaceChildren(...(shown.tokens.length > 1 ? [drawCourse(shown, measuresShown())] : []));
}

// On a narrow screen two texts stand one below the other, each in a frame that scrolls; both show the same lines.
function scrollTogether(texts) {
  const following = new Set();
  for (const text of texts)
    text.addEventListener("scroll", () => {
      if (following.delete(text)) return;
      for (const other of texts.filter(({ scrollTop }) => scrollTop !== text.scrollTop)) {
        following.add(other);
        other.scrollTop = text.scrollTop;
      }
    });
}

// Size and cost of a whole document, though only its first tokens may be shown.
function described(shown) {
  const cut = shown.tokens.length < shown.size ? `, the first ${counted(shown.tokens.length)} of them shown` : "";
  const costs = contents.series.map((name, series) => costOf(shown, name, series)).filter(Boolean);
  return `Row ${counted(shown.row)}, ${counted(shown.size)} tokens${cut}. ${costs.join(" ")}`;
}

function costOf(shown, name, series) {
  const [labelled, mean] = [shown.labelled[series], shown.means[series]];
  if (!labelled) return "";
  const perByte = labelled === shown.size && shown.bytes ? (mean * labelled) / NATS_A_BIT / shown.bytes : null;
  const told = perByte === null ? "" : `, ${signed(perByte, 3)} bits per byte`;
  return `${name}: mean ${signed(inUnit(mean), 3)} ${unit()}${told}.`;
}

function sourceElement(shown) {
  const rows = Object.entries(shown.source).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, linked(value))]);
  return make("dl", { class: "source" }, ...rows);
}

function linked(value) {
  const text = visible(String(value));
  return /^https?:\/\/\S+$/.test(text) ? make("a", { href: text, rel: "noopener noreferrer" }, text) : text;
}

function markHits() {
  for (const token of document.querySelectorAll("#panes .hit")) token.classList.remove("hit", "now");
  hits.forEach(([first, last], place) => {
    for (let at = first; at <= last; at += 1)
      for (const token of document.querySelectorAll(`#panes [data-place="${at}"]`)) {
        token.classList.add("hit");
        token.classList.toggle("now", place === hit);
      }
  });
  document.querySelector("#panes .now")?.scrollIntoView({ block: "center" });
}

function paneElement(shown, measure, named) {
  const most = mostShown();
  const text = make("div", { class: "document", dir: "auto" });
  text.append(...characters(shown).map((places) => {
    const made = places.map((place) => {
      const token = tokenElement(contents.texts[shown.tokens[place]], nats(shown, measure, place), most);
      token.dataset.place = place;
      token.tabIndex = place ? -1 : 0;
      return token;
    });
    return made.length > 1 ? make("span", { class: "character" }, ...made) : made[0];
  }));
  if (!shown.tokens.length) text.append(make("span", { class: "end" }, "This document is empty."));
  const tokenOf = (event) => event.target.closest?.(".t");
  text.addEventListener("pointerover", (event) => tokenOf(event) && showTip(shown, measure, tokenOf(event)));
  text.addEventListener("pointerleave", hideTip);
  text.addEventListener("focusin", (event) => tokenOf(event) && showTip(shown, measure, tokenOf(event)));
  text.addEventListener("focusout", hideTip);
  text.addEventListener("keydown", moveFocus);
  return make("div", {}, ...(named ? [make("h3", {}, measure.name)] : []), text);
}

// Places of tokens, grouped by character. If several tokens make up a character, only the last of them has a text.
function characters(shown) {
  const together = [];
  let open = false;
  shown.tokens.forEach((token, place) => {
    if (open) together.at(-1).push(place);
    else together.push([place]);
    open = contents.texts[token] === "";
  });
  return together;
}

// Only one token of a document is in the tab order. The arrow keys move the focus from there.
function moveFocus(event) {
  const tokens = event.currentTarget.querySelectorAll(".t");
  const here = event.target.closest(".t");
  const place = here ? Number(here.dataset.place) : 0;
  const next = tokens[{ ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: tokens.length - 1 }[event.key]];
  if (event.key === "Escape") hideTip();
  if (!here || !next) return;
  event.preventDefault();
  here.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function showTip(shown, measure, token) {
  hideTip();
  const place = Number(token.dataset.place);
  for (const same of document.querySelectorAll(`#panes [data-place="${place}"]`)) same.classList.add("on");
  const tip = byId("tip");
  tip.replaceChildren(
    make("div", { class: "name" }, quoted(shown, place)),
    make("div", { class: "where" }, `token ${counted(place + 1)} of ${counted(shown.size)}`),
    make("dl", {}, ...told(shown, measure, place)),
  );
  tip.hidden = false;
  token.setAttribute("aria-describedby", "tip");
  const [box, size] = [token.getClientRects()[0], tip.getBoundingClientRect()];
  const below = box.bottom + 8 + size.height < innerHeight;
  tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - size.width - 8))}px`;
  tip.style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - size.height - 8)}px`;
}

function told(shown, measure, place) {
  const all = contents.measures.filter((one) => one.series.length === 1 || one === measure);
  const rows = all.flatMap((one) => {
    const value = nats(shown, one, place);
    const figures = value === null ? ["no label"] : [`${signed(value, 2)} nats`, `${signed(value / NATS_A_BIT, 2)} bits`];
    return [make("dt", {}, one.name), ...figures.map((figure) => make("dd", value === null ? { class: "wide" } : {}, figure))];
  });
  const labels = shown.labels[measure.series[0]].slice(0, place + 1);
  const steps = labels.reduce((sum, label) => sum + (label ?? 0), 0);
  const bits = signed((steps * contents.rounding) / NATS_A_BIT, 1);
  const soFar = labels.includes(null) ? "labelled so far" : "document so far";
  return [...rows, make("dt", {}, soFar), make("dd", { class: "wide" }, `${bits} bits`)];
}

// Quoted text of a token. If several tokens make up a character, each of these tokens shows the whole character.
function quoted(shown, place) {
  const texts = shown.tokens.map((token) => contents.texts[token]);
  let last = place;
  while (texts[last] === "" && last + 1 < texts.length) last += 1;
  return (last > place ? "part of " : "") + visible(JSON.stringify(texts[last]));
}

function hideTip() {
  byId("tip").hidden = true;
  for (const token of document.querySelectorAll("#panes .on")) token.classList.remove("on");
  for (const token of document.querySelectorAll("#panes [aria-describedby]")) token.removeAttribute("aria-describedby");
}
