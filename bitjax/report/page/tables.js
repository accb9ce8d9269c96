// Tables that sort themselves, in parts that a reader chooses: one of settings, one of all runs.

const CHUNK = 60; // rows that a table shows before it is asked for more
const PARTS = ["accuracy", "bits", "cost", "speed-up", "run"];
const USUAL = ["difference", "ratio", "ahead", "front", "bits_weights", "bits_activations", "model_bytes",
  "cache_bytes_per_token", "bops", "seeds", "seed"];

// A part of the page that is folded away or not, and stays so when the page is drawn anew.
function fold(id, title, open, ...children) {
  return make("details", { id, open: state.open[id] ?? open ? "" : null, ontoggle: event => {
    if ((state.open[id] ?? open) === event.target.open) return;
    state.open[id] = event.target.open;
    if (id === "all-runs") render();
  } }, make("summary", { "data-keep": id }, title), ...children);
}
function more(id, count, total) {
  const add = most => make("button", { type: "button", "data-keep": `${id}-${most}`, onclick: () => {
    state.more[id] = most;
    render();
  } }, most >= total ? `Show all ${total}` : `Show ${most - count} more`);
  if (count >= total) return [];
  return [make("p", { class: "more" }, `${count} of ${total} rows are shown. `,
    ...(total > count + 2 * CHUNK ? [add(count + CHUNK), " "] : []), add(total))];
}
function table(id, columns, entries, order, chosen, onchoose) {
  const column = columns.find(c => c.key === order.key) ?? columns[0];
  const sorted = entries.map((entry, i) => [column.value(entry), i, entry]);
  const collator = new Intl.Collator();
  sorted.sort(([a, i], [b, j]) => {
    if (a === null || b === null) return (a === null) - (b === null) || i - j;
    const sign = typeof a === "string" ? collator.compare(a, b) : a - b;
    return (order.down ? -sign : sign) || i - j;
  });
  const parts = columns.map(c => c.part).filter((part, i, all) => part !== all[i - 1]);
  const groups = parts.map(part => make("th", { scope: "colgroup", class: part ? "part" : null,
    colspan: columns.filter(c => c.part === part).length }, part));
  const first = new Set(parts.map(part => columns.find(c => c.part === part)));
  const head = columns.map(c => make("th",
    { class: [c.text && "text", first.has(c) && "first", c === column && "sorted",
      c === column && order.down && "down"].filter(Boolean).join(" "), scope: "col",
    "data-key": c.key, "aria-sort": c === column ? (order.down ? "descending" : "ascending") : "none" },
    make("button", { type: "button", "data-keep": `${id}-${c.key}`, "data-tip": c.about || null,
      onclick: () => {
        order.down = c.key === order.key ? !order.down : !c.text && !c.less;
        order.key = c.key;
        again(); // nothing else on the page depends on the order
      } }, c.title)));
  const most = Math.min(sorted.length, state.more[id] ?? CHUNK);
  const own = sorted.slice(0, most).map(([, , entry]) => entry);
  const focus = Math.max(0, own.findIndex(chosen));
  const body = own.map((entry, i) => make("tr",
    { tabindex: i === focus ? 0 : -1, "data-keep": `${id}-row-${i}`,
      class: chosen(entry) ? "chosen" : null, "aria-selected": chosen(entry) ? "true" : "false",
      onclick: () => onchoose(entry), onkeydown: event => keys(event, () => onchoose(entry)) },
    ...columns.map(c => make("td", { class: [c.text && "text", first.has(c) && "first"]
      .filter(Boolean).join(" ") || null }, ...[c.show ? c.show(entry) : c.value(entry) ?? ""].flat()))));
  const made = make("div", { class: "sorted-table" });
  const again = () => {
    const kept = document.activeElement?.dataset?.keep, left = made.firstChild.scrollLeft;
    const next = table(id, columns, entries, order, chosen, onchoose);
    made.replaceWith(next);
    next.firstChild.scrollLeft = left;
    refocus(kept);
  };
  return fill(made, {}, [make("div", { class: "scroll" }, make("table", { id },
    make("thead", {}, make("tr", { class: "parts" }, ...groups), make("tr", {}, ...head)),
    make("tbody", {}, ...body))), ...more(id, most, sorted.length)]);
}
const refocus = kept => kept && main.querySelector(`[data-keep="${CSS.escape(kept)}"]`)
  ?.focus({ preventScroll: true });
// One stop of the Tab key for all rows of a table: arrow keys go on, Enter chooses.
function keys(event, enter) {
  const row = event.currentTarget;
  const next = { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling }[event.key];
  if (event.key === "Enter" && event.target === row) enter();
  if (!next) return;
  event.preventDefault();
  [row.tabIndex, next.tabIndex] = [-1, 0];
  next.focus();
}

// Bits before rounding are a column where they say something that bits after it do not.
const told = key => data.groups.some(g => g.rows.some(r => {
  const plain = r.mean[at[key.replace("_fractional", "")]], own = r.mean[at[key]];
  return own !== null && Math.abs(plain - own) >= 0.005;
}));
const figures = data.figures.filter(f => data.runs.some(r => r.figures[at[f.key]] !== null)
  && (!f.key.endsWith("_fractional") || f.part !== "bits" || told(f.key)));
const scores = new Set(data.groups.map(g => g.score.key));
const visibleColumn = key => scores.has(key) || key === "label" || key === state.cost
  || (state.columns ??= new Set(narrow() ? USUAL.filter(k => k !== "ahead") : USUAL)).has(key);
const figureColumns = (group, value, show) => figures
  .filter(f => f.key !== group?.score.key && (!group || group.rows.some(r => r.mean[at[f.key]] !== null)))
  .map(f => ({ key: f.key, part: f.part, title: f.title, about: f.about, less: f.higher === false,
    value: r => value(r)[at[f.key]], show: r => show(r, f) }));
const named = (method, text) => [make("span", { class: "name",
  "data-tip": text.length > 30 ? text : null }, mark(method), make("span", {}, labelOf(text, 30)))];

function rowColumns(group) {
  const score = group.score, own = r => r.label === group.baseline;
  const difference = r => own(r) ? ["baseline"] : toFloat(r.difference, score);
  const columns = [
    { key: "label", part: "", title: "setting", text: true, value: r => r.label,
      show: r => named(r.method, short(group, r.label)) },
    { key: score.key, part: "accuracy", title: score.title, less: !score.higher, about: score.about,
      value: r => r.mean[at[score.key]],
      show: r => shown(r.mean[at[score.key]], score, r.std[at[score.key]]) },
    { key: "difference", part: "accuracy", title: "to float",
      about: `Mean paired difference in ${score.title} to ${group.baseline ?? "a float row"} over common `
        + `seeds, its ${Number((100 * data.confidence).toPrecision(4))} % interval and the number of `
        + `pairs; ${score.higher ? "more" : "less"} is better.`, less: !score.higher,
      value: r => own(r) ? 0 : r.difference?.mean ?? null,
      show: r => [difference(r)[0], " ", make("span", { class: "ends" }, difference(r)[1] ?? "")] },
    ...(group.rows.some(r => r.ratio !== null) ? [{ key: "ratio", part: "accuracy", title: "x float",
      about: `Mean over common seeds of ${score.title} over the float row's.`, less: true,
      value: r => r.ratio, show: r => r.ratio === null ? "" : r.ratio.toFixed(3) }] : []),
    ...(group.rows.some(r => r.ahead) ? [{ key: "ahead", part: "accuracy", title: "to uniform",
      about: `Mean paired difference in ${score.title} to the plain row of equal cost, within 5 %.`,
      less: !score.higher, value: r => r.ahead?.mean ?? null,
      show: r => [toFloat(r.ahead, score)[0], " ",
        make("span", { class: "ends" }, toFloat(r.ahead, score)[1])] }] : []),
    ...figureColumns(group, r => r.mean, (r, f) => shown(r.mean[at[f.key]], f, r.std[at[f.key]])),
    { key: "front", part: "cost", title: "front", about: `No other setting is as good at no higher `
      + `${data.costs.find(c => c.key === data.cost).title}.`,
    value: r => Number(r.front), show: r => r.front ? "yes" : "" },
    { key: "seeds", part: "run", title: "seeds", value: r => r.count },
    { key: "method", part: "run", title: "method", text: true, value: r => r.method },
    { key: "config", part: "run", title: "config", text: true, value: r => r.config },
  ];
  return columns.sort((a, b) => PARTS.indexOf(a.part) - PARTS.indexOf(b.part));
}
function rowsTable(group, place, runs) {
  const columns = rowColumns(group).filter(c => visibleColumn(c.key));
  const found = rowsOf(group, runs), first = new Map(found.map(([row, own]) => [row, own[0]]));
  return table(`rows-${place}`, columns, found.map(([row]) => row), state.rows,
    r => r.runs.includes(state.chosen[place]), r => choose(first.get(r).index));
}
function runsTable(runs) {
  const columns = [
    { key: "label", part: "", title: "setting", text: true, value: r => rowOf(r).label,
      show: r => named(r.method, short(groupOf(r), rowOf(r).label)) },
    ...figureColumns(null, r => r.figures, (r, f) => shown(r.figures[at[f.key]], f)),
    { key: "seed", part: "run", title: "seed", value: r => r.seed },
    { key: "method", part: "run", title: "method", text: true, value: r => r.method },
    { key: "commit", part: "run", title: "commit", text: true, value: r => r.commit },
    { key: "config", part: "run", title: "config", text: true, value: r => r.config },
    { key: "folder", part: "run", title: "folder", text: true, value: r => r.folder },
  ].sort((a, b) => PARTS.indexOf(a.part) - PARTS.indexOf(b.part));
  const always = new Set(["commit", "folder"]);
  return table("runs", columns.filter(c => always.has(c.key) || visibleColumn(c.key)), runs,
    state.runs, r => state.chosen[r.group] === r.index, r => choose(r.index));
}

// What columns there are, in parts; a part's own box shows or hides all of it.
function chooser(group) {
  const columns = rowColumns(group).filter(c => c.part && !scores.has(c.key));
  visibleColumn("");
  const box = (keys, title, name) => make("label", {}, make("input", { type: "checkbox",
    "data-keep": `column-${name}`, checked: keys.every(k => visibleColumn(k)) ? "" : null,
    onchange: event => {
      for (const key of keys) state.columns[event.target.checked ? "add" : "delete"](key);
      render();
    } }), title);
  return fold("columns", "Columns", false, make("div", { class: "chooser" }, ...PARTS.map(part => {
    const own = columns.filter(c => c.part === part);
    return own.length ? make("fieldset", {}, make("legend", {}, box(own.map(c => c.key), part, part)),
      ...own.map(c => box([c.key], c.title, c.key))) : "";
  })));
}
