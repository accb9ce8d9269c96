// Tables that sort themselves: one of settings for each group, one of all runs.

function table(id, columns, entries, order, chosen, onchoose) {
  const column = columns.find(c => c.key === order.key) ?? columns[0];
  const sorted = entries.map((entry, place) => [column.value(entry), place, entry]);
  sorted.sort(([a, i], [b, j]) => {
    if (a === null || b === null) return (a === null) - (b === null) || i - j;
    const sign = typeof a === "string" ? a.localeCompare(b) : a - b;
    return (order.down ? -sign : sign) || i - j;
  });
  const head = columns.map(c => make("th",
    { class: [c.text && "text", c === column && "sorted", c === column && order.down && "down"]
      .filter(Boolean).join(" "), scope: "col", title: c.about ?? null, "data-key": c.key,
      "aria-sort": c === column ? (order.down ? "descending" : "ascending") : "none" },
    make("button", { type: "button", onclick: () => {
      order.down = c.key === order.key ? !order.down : !c.text && !c.less;
      order.key = c.key;
      render();
    } }, c.title)));
  const body = sorted.map(([, , entry]) => make("tr",
    { tabindex: 0, class: chosen(entry) ? "chosen" : null, onclick: () => onchoose(entry),
      onkeydown: event => { if (event.key === "Enter") onchoose(entry); } },
    ...columns.map(c => make("td", { class: c.text ? "text" : null },
      ...[c.show ? c.show(entry) : c.value(entry) ?? ""].flat()))));
  return make("div", { class: "scroll" }, make("table", { id },
    make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body)));
}
const dot = method => make("span", { class: `swatch ${colour(method)}` });
const told = key => data.groups.some(g => g.rows.some(r => {
  const plain = r.mean[at[key.replace("_fractional", "")]], own = r.mean[at[key]];
  return own !== null && Math.abs(plain - own) >= 0.005;
}));
const figures = data.figures.filter(f =>
  data.runs.some(r => r.figures[at[f.key]] !== null)
  && (!f.key.includes("fractional") || told(f.key)));

const scores = new Set(data.groups.map(g => g.score.key));
const costFirst = (a, b) => scores.has(b.key) - scores.has(a.key)
  || (b.key === state.cost) - (a.key === state.cost);

function rowsTable(group, place, runs) {
  const there = new Set(runs.map(r => r.row));
  const entries = group.rows.filter((_, i) => there.has(i));
  const score = group.score, own = f => f.key !== score.key
    && group.rows.some(r => r.mean[at[f.key]] !== null);
  const columns = [
    { key: "label", title: "setting", text: true, value: r => r.label,
      show: r => [dot(r.method), r.label] },
    { key: "method", title: "method", text: true, value: r => r.method },
    { key: score.key, title: score.title, less: !score.higher, about: score.about,
      value: r => r.mean[at[score.key]],
      show: r => shown(r.mean[at[score.key]], score, r.std[at[score.key]]) },
    { key: "difference", title: `to float, ${100 * data.confidence} % (pairs)`,
      about: `Mean paired difference in ${score.title} over common seeds, with its confidence `
        + `interval and the number of pairs; ${score.higher ? "more" : "less"} is better.`,
      less: !score.higher,
      value: r => r.label === group.baseline ? 0 : r.difference?.mean ?? null,
      show: r => r.label === group.baseline ? "baseline" : toFloat(r.difference, score) },
    ...(group.rows.some(r => r.ratio !== null) ? [{ key: "ratio", title: "x float", less: true,
      about: `Mean over common seeds of ${score.title} over the float row's.`,
      value: r => r.ratio, show: r => r.ratio === null ? "" : r.ratio.toFixed(3) }] : []),
    { key: "seeds", title: "seeds", value: r => r.count },
    ...figures.filter(own).sort(costFirst).map(f => ({ key: f.key,
      title: f.title, about: f.about, value: r => r.mean[at[f.key]],
      show: r => shown(r.mean[at[f.key]], f, r.std[at[f.key]]) })),
  ];
  return table(`rows-${place}`, columns, entries, state.rows,
    r => r.runs.includes(state.run), r => choose(r.runs[0]));
}
function runsTable(runs) {
  const columns = [
    { key: "label", title: "setting", text: true, value: r => rowOf(r).label,
      show: r => [dot(r.method), rowOf(r).label] },
    { key: "method", title: "method", text: true, value: r => r.method },
    { key: "seed", title: "seed", value: r => r.seed },
    ...[...figures].sort(costFirst).map(f => ({ key: f.key, title: f.title, about: f.about,
      less: f.higher === false,
      value: r => r.figures[at[f.key]], show: r => shown(r.figures[at[f.key]], f) })),
    { key: "commit", title: "commit", text: true, value: r => r.commit },
    { key: "config", title: "config", text: true, value: r => r.config },
    { key: "folder", title: "folder", text: true, value: r => r.folder },
  ];
  return table("runs", columns, runs, state.runs,
    r => data.runs.indexOf(r) === state.run, r => choose(data.runs.indexOf(r)));
}
