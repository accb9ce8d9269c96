// Scales, ticks, frames and legends, which all charts share. A chart is as wide in its own units as
// it is in pixels, so that its text has the size that the style gives it.

function ticks(low, high, count = 5) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step) found.push(t);
  return found;
}
function logTicks(low, high, most) {
  const found = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++)
    found.push(...[1, 2, 5].map(m => m * 10 ** p).filter(t => t >= low && t <= high));
  const few = found.filter(t => /^1/.test(t.toExponential()));
  return found.length > most && few.length > 2 ? few : found;
}
function frame({ x, y, xTitle, yTitle = "", wide = 560, height = 320, log = false, left = 52,
  rising = Boolean(yTitle) }) {
  const box = { l: left, r: wide - 16, t: yTitle ? 26 : 10, b: height - 44 };
  const f = log ? Math.log : v => v;
  const span = (v, [low, high]) => high > low ? (v - low) / (high - low) : 0.5;
  const px = v => box.l + span(f(v), [f(x[0]), f(x[1])]) * (box.r - box.l);
  const py = v => box.b - span(v, y) * (box.b - box.t);
  const svg = draw("svg", { viewBox: `0 0 ${wide} ${height}`, width: wide, height, role: "img" });
  const most = Math.max(3, Math.floor((box.r - box.l) / 60));
  for (const t of log ? logTicks(...x, most) : ticks(...x, Math.min(8, most))) svg.append(
    draw("line", { class: "grid", x1: px(t), x2: px(t), y1: box.t, y2: box.b }),
    draw("text", { x: px(t), y: box.b + 17, "text-anchor": "middle" }, brief(t)));
  if (rising) for (const t of ticks(...y, Math.max(4, Math.min(8, (box.b - box.t) / 50)))) svg.append(
    draw("line", { class: "grid", x1: box.l, x2: box.r, y1: py(t), y2: py(t) }),
    draw("text", { x: box.l - 7, y: py(t) + 4, "text-anchor": "end" }, brief(t)));
  svg.append(
    draw("path", { class: "axis", d: `M${box.l},${box.t}V${box.b}H${box.r}` }),
    draw("text", { class: "title", x: (box.l + box.r) / 2, y: height - 8, "text-anchor": "middle" },
      xTitle),
    draw("text", { class: "title", x: 4, y: 14 }, yTitle));
  return { svg, px, py, box };
}
function figure(title, svg, note = "", legend = null, id = null) {
  return make("figure", { id }, make("figcaption", {}, title),
    ...(note ? [make("p", { class: "soft" }, note)] : []), svg, ...(legend ? [legend] : []));
}
function legend(entries) {
  return make("div", { class: "legend" }, ...entries.map(([mark, name]) =>
    make("span", {}, mark, name)));
}
const swatch = name => make("span", { class: `swatch ${name}` });
const padded = (low, high, share = 0.06) => {
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
const pen = document.createElement("canvas").getContext("2d");
function textWidth(text) {
  pen.font = "12px system-ui, sans-serif";
  return pen.measureText(text).width;
}
