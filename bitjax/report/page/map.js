// The map: the bits of every layer of every setting, weights beside inputs or above them.

const MAP_ROWS = 40; // that are shown before one asks for more
const VALUES = {
  bits: ["after rounding", (run, s) => run.bits[s]],
  fractional: ["before rounding", (run, s) => run.fractional[s]],
  change: ["change from the start", (run, s) => run.start?.[s] === undefined || run.start[s] === null
    ? null : run.bits[s] - run.start[s]],
};
// A layer has a kernel and an input; operands of products and caches are several to a name.
const placeOf = ([site, role]) => role === "kernel" || role === "input"
  ? site.slice(0, Math.max(0, site.lastIndexOf("/"))) : site;

// Of a run its places, each with the numbers of its sites: of weights, and of the rest.
const byPlace = data.site_sets.map(sites => {
  const found = new Map();
  sites.forEach((site, s) => {
    const place = placeOf(site);
    if (!found.has(place)) found.set(place, [[], []]);
    found.get(place)[site[1] === "kernel" ? 0 : 1].push(s);
  });
  return found;
});
function cellOf(own, layer, side) {
  const found = own.flatMap(run => (byPlace[run.sites].get(layer)?.[side] ?? [])
    .map(s => VALUES[state.map][1](run, s))).filter(v => v !== null);
  return found.length ? found.reduce((a, b) => a + b, 0) / found.length : null;
}
function shade(value) {
  if (state.map === "change") {
    const far = Math.abs(value), level = far < 0.05 ? 0 : far <= 1 ? 1 : far <= 3 ? 2 : far <= 5 ? 3 : 4;
    return level ? (value < 0 ? "less" : "plus") + level : "same";
  }
  return value > 16 ? "float" : "b" + Math.max(0, Math.min(9, Math.ceil(value - 0.5)));
}
function bitMap(place, runs) {
  const group = data.groups[place], id = `map-${place}`;
  const all = rowsOf(group, runs), most = Math.min(all.length, state.more[id] ?? MAP_ROWS);
  const rank = row => (row.method === data.float ? 2 : 0) - row.front;
  const rows = [...all].sort(([a], [b]) => rank(a) - rank(b)).slice(0, most);
  const layers = [...new Set(rows.flatMap(([, own]) => own.flatMap(r => [...byPlace[r.sites].keys()])))];
  const names = Math.min(0.4 * width(), 14 + textWidth("m") * 0.7 * Math.max(12,
    ...rows.map(([r]) => cut(short(group, r.label), 40).length)));
  const room = width() - names - 30, beside = room / (2 * layers.length) >= 14;
  const cell = room / (layers.length * (beside ? 2 : 1));
  const text = value => {
    if (value === null) return "";
    return [1, 0].map(digits => Number(value.toFixed(digits)))
      .map(v => (state.map === "change" && v > 0 ? "+" : "") + String(v).replace("-", "\u2212"))
      .find(said => textWidth(said) < cell - 2) ?? "";
  };
  const begins = (i, side) => side && beside && !i ? "begin" : null;
  const tds = (own, side) => layers.map((layer, i) => {
    const value = cellOf(own, layer, side), what = side ? "inputs" : "weights";
    return make("td", { class: [value === null ? "" : shade(value), begins(i, side) ?? ""]
      .join(" ").trim() || null, "data-tip": value === null ? null
      : `${rowOf(own[0]).label}\n${layer || "(model)"}, ${what}: `
        + `${state.map === "change" && value > 0 ? "+" : ""}${brief(value)} bits`
        + (own.length > 1 ? `, mean of ${own.length} runs` : "") }, text(value));
  });
  const every = Math.max(1, Math.ceil(15 / cell));
  const heads = side => layers.map((layer, i) => make("th", { scope: "col", "data-tip": layer,
    class: begins(i, side) },
  i % every ? "" : make("span", {}, side && !beside ? "" : cut(layer || "(model)", 26))));
  const name = (row, own, span) => make("th", { scope: "row", rowspan: span },
    make("button", { type: "button", class: "pick", "data-keep": `${id}-${row.label}`,
      "data-tip": row.label, onclick: () => choose(own[0].index) },
    short(group, row.label)));
  const body = rows.flatMap(([row, own]) => beside
    ? [make("tr", {}, name(row, own, 1), ...tds(own, 0), ...tds(own, 1))]
    : [make("tr", { class: "pair" }, name(row, own, 2), ...tds(own, 0)), make("tr", {}, ...tds(own, 1))]);
  const columns = make("colgroup", {}, make("col", { class: "names" }),
    make("col", { span: layers.length * (beside ? 2 : 1) }));
  columns.firstChild.style.width = Math.round(names) + "px";
  const titles = beside ? [make("tr", { class: "sides" }, make("th"),
    ...["weights", "inputs"].map(t => make("th", { scope: "colgroup", colspan: layers.length,
      class: "begin" }, t)))] : [];
  const choice = make("label", {}, "Show ", make("select", { id: `${id}-value`, "data-keep": `${id}-value`,
    onchange: event => {
      state.map = event.target.value;
      render();
    } }, ...Object.entries(VALUES).filter(([key]) => key !== "change" || runs.some(r => r.start))
    .map(([key, [title]]) => make("option", { value: key, selected: key === state.map ? "" : null },
      title))));
  const note = "Bits of each layer, mean over seeds, the front's settings first; 32 is float. "
    + (beside ? "" : "Above: weights, below: inputs. ")
    + (state.map === "change" ? "The start is what the config's rules say; blank: they do not." : "");
  return make("figure", { id, class: "far" }, make("figcaption", {}, "Bits per layer"),
    make("p", { class: "soft" }, note), choice,
    make("div", { class: "scroll map" }, make("table", { class: beside ? "beside" : "above" }, columns,
      make("thead", {}, ...titles, make("tr", { class: "layers" }, make("th"), ...heads(0),
        ...(beside ? heads(1) : []))), make("tbody", {}, ...body))), ...more(id, most, all.length));
}
