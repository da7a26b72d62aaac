"use strict";
// Draws each chart of the page from its JSON, and redraws it when its width, its scales or the curves that are shown change.
const SVG = "http://www.w3.org/2000/svg";
const hidden = new Set();  // numbers of the curves that are switched off, on the whole page
const charts = [...document.querySelectorAll(".chart")].map(chartOf);

function make(name, attributes, parent, text) {
  const element = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

function format(value) {
  const size = Math.abs(value);
  const text = size && (size < 1e-4 || size >= 1e7) ? value.toExponential(2) : Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });
  return text.replace("-", "\u2212");
}

function ticksOf(low, high, log, most) {
  if (log) {
    const found = [];
    for (const factors of [[1], [1, 2, 5]]) {
      found.length = 0;
      for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) {
        for (const factor of factors) if (factor * 10 ** e >= low && factor * 10 ** e <= high) found.push(factor * 10 ** e);
      }
      if (found.length >= 3) break;
    }
    const every = Math.ceil(found.length / most);
    if (found.length >= 2) return found.filter((_, i) => i % every === 0);
  }
  const raw = (high - low) / most, ten = 10 ** Math.floor(Math.log10(raw));
  const step = ten * ([1, 2, 5].find(factor => factor * ten >= raw) || 10);
  const first = Math.ceil(low / step), count = Math.floor(high / step) - first + 1;
  return Array.from({ length: Math.max(0, count) }, (_, i) => (first + i) * step);
}

// Maps values to pixels; the margin leaves room at the ends.
function scaleOf(values, log, from, to, margin) {
  const warp = log ? Math.log10 : value => value;
  let low = warp(Math.min(...values)), high = warp(Math.max(...values));
  const room = (high - low) * margin || Math.abs(high) * .05 * (margin > 0) || .5;
  low -= margin || low === high ? room : 0;
  high += margin || low === high ? room : 0;
  const back = log ? value => 10 ** value : value => value;
  const at = value => from + (warp(value) - low) / (high - low) * (to - from);
  return { at, low: back(low), high: back(high) };
}

function chartOf(figure) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const chart = { data, plot: figure.querySelector(".plot"), log: { x: false, y: data.log }, cursor: null };
  for (const axis of ["x", "y"]) {
    const positive = data.curves.every(curve => curve[axis].some(value => value > 0) && (axis === "y" || curve.x.every(x => x >= 0)));
    const button = make("button", { type: "button", class: "switch", "aria-pressed": chart.log[axis] }, figure.querySelector("figcaption"), "log " + axis);
    button.disabled = !positive;
    button.addEventListener("click", () => {
      chart.log[axis] = !chart.log[axis];
      button.setAttribute("aria-pressed", chart.log[axis]);
      draw(chart);
    });
  }
  Object.entries({
    tabindex: 0, role: "slider", "aria-label": data.title + " by " + data.x + ", " + data.curves.length + " curves; arrow keys read values", "aria-valuemin": 0,
  }).forEach(([key, value]) => chart.plot.setAttribute(key, value));
  chart.plot.addEventListener("pointermove", event => point(chart, event));
  chart.plot.addEventListener("pointerdown", event => point(chart, event));
  chart.plot.addEventListener("pointerleave", event => event.pointerType === "mouse" && move(chart, null));
  chart.plot.addEventListener("blur", () => move(chart, null));
  chart.plot.addEventListener("keydown", event => {
    const last = chart.xs.length - 1, now = chart.cursor ?? -1;
    const to = { ArrowRight: now + 1, ArrowUp: now + 1, ArrowLeft: chart.cursor === null ? last : now - 1, ArrowDown: chart.cursor === null ? last : now - 1, Home: 0, End: last, PageUp: now + 10, PageDown: now - 10 }[event.key];
    if (event.key === "Escape") move(chart, null);
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    move(chart, Math.max(0, Math.min(last, to)));
  });
  return chart;
}

function usable(chart, curve, i) {
  return (!chart.log.x || curve.x[i] > 0) && (!chart.log.y || curve.y[i] > 0);
}

function draw(chart) {
  const { plot, data, log } = chart, width = plot.clientWidth, height = Math.round(Math.max(210, Math.min(300, width * .6)));
  const curves = data.curves.filter(curve => !hidden.has(curve.number));
  plot.replaceChildren();
  const svg = make("svg:svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": true }, plot);
  const points = curves.map(curve => ({ curve, shown: [...curve.x.keys()].filter(i => usable(chart, curve, i)) })).filter(one => one.shown.length);
  [chart.points, chart.marks] = [points, null];
  chart.xs = [...new Set(points.flatMap(({ curve, shown }) => shown.map(i => curve.x[i])))].sort((a, b) => a - b);
  plot.setAttribute("aria-valuemax", Math.max(0, chart.xs.length - 1));
  chart.tip = make("div", { class: "tip", hidden: "" }, plot);
  if (!points.length) {
    make("svg:text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, svg, "no curve to show");
    return move(chart, null);
  }
  const ys = points.flatMap(({ curve, shown }) => shown.flatMap(i => [curve.y[i], ...(curve.l ? [curve.l[i], curve.h[i]] : [])])).filter(y => !log.y || y > 0);
  const rough = scaleOf(ys, log.y, height - 44, 8, .05);
  const yTicks = ticksOf(rough.low, rough.high, log.y, 5);
  const left = 14 + 7 * Math.max(...yTicks.map(tick => format(tick).length), 1);
  const x = chart.x = scaleOf(chart.xs, log.x, left, width - 12, 0), y = chart.y = rough;
  for (const tick of yTicks) {
    make("svg:line", { class: "grid", x1: left, x2: width - 12, y1: y.at(tick), y2: y.at(tick) }, svg);
    make("svg:text", { x: left - 6, y: y.at(tick) + 4, "text-anchor": "end" }, svg, format(tick));
  }
  for (const tick of ticksOf(x.low, x.high, log.x, Math.max(2, Math.floor(width / 90)))) {
    make("svg:line", { class: "grid", x1: x.at(tick), x2: x.at(tick), y1: 8, y2: height - 44 }, svg);
    make("svg:text", { x: x.at(tick), y: height - 27, "text-anchor": "middle" }, svg, format(tick));
  }
  make("svg:path", { class: "axis", fill: "none", d: `M${left} 8V${height - 44}H${width - 12}` }, svg);
  make("svg:text", { x: (left + width - 12) / 2, y: height - 7, "text-anchor": "middle" }, svg, data.x);
  for (const { curve, shown } of points) drawCurve(svg, chart, curve, shown);
  chart.marks = make("svg:g", {}, svg);
  move(chart, chart.cursor !== null && chart.cursor < chart.xs.length ? chart.cursor : null);
}

function drawCurve(svg, { x, y, log }, curve, shown) {
  const color = `var(--s${curve.number % 7})`, place = (i, value) => `${x.at(curve.x[i]).toFixed(1)} ${y.at(value).toFixed(1)}`;
  if (curve.l) {
    const floor = i => log.y && curve.l[i] <= 0 ? y.low : curve.l[i];
    const band = [...shown.map(i => place(i, curve.h[i])), ...[...shown].reverse().map(i => place(i, floor(i)))];
    make("svg:path", { d: "M" + band.join("L") + "Z", fill: color, opacity: .16 }, svg);
  }
  const dashes = ["none", "7 4", "2 3"][curve.number % 3];
  make("svg:path", { d: "M" + shown.map(i => place(i, curve.y[i])).join("L"), fill: "none", stroke: color, "stroke-width": 2, "stroke-dasharray": dashes, "stroke-linejoin": "round" }, svg);
  if (shown.length === 1) make("svg:circle", { cx: x.at(curve.x[shown[0]]), cy: y.at(curve.y[shown[0]]), r: 4, fill: color }, svg);
}

function nearest(values, indices, wanted) {
  let [low, high] = [0, indices.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (values[indices[middle]] <= wanted) low = middle; else high = middle;
  }
  return Math.abs(values[indices[low]] - wanted) <= Math.abs(values[indices[high]] - wanted) ? indices[low] : indices[high];
}

function point(chart, event) {
  if (!chart.xs.length) return;
  const at = event.clientX - chart.plot.getBoundingClientRect().left;
  let best = 0;
  chart.xs.forEach((value, i) => { if (Math.abs(chart.x.at(value) - at) < Math.abs(chart.x.at(chart.xs[best]) - at)) best = i; });
  move(chart, best);
}

// Puts the cursor on one of the chart's x, with the values of all curves that reach so far, the highest first.
function move(chart, cursor) {
  chart.cursor = cursor;
  if (chart.marks) chart.marks.replaceChildren();
  chart.tip.replaceChildren();
  chart.tip.hidden = cursor === null || !chart.xs.length;
  chart.plot.setAttribute("aria-valuenow", cursor ?? 0);
  if (chart.tip.hidden) return chart.plot.setAttribute("aria-valuetext", "no value chosen");
  const wanted = chart.xs[cursor], pixel = chart.x.at(wanted), title = chart.data.x.split(" (")[0] + " " + format(wanted);
  make("svg:line", { class: "cursor", x1: pixel, x2: pixel, y1: 8, y2: chart.plot.querySelector("svg").viewBox.baseVal.height - 44 }, chart.marks);
  make("div", {}, chart.tip, title);
  const read = chart.points.filter(({ curve, shown }) => wanted >= curve.x[shown[0]] && wanted <= curve.x[shown.at(-1)]);
  const values = read.map(({ curve, shown }) => [curve, nearest(curve.x, shown, wanted)]).sort(([a, i], [b, j]) => b.y[j] - a.y[i]);
  for (const [curve, i] of values) {
    make("svg:circle", { cx: chart.x.at(curve.x[i]), cy: chart.y.at(curve.y[i]), r: 4, fill: `var(--s${curve.number % 7})` }, chart.marks);
    const row = make("div", {}, chart.tip);
    keyOf(curve.number, row);
    make("span", {}, row, curve.name);
    make("b", {}, row, format(curve.y[i]) + (curve.l ? ` [${format(curve.l[i])}, ${format(curve.h[i])}]` : ""));
  }
  chart.plot.setAttribute("aria-valuetext", [title, ...values.map(([curve, i]) => curve.name + " " + format(curve.y[i]))].join("; "));
  // Beside the cursor where there is room, and above or below the points.
  const { clientWidth: width, clientHeight: height } = chart.plot, high = values.filter(([curve, i]) => chart.y.at(curve.y[i]) < height / 2).length;
  const left = pixel > width / 2 ? pixel - chart.tip.offsetWidth - 12 : pixel + 12;
  chart.tip.style.left = Math.max(0, Math.min(left, width - chart.tip.offsetWidth)) + "px";
  chart.tip.style.top = (2 * high > values.length ? height - 50 - chart.tip.offsetHeight : 0) + "px";
}

function keyOf(number, parent) {
  return make("span", { class: "key dash" + number % 3, style: `border-color: var(--s${number % 7})` }, parent);
}

function toggle(number) {
  if (!hidden.delete(number)) hidden.add(number);
  for (const button of document.querySelectorAll(".legend button")) button.setAttribute("aria-pressed", !hidden.has(Number(button.dataset.number)));
  charts.forEach(draw);
}

for (const legend of document.querySelectorAll(".legend")) {
  const names = new Map();
  for (const chart of charts) if (legend.parentNode.contains(chart.plot)) for (const { number, name } of chart.data.curves) names.set(number, name);
  for (const [number, name] of [...names].sort(([a], [b]) => a - b)) {
    const button = make("button", { type: "button", "data-number": number, "aria-pressed": true }, legend);
    keyOf(number, button);
    button.append(name);
    button.addEventListener("click", () => toggle(number));
  }
}
const resized = new ResizeObserver(entries => entries.forEach(({ target }) => {
  const chart = charts.find(({ plot }) => plot === target);
  if (chart.width !== target.clientWidth) { chart.width = target.clientWidth; draw(chart); }
}));
charts.forEach(chart => { draw(chart); chart.width = chart.plot.clientWidth; resized.observe(chart.plot); });
