// The data, what is chosen of it, and how elements are made. The files of this folder are joined
// into one script, as html.py lists them. Text goes in as text only (textContent), never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const at = Object.fromEntries(data.figures.map((f, i) => [f.key, i]));
const NARROW = 640; // pixels of width below which a phone is thought of
const state = { filter: "", cost: data.cost, figure: "", group: 0, all: false, map: "bits",
  chosen: data.groups.map(() => null), more: {}, open: {}, columns: null,
  rows: { key: "front", down: true }, runs: { key: "label", down: false } };
data.runs.forEach((run, i) => { run.index = i; });
const methods = [...new Set(data.runs.map(r => r.method))].sort();
const rowOf = run => data.groups[run.group].rows[run.row];
const groupOf = run => data.groups[run.group];
const short = (group, label) => label.slice(group.shared.length) || label;
const cut = (text, most) => text.length > most ? text.slice(0, most - 1) + "\u2026" : text;
let wide = 1000; // pixels that the page has; measured once for each size of the window
// What tells names apart stands at their ends more often than in their middle.
const labelOf = (text, most) => text.length <= most || text.includes(" [") ? cut(text, most)
  : text.slice(0, most * 0.4) + "\u2026" + text.slice(1 - most * 0.6);
const width = () => wide;
const narrow = () => width() < NARROW;

function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}
function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}
function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

// One box shows what lies under the pointer or has the focus: any element with `data-tip`.
const tip = make("div", { id: "tip", role: "status", hidden: "" });
function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const beside = (at, size, room) => Math.max(4, at + 12 + size < room - 4 ? at + 12 : at - 12 - size);
  tip.style.left = beside(x, tip.offsetWidth, innerWidth) + "px";
  tip.style.top = beside(y, tip.offsetHeight, innerHeight) + "px";
}
const hideTip = () => { tip.hidden = true; };
const tipped = event => event.target.closest?.("[data-tip]");
for (const name of ["mouseover", "focusin", "click"]) document.addEventListener(name, event => {
  const found = tipped(event), box = found?.getBoundingClientRect();
  if (found) showTip(found.dataset.tip, box.right - 12, box.bottom - 8);
  else if (name === "click" && !event.target.closest?.(".plot")) hideTip();
});
for (const name of ["mouseout", "focusout"]) document.addEventListener(name, event => {
  if (tipped(event)) hideTip();
});
document.addEventListener("keydown", event => { if (event.key === "Escape") hideTip(); });

// Numbers as they are shown.
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });
const brief = x => x === 0 ? "0" : Math.abs(x) >= 1e5 ? compact.format(x) : Math.abs(x) < 1e-3
  ? x.toExponential(1) : String(Number(x.toPrecision(4)));
function shown(value, figure, std = null) {
  if (value === null || value === undefined) return "";
  const text = (value / figure.scale).toFixed(figure.digits);
  const spread = std === null ? "0" : (std / figure.scale).toFixed(figure.digits);
  return Number(spread) ? `${text} ± ${spread}` : text;
}
function toFloat(difference, score) {
  if (!difference) return ["", ""];
  const p = x => (x / score.scale).toFixed(score.digits);
  const ends = difference.low === null ? "" : `[${p(difference.low)}, ${p(difference.high)}] `;
  const sign = difference.mean > 0 ? "+" : "";
  return [sign + p(difference.mean), `${ends}(${difference.seeds.length})`];
}
function costOf(figures, key) {
  const value = figures[at[key]] ?? null;
  return value === null || data.figures[at[key]].cost ? value : 1 / value;
}

// What the filter lets through.
const words = () => state.filter.toLowerCase().split(/\s+/).filter(Boolean);
const textOf = run => run.text ??= [rowOf(run).label, run.method, run.config, run.commit,
  run.folder, "seed" + run.seed, groupOf(run).title].join(" ").toLowerCase();
function visible() {
  const wanted = words();
  return data.runs.filter(run => wanted.every(word => textOf(run).includes(word)));
}
// The rows of a group with those of their runs that the filter lets through.
function rowsOf(group, runs) {
  const own = new Map();
  for (const run of runs) own.set(run.row, [...(own.get(run.row) ?? []), run]);
  return [...own.keys()].sort((a, b) => a - b).map(i => [group.rows[i], own.get(i)]);
}

// A method has a colour and a shape of its own; a float run is a line where others are points.
const SHAPES = {
  circle: r => `M${-r},0a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0`,
  square: r => polygon([[-.88, -.88], [.88, -.88], [.88, .88], [-.88, .88]], r),
  up: r => polygon([[0, -1.15], [1.1, .8], [-1.1, .8]], r),
  diamond: r => polygon([[0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]], r),
  down: r => polygon([[0, 1.15], [1.1, -.8], [-1.1, -.8]], r),
  plus: r => polygon([[-.4, -1.15], [.4, -1.15], [.4, -.4], [1.15, -.4], [1.15, .4], [.4, .4],
    [.4, 1.15], [-.4, 1.15], [-.4, .4], [-1.15, .4], [-1.15, -.4], [-.4, -.4]], r),
  star: r => polygon([...Array(10).keys()].map(i => [Math.sin(i * Math.PI / 5) * (i % 2 ? .6 : 1.35),
    -Math.cos(i * Math.PI / 5) * (i % 2 ? .6 : 1.35)]), r),
  right: r => polygon([[1.15, 0], [-.8, 1.1], [-.8, -1.1]], r),
  cross: r => polygon([[0, -.5], [.65, -1.15], [1.15, -.65], [.5, 0], [1.15, .65], [.65, 1.15],
    [0, .5], [-.65, 1.15], [-1.15, .65], [-.5, 0], [-1.15, -.65], [-.65, -1.15]], r),
  left: r => polygon([[-1.15, 0], [.8, 1.1], [.8, -1.1]], r),
};
function polygon(points, r) {
  return "M" + points.map(([x, y]) => `${(x * r).toFixed(1)},${(y * r).toFixed(1)}`).join("L") + "Z";
}
const number = method => methods.indexOf(method);
const colour = method => "s" + (number(method) + Math.floor(number(method) / 10)) % 10;
const shape = (method, r) => Object.values(SHAPES)[number(method) % 10](r);
const mark = method => method === data.float
  ? draw("svg", { class: "mark", viewBox: "-8 -8 16 16", "aria-hidden": "true" },
    draw("path", { class: "reference", d: "M-8,0H8" }))
  : draw("svg", { class: `mark ${colour(method)}`, viewBox: "-8 -8 16 16", "aria-hidden": "true" },
    draw("path", { class: "fill", d: shape(method, 5) }));
