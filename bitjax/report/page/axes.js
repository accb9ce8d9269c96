// Scales, ticks, frames and legends, which all charts share.

function ticks(low, high, count = 5) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step) found.push(t);
  return found;
}
function logTicks(low, high) {
  const found = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++)
    found.push(...[1, 2, 5].map(m => m * 10 ** p).filter(t => t >= low && t <= high));
  const few = found.filter(t => /^1/.test(t.toExponential()));
  return found.length > 9 && few.length > 2 ? few : found;
}
const brief = x => x === 0 ? "0" : Math.abs(x) >= 1e5 || Math.abs(x) < 1e-3
  ? x.toExponential(0) : String(Number(x.toPrecision(4)));
function frame({ x, y, xTitle, yTitle, width = 640, height = 380, log = false, left = 56 }) {
  const box = { l: left, r: width - 14, t: 12, b: height - 42 };
  const f = log ? Math.log : v => v;
  const span = (v, [low, high]) => high > low ? (v - low) / (high - low) : 0.5;
  const px = v => box.l + span(f(v), [f(x[0]), f(x[1])]) * (box.r - box.l);
  const py = v => box.b - span(v, y) * (box.b - box.t);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  for (const t of log ? logTicks(...x) : ticks(...x)) svg.append(
    draw("line", { class: "grid", x1: px(t), x2: px(t), y1: box.t, y2: box.b }),
    draw("text", { x: px(t), y: box.b + 15, "text-anchor": "middle" }, brief(t)));
  for (const t of ticks(...y)) svg.append(
    draw("line", { class: "grid", x1: box.l, x2: box.r, y1: py(t), y2: py(t) }),
    draw("text", { x: box.l - 6, y: py(t) + 4, "text-anchor": "end" }, brief(t)));
  svg.append(
    draw("path", { class: "axis", d: `M${box.l},${box.t}V${box.b}H${box.r}` }),
    draw("text", { x: (box.l + box.r) / 2, y: height - 6, "text-anchor": "middle" }, xTitle),
    draw("text", { x: 12, y: (box.t + box.b) / 2, "text-anchor": "middle",
      transform: `rotate(-90 12 ${(box.t + box.b) / 2})` }, yTitle));
  return { svg, px, py, box };
}
function figure(title, svg, note = "", legend = null, id = null) {
  return make("figure", { id }, make("figcaption", {}, title),
    make("p", { class: "soft" }, note), svg, ...(legend ? [legend] : []));
}
function legend(entries) {
  return make("div", { class: "legend" }, ...entries.map(([mark, name]) =>
    make("span", {}, make("span", { class: `swatch ${mark}` }), name)));
}
const padded = (low, high, share = 0.05) => {
  const pad = (high - low || Math.abs(high) || 1) * share;
  return [low - pad, high + pad];
};
function line(f, xs, ys) {
  let text = "", open = false;
  xs.forEach((x, i) => {
    const fine = ys[i] !== null && ys[i] !== undefined;
    if (fine) text += `${open ? "L" : "M"}${f.px(x).toFixed(1)},${f.py(ys[i]).toFixed(1)}`;
    open = fine;
  });
  return text;
}
