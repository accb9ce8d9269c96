// The data, what is chosen of it, and how elements are made. The files of this folder are joined
// into one script, as html.py lists them. Text goes in as text only (textContent), never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const at = Object.fromEntries(data.figures.map((f, i) => [f.key, i]));
const state = { filter: "", cost: data.cost, run: null, all: false,
  rows: { key: data.cost, down: true },
  runs: { key: data.groups[0].score.key, down: data.groups[0].score.higher } };
const methods = [...new Set(data.runs.map(r => r.method))].sort();
const colour = method => "s" + methods.indexOf(method) % 10;
const rowOf = run => data.groups[run.group].rows[run.row];
const scoreOf = run => data.groups[run.group].score;

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
const tip = make("div", { id: "tip", hidden: "" });
function tipped(element, text) {
  const show = event => {
    tip.textContent = text;
    tip.hidden = false;
    const box = element.getBoundingClientRect();
    const x = event.clientX ?? box.right, y = event.clientY ?? box.top;
    tip.style.left = Math.min(x + 12, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = Math.max(4, Math.min(y + 12, innerHeight - tip.offsetHeight - 8)) + "px";
  };
  for (const name of ["mousemove", "focus"]) element.addEventListener(name, show);
  for (const name of ["mouseleave", "blur"])
    element.addEventListener(name, () => { tip.hidden = true; });
  element.setAttribute("aria-label", text);
  return element;
}


// Numbers as they are shown.
function shown(value, figure, std = null) {
  if (value === null) return "";
  const text = (value / figure.scale).toFixed(figure.digits);
  const spread = std === null ? "0" : (std / figure.scale).toFixed(figure.digits);
  return Number(spread) ? `${text} ± ${spread}` : text;
}
function toFloat(difference, score) {
  if (!difference) return "";
  const p = x => (x / score.scale).toFixed(score.digits);
  const ends = difference.low === null ? "" : ` [${p(difference.low)}, ${p(difference.high)}]`;
  const sign = difference.mean > 0 ? "+" : "";
  return `${sign}${p(difference.mean)}${ends} (${difference.seeds.length})`;
}
function costOf(figures, key) {
  const value = figures[at[key]] ?? null;
  return value === null || data.figures[at[key]].cost ? value : 1 / value;
}


// What the filter lets through.
const words = () => state.filter.toLowerCase().split(/\s+/).filter(Boolean);
function passes(run) {
  const row = rowOf(run);
  const text = [row.label, run.method, run.config, run.commit, run.folder, "seed" + run.seed,
    data.groups[run.group].title].join(" ").toLowerCase();
  return words().every(word => text.includes(word));
}
const visible = () => data.runs.filter(passes);
function choose(index) {
  state.run = index;
  render();
}
