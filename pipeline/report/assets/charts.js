// Charts as SVG: histograms of labels, and means by position. The second measure is drawn as a blue line.
// A chart is drawn for the width of its element, so that its text keeps its size.

const CHART = { height: 230, left: 44, right: 8, top: 12, bottom: 40 };
const chartWidth = () => Math.max(200, byId("histogram").clientWidth);

function draw(name, attributes, ...children) {
  const drawn = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) drawn.setAttribute(key, value);
  drawn.append(...children);
  return drawn;
}

// About `wanted` round numbers between two numbers.
function ticks(low, high, wanted) {
  const rough = Math.max(high - low, 1e-9) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((times) => times * power >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(high / step + 1e-9) - first + 1) }, (_, place) => (first + place) * step);
}

const plain = (number) => String(Number(number.toFixed(6))).replace("-", "−");

// An SVG with labelled axes, and two functions that map values to coordinates.
function chart(label, [xLow, xHigh], xTicks, yHigh, yLow, told, xTold) {
  const [width, { height, left, right, top, bottom }] = [chartWidth(), CHART];
  const x = (value) => left + ((value - xLow) / (xHigh - xLow)) * (width - left - right);
  const y = (value) => height - bottom - ((value - yLow) / (yHigh - yLow)) * (height - top - bottom);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const tick of ticks(yLow, yHigh, 4)) {
    svg.append(draw("line", { class: "rule", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }));
    svg.append(draw("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, told(tick)));
  }
  for (const [value, text] of xTicks)
    svg.append(draw("text", { x: x(value), y: height - bottom + 18, "text-anchor": "middle" }, text));
  svg.append(draw("text", { x: width - right, y: height - 4, "text-anchor": "end" }, xTold));
  return { svg, x, y };
}

function drawHistogram(measures) {
  const bins = measures.map(({ histogram: { start, width, counts }, labelled }) =>
    counts.map((count, place) => ({ from: inUnit(start + place * width), to: inUnit(start + (place + 1) * width), count,
      share: count / labelled })));
  const all = bins.flat();
  if (!all.length) return make("p", {}, "There are no labels.");
  const ends = [Math.min(0, ...all.map((bin) => bin.from)), Math.max(...all.map((bin) => bin.to))];
  const xTicks = ticks(...ends, chartWidth() / 85).map((tick) => [tick, plain(tick)]);
  const percent = (share) => `${plain(share * 100)}%`;
  const { svg, x, y } = chart("Histogram", ends, xTicks, Math.max(...all.map((bin) => bin.share)), 0, percent, unit());
  for (const { from, to, count, share } of bins[0]) {
    const title = `${signed(from, 2)} to ${signed(to, 2)} ${unit()}: ${(share * 100).toFixed(2)}%, ${counted(count)} labels`;
    const box = { class: "bar", x: x(from), width: Math.max(0.5, x(to) - x(from) - 1), y: y(share), height: y(0) - y(share) };
    svg.append(draw("rect", box, draw("title", {}, title)));
  }
  if (bins[1]?.length) {
    const steps = bins[1].map(({ from, to, share }) => `L${x(from)} ${y(share)}L${x(to)} ${y(share)}`).join("");
    svg.append(draw("path", { class: "line beside", d: `M${x(bins[1][0].from)} ${y(0)}${steps}L${x(bins[1].at(-1).to)} ${y(0)}` }));
  }
  return svg;
}

// A mean of few labels says little: places are joined with the next ones until they have enough labels together.
function pointsOf({ positions: { first, counts, means } }) {
  const points = [];
  const join = (into, { count, sum }) => Object.assign(into, { count: into.count + count, sum: into.sum + sum });
  first.forEach((place, bin) => {
    const given = { at: place + 1, count: counts[bin], sum: counts[bin] * means[bin] };
    if (points.length && points.at(-1).count < contents.least) join(points.at(-1), given);
    else points.push(given);
  });
  if (points.length > 1 && points.at(-1).count < contents.least) join(points.at(-2), points.pop());
  return points.map(({ at, count, sum }, index) => ({ at, to: points[index + 1]?.at - 1, count, mean: inUnit(sum / count) }));
}

// Powers of ten on a logarithmic axis. If there are fewer than three, also twice and five times a power of ten.
function powersOfTen([low, high]) {
  const given = (factors) => Array.from({ length: Math.floor(high) + 1 }, (_, power) => factors.map((factor) => factor * 10 ** power))
    .flat().filter((value) => Math.log10(value) >= low - 1e-9 && Math.log10(value) <= high);
  const powers = given([1]);
  return (powers.length > 2 ? powers : given([1, 2, 5])).map((value) => [Math.log10(value), counted(value)]);
}

function drawPositions(measures) {
  const lines = measures.map(pointsOf);
  const all = lines.flat();
  if (!all.length) return make("p", {}, "There are no labels.");
  const places = all.map(({ at }) => Math.log10(at));
  const begin = Math.min(...places);
  const ends = [begin, Math.max(begin + 0.5, ...places)];
  const means = all.map(({ mean }) => mean);
  const [low, high] = [Math.min(0, ...means), Math.max(...means, 0.01)];
  const { svg, x, y } = chart("Mean by position", ends, powersOfTen(ends), high, low, plain, "place of the token in its document");
  lines.forEach((points, place) => {
    const beside = place ? " beside" : "";
    const path = points.map(({ at, mean }) => `${x(Math.log10(at))} ${y(mean)}`).join("L");
    svg.append(draw("path", { class: `line${beside}`, d: `M${path}` }));
    for (const { at, to, mean, count } of points) {
      const from = to === at ? "token" : to ? "tokens" : "from token";
      const title = `${from} ${counted(at)}${to > at ? ` to ${counted(to)}` : ""}: ${signed(mean, 2)} ${unit()}, ${counted(count)} labels`;
      svg.append(draw("circle", { class: `dot${beside}`, cx: x(Math.log10(at)), cy: y(mean), r: 3 }, draw("title", {}, title)));
    }
  });
  return svg;
}

const COURSE_POINTS = 60;

// Chart of the means over equal stretches of a document's shown tokens.
function drawCourse(shown, measures) {
  const stretch = Math.max(1, Math.ceil(shown.tokens.length / COURSE_POINTS));
  const lines = measures.map((measure) => {
    const points = [];
    for (let start = 0; start < shown.tokens.length; start += stretch) {
      const places = Array.from({ length: Math.min(stretch, shown.tokens.length - start) }, (_, at) => start + at);
      const given = places.map((place) => nats(shown, measure, place)).filter((value) => value !== null);
      if (given.length) points.push({ at: start + 1, mean: inUnit(given.reduce((sum, one) => sum + one, 0) / given.length) });
    }
    return points;
  });
  const all = lines.flat();
  if (!all.length) return make("p", {}, "There are no labels.");
  const ends = [1, Math.max(2, shown.tokens.length)];
  const means = all.map(({ mean }) => mean);
  const xTicks = ticks(...ends, chartWidth() / 85).map((tick) => [tick, counted(tick)]);
  const { svg, x, y } = chart("Mean along this document", ends, xTicks, Math.max(...means, 0.01), Math.min(0, ...means), plain,
    stretch > 1 ? `token of this document, means of ${counted(stretch)}` : "token of this document");
  lines.forEach((points, place) => {
    const path = points.map(({ at, mean }) => `${x(at)} ${y(mean)}`).join("L");
    svg.append(draw("path", { class: `line${place ? " beside" : ""}`, d: `M${path}` }));
  });
  return svg;
}
