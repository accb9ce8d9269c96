// Puts the page together, and again after every choice.

const main = document.getElementById("main");
const search = make("input", { type: "search", id: "filter", placeholder:
  "method, setting, config, commit, seed0 ...", oninput: event => {
  state.filter = event.target.value;
  render();
} });
const select = make("select", { id: "cost", onchange: event => {
  state.cost = event.target.value;
  render();
} }, ...data.costs.map(c => make("option", { value: c.key }, c.title)));
select.value = state.cost;
const every = make("input", { type: "checkbox", id: "all", onchange: event => {
  state.all = event.target.checked;
  render();
} });
const count = make("span", { class: "soft", id: "count" });
const body = make("div");
main.replaceChildren(
  make("div", { class: "controls" }, make("label", {}, "Filter ", search),
    make("label", {}, "Cost ", select), make("label", {}, every, " draw runs that are far worse, too"),
    count), body, tip);

function render() {
  const runs = visible();
  tip.hidden = true;
  count.textContent = `${runs.length} of ${data.runs.length} runs`;
  const scrolls = [...body.querySelectorAll(".scroll")].map(s => [s.scrollLeft, s.scrollTop]);
  if (state.run === null && runs.length) state.run = data.runs.indexOf(runs[0]);
  const parts = runs.length ? [] : [make("p", { class: "warn", id: "none" },
    `No run has all of "${words().join('", "')}" in its setting, method, config, commit, folder, `
    + "seed or group.")];
  data.groups.forEach((group, place) => {
    const own = runs.filter(r => r.group === place);
    if (!own.length) return;
    parts.push(make("section", {}, make("h2", {}, group.title),
      ...group.warnings.map(text => make("p", { class: "warn" }, text)),
      rowsTable(group, place, own),
      make("div", { class: "charts" }, pareto(place, own), bitMap(place, own))));
  });
  parts.push(make("h2", {}, "Runs"), runsTable(runs));
  if (state.run !== null) parts.push(detail(data.runs[state.run]));
  if (data.skipped.length) parts.push(make("section", { id: "skipped" },
    make("h2", {}, "Not compared"), make("ul", {}, ...data.skipped.map(s =>
      make("li", {}, make("code", {}, s.folder), " ", s.reason)))));
  parts.push(make("section", {}, make("h2", {}, "What the figures are"), make("dl", {},
    ...data.figures.flatMap(f => [make("dt", {}, f.title), make("dd", {}, f.about)]))));
  body.replaceChildren(...parts);
  [...body.querySelectorAll(".scroll")].forEach((s, i) => {
    if (scrolls[i]) [s.scrollLeft, s.scrollTop] = scrolls[i];
  });
}
render();
