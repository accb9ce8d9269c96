// Puts the page together, and again after every choice.

const main = document.getElementById("main");
const option = (value, title) => make("option", { value }, title);
const search = make("input", { type: "search", id: "filter", placeholder:
  "method, setting, config, commit, seed0 ...", oninput: event => {
  state.filter = event.target.value;
  state.more = {};
  render();
} });
const costs = make("select", { id: "cost", onchange: event => {
  state.cost = event.target.value;
  render();
} }, ...data.costs.map(c => option(c.key, c.title)));
costs.value = state.cost;
const measured = make("select", { id: "figure", onchange: event => {
  state.figure = event.target.value;
  render();
} });
const every = make("input", { type: "checkbox", id: "all", onchange: event => {
  state.all = event.target.checked;
  render();
} });
const count = make("span", { class: "soft", id: "count", role: "status" });
const controls = make("details", { id: "controls", class: "controls" },
  make("summary", {}, "Filter and axes"), make("div", {}, make("label", {}, "Filter ", search),
    make("label", {}, "Chart ", measured), make("label", {}, "against ", costs),
    make("label", {}, every, " far worse settings, too")));
const phone = matchMedia(`(max-width: ${NARROW}px)`);
const unfold = () => { controls.open = !phone.matches; };
phone.addEventListener("change", unfold);
unfold();
const tabs = make("nav", { id: "groups", "aria-label": "What is compared" });
const body = make("div");

const chosenIn = group => state.chosen[data.groups.indexOf(group)];
// The run that opens first: of the middle of the front, float rows aside.
function firstOf(group, runs) {
  const rows = rowsOf(group, runs), quantized = rows.filter(([row]) => row.method !== data.float);
  const front = quantized.filter(([row]) => row.front);
  const from = [front, quantized, rows].find(list => list.length);
  return from ? from[Math.floor(from.length / 2)][1][0].index : null;
}
function choose(index) {
  state.chosen[data.runs[index].group] = index;
  render();
}
function picked(run) {
  const group = groupOf(run), row = rowOf(run), score = group.score;
  const fact = (name, value) => value
    ? [make("div", {}, make("dt", {}, name), make("dd", {}, value))] : [];
  const figure = key => at[key] === undefined ? [] : fact(data.figures[at[key]].title,
    shown(run.figures[at[key]], data.figures[at[key]]));
  return make("div", { id: "pick" }, mark(run.method),
    make("strong", {}, cut(short(group, row.label), 80), run.seed ? `, seed ${run.seed}` : ""),
    make("dl", {}, ...fact(score.title, shown(run.figures[at[score.key]], score)),
      ...fact("to float", row.label === group.baseline ? "" : toFloat(row.difference, score)[0]),
      ...["bits_weights", "bits_activations", "model_bytes", "bops"].flatMap(figure)),
    make("button", { type: "button", "data-keep": "to-detail", onclick: () => {
      const there = document.getElementById("detail");
      there.scrollIntoView();
      there.focus({ preventScroll: true });
    } }, "Details of this run"));
}
function groupTabs(runs) {
  if (data.groups.length < 2) return [];
  const brief = data.groups.map(g => g.title.replace(/\([^)]*\)/, "").replace(/, .*/, ""));
  const names = data.groups.map((g, i) =>
    cut(brief.indexOf(brief[i]) === brief.lastIndexOf(brief[i]) ? brief[i] : g.title, 80));
  return data.groups.map((group, place) => make("button", { type: "button", "data-keep": `group-${place}`,
    "aria-pressed": String(place === state.group), onclick: () => {
      state.group = place;
      render();
    } }, names[place], make("span", { class: "soft" },
    ` ${runs.filter(r => r.group === place).length}`)));
}
function groupParts(place, runs) {
  const group = data.groups[place], chosen = state.chosen[place];
  const seeds = runs.length > group.rows.length ? `, ${runs.length} runs` : "";
  const shared = group.shared ? ` Names begin with ${group.shared}` : "";
  return [make("h2", {}, cut(group.title, 240)), pareto(place, runs),
    ...(chosen === null ? [] : [picked(data.runs[chosen])]),
    make("h3", {}, `${rowsOf(group, runs).length} settings${seeds}`),
    make("p", { class: "soft" }, "A row opens its run below. A column's title sorts." + shared),
    chooser(group), rowsTable(group, place, runs), ...warningsOf(group), bitMap(place, runs),
    fold("all-runs", `Every run by itself (${runs.length})`, false,
      ...(state.open["all-runs"] ? [runsTable(runs)] : []))];
}
const WARNINGS = 4; // that are not folded away
function warningsOf(group) {
  const list = texts => make("ul", { class: "warnings" }, ...texts.map(t => make("li", {}, t)));
  const rest = group.warnings.slice(WARNINGS);
  return [...(group.warnings.length ? [list(group.warnings.slice(0, WARNINGS))] : []),
    ...(rest.length ? [fold("warnings", `${rest.length} more`, false, list(rest))] : [])];
}
const SKIPPED = 50; // folders that are listed before one asks for more
function skippedPart() {
  const most = Math.min(data.skipped.length, state.more.skipped ?? SKIPPED);
  return data.skipped.length ? [make("section", { id: "skipped" },
    make("h2", {}, `Not compared: ${data.skipped.length}`), make("ul", {},
      ...data.skipped.slice(0, most).map(s => make("li", {}, make("code", {}, s.folder), " ", s.reason))),
    ...more("skipped", most, data.skipped.length))] : [];
}
let last = {}; // the detail that is shown, which most choices leave as it is
function detailOf(run) {
  if (last.run !== run || last.wide !== wide) last = { run, wide, made: detail(run) };
  return last.made;
}
function render() {
  // Read before anything changes: the browser would lay the old page out again for it.
  const scrolls = new Map([...body.querySelectorAll(".scroll")].map((s, i) => [i, [s.scrollLeft, s.scrollTop]]));
  const heights = new Map([...body.querySelectorAll(".far")].map(e => [e.id, e.offsetHeight]));
  const runs = visible(), own = runs.filter(r => r.group === state.group);
  const group = data.groups[state.group], kept = document.activeElement?.dataset?.keep;
  hideTip();
  count.textContent = `${runs.length} of ${data.runs.length} runs`;
  measured.replaceChildren(...group.own.map(f => option(f.key, f.title)));
  measured.value = upright(group).key;
  tabs.replaceChildren(...groupTabs(runs));
  state.chosen[state.group] ??= firstOf(group, own.length ? own : data.runs.filter(r => r.group === state.group));
  const parts = own.length ? groupParts(state.group, own) : [make("h2", {}, group.title),
    make("p", { class: "warn", id: "none" }, `No run${runs.length ? " of these" : ""} has all of `
      + `"${words().join('", "')}" in its setting, method, config, commit, folder, seed or group.`)];
  if (state.chosen[state.group] !== null) parts.push(detailOf(data.runs[state.chosen[state.group]]));
  parts.push(...skippedPart(), fold("about", "What the figures are", false, make("dl", {},
    ...figures.flatMap(f => [make("dt", {}, f.title), make("dd", {}, f.about)]))));
  body.replaceChildren(...parts);
  // What is out of sight is not laid out; where it stands above, it must be as high as it was.
  for (const e of body.querySelectorAll(".far"))
    if (heights.has(e.id)) e.style.containIntrinsicHeight = `auto ${heights.get(e.id)}px`;
  [...body.querySelectorAll(".scroll")].forEach((s, i) => {
    const [left, top] = scrolls.get(i) ?? [0, 0];
    if (left || top) [s.scrollLeft, s.scrollTop] = [left, top];
  });
  refocus(kept);
}
// A page that is loaded again, as one that is served is by itself, shows what it showed before.
const KEPT = ["filter", "cost", "figure", "all", "map", "more", "open", "rows", "runs"];
const memory = `bitjax ${location.pathname}`;
addEventListener("pagehide", () => {
  const kept = Object.fromEntries(KEPT.map(key => [key, state[key]]));
  const names = { group: data.groups[state.group].title, columns: state.columns && [...state.columns],
    chosen: state.chosen.filter(i => i !== null).map(i => data.runs[i].folder) };
  try { sessionStorage.setItem(memory, JSON.stringify({ ...kept, names })); } catch { /* no storage */ }
});
function restore() {
  if (performance.getEntriesByType("navigation")[0]?.type !== "reload") return;
  try {
    const { names, ...kept } = JSON.parse(sessionStorage.getItem(memory));
    Object.assign(state, kept);
    state.group = Math.max(0, data.groups.findIndex(g => g.title === names.group));
    state.columns = names.columns && new Set(names.columns);
    for (const run of data.runs) if (names.chosen.includes(run.folder)) state.chosen[run.group] = run.index;
  } catch { /* nothing was kept */ }
  if (!data.costs.some(c => c.key === state.cost)) state.cost = data.cost;
  [search.value, costs.value, every.checked] = [state.filter, state.cost, state.all];
}
main.replaceChildren(tabs, make("div", { class: "bar" }, controls, count), body, tip);
document.addEventListener("keydown", event => {
  if (event.key !== "/" || event.target.matches("input, select")) return;
  event.preventDefault();
  controls.open = true;
  search.focus();
});
function measure() {
  const now = Math.max(280, main.clientWidth), same = now === wide;
  wide = now;
  return same;
}
measure();
restore();
render();
addEventListener("resize", () => measure() || render());
