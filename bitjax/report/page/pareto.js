// The chart of a figure against a cost: float is a line, every setting a point with its name.

const REACH = 26; // of the pointer around a point, in pixels
let radius = 6; // of a point; less where there are hundreds
const MOST_LABELS = 70;

// What may be drawn against a cost: the group's own figures, the score first.
const upright = group => group.own.find(f => f.key === state.figure) ?? group.own[0];

function pareto(place, runs) {
  const group = data.groups[place], own = upright(group), key = at[own.key];
  const cost = data.costs.find(c => c.key === state.cost);
  const sign = own.higher === null ? 0 : own.higher ? 1 : -1;
  const point = (row, own, figures, std) => ({ row, own, x: costOf(figures, cost.key), y: figures[key],
    s: std?.[key] ?? 0 });
  const scaled = points => points.filter(p => p.x !== null && p.y !== null).map(p =>
    ({ ...p, x: p.x / cost.scale, y: p.y / own.scale, s: p.s / own.scale }));
  const quantized = rowsOf(group, runs).filter(([row]) => row.method !== data.float);
  const apart = quantized.length ? quantized : rowsOf(group, runs);
  const points = scaled(apart.map(([row, found]) => point(row, found, row.mean, row.std)));
  const dots = scaled(apart.filter(([, found]) => found.length > 1)
    .flatMap(([row, found]) => found.map(r => point(row, [r], r.figures))));
  if (!points.length) return make("p", { class: "soft", id: `pareto-${place}` },
    `No run has both ${own.title} and ${cost.title}.`);
  const reference = quantized.length ? referenceOf(group, key, own) : null;
  // Runs that failed would leave all others on one line.
  const ranked = points.map(p => (sign || 1) * p.y).sort((a, b) => a - b);
  const q = share => ranked[Math.floor(share * (ranked.length - 1))];
  const floor = q(0.25) - 3 * Math.max(10 ** (2 - own.digits), q(0.75) - q(0.25));
  const lost = state.all ? 0 : ranked.filter(y => y < floor).length;
  const drawn = p => (sign || 1) * p.y >= (lost ? floor : -Infinity);
  const ends = points.filter(drawn), seen = dots.filter(drawn);
  const f = axesOf(ends, seen, cost, own, reference);
  if (reference) f.svg.append(...referenceLine(f, reference, own));
  const front = frontOf(ends, sign);
  if (front.length) f.svg.append(draw("path", { class: "front", d: front.map((p, i) => i
    ? `H${f.px(p.x).toFixed(1)}V${f.py(p.y).toFixed(1)}`
    : `M${f.px(p.x).toFixed(1)},${f.py(p.y).toFixed(1)}`).join("") }));
  radius = ends.length > 250 ? 4 : 6;
  setApart(f, ends, sign);
  const shift = new Map(ends.map(p => [p.row, p.px - f.px(p.x)]));
  for (const p of seen) Object.assign(p, { px: f.px(p.x) + (shift.get(p.row) ?? 0), py: f.py(p.y) });
  for (const method of new Set(seen.map(p => p.row.method))) f.svg.append(draw("path",
    { class: `dots ${colour(method)}`, d: seen.filter(p => p.row.method === method)
      .map(p => `M${(p.px - 2).toFixed(1)},${p.py.toFixed(1)}h4`).join("") }));
  ends.forEach(p => f.svg.append(marker(f, p)));
  f.svg.append(...labels(f, group, ends, new Set(front), [...lineBoxes(f, front),
    ...(reference ? referenceBoxes(f, reference) : [])]));
  listen(f, ends, seen, group);
  const used = [...new Set(ends.map(p => p.row.method))].sort();
  const noun = own.title.replace(/ %$/, "");
  const better = sign ? ` ${sign > 0 ? "More" : "Less"} ${noun} at less cost is better.` : "";
  const made = figure(`${noun[0].toUpperCase() + noun.slice(1)} against ${cost.title}`, f.svg, "",
    legend([...used.map(m => [mark(m), cut(m, 40)]),
      ...(reference ? [[mark(data.float), "float"]] : [])]), `pareto-${place}`);
  made.append(make("p", { class: "soft" }, `${better} Dashed: the front. `
    + (ends.some(p => p.s) ? "Bars: standard deviation over seeds. " : "")
    + "Points of one cost stand side by side."
    + (lost ? ` ${lost} of ${points.length} settings are far worse and are not drawn.` : "")));
  return made;
}

// The float row that differences are to, or the best; no filter takes it away.
function referenceOf(group, key, own) {
  const floats = group.rows.filter(r => r.method === data.float && r.mean[key] !== null);
  const row = floats.find(r => r.label === group.baseline)
    ?? floats.sort((a, b) => (own.higher ? -1 : 1) * (a.mean[key] - b.mean[key]))[0];
  return row ? { row, y: row.mean[key] / own.scale, s: (row.std[key] ?? 0) / own.scale } : null;
}
function axesOf(ends, seen, cost, own, reference) {
  const xs = [...ends, ...seen].map(p => p.x), low = Math.min(...xs), high = Math.max(...xs);
  const log = low > 0 && high > 4 * low;
  const lows = [...ends.map(p => p.y - p.s), ...seen.map(p => p.y)];
  const highs = [...ends.map(p => p.y + p.s), ...seen.map(p => p.y)];
  let [bottom, top] = [Math.min(...lows), Math.max(...highs)];
  // A float row that is far from all others would press them together as a point would.
  const far = reference && (reference.y > top + 2 * (top - bottom || 1e9)
    || reference.y < bottom - 2 * (top - bottom || 1e9));
  if (reference && !far) [bottom, top] = [Math.min(bottom, reference.y), Math.max(top, reference.y)];
  if (reference) reference.far = far;
  const wide = width() - 2 - (narrow() ? 12 : 26);
  return frame({ x: log ? [low / 1.25, high * 1.35] : padded(low, high, 0.1), log,
    y: padded(bottom, top), xTitle: cost.title, yTitle: own.title, wide,
    height: Math.round(Math.min(560, Math.max(360, wide * 0.45))) });
}
function referenceLine(f, reference, own) {
  const y = reference.far ? f.box.t : f.py(reference.y);
  reference.text = `float ${reference.y.toFixed(own.digits)}`
    + (reference.far ? `, ${reference.y > 0 && y === f.box.t ? "off the chart" : ""}` : "");
  reference.at = [f.box.r - 4, y - 5 < f.box.t + 8 ? y + 14 : y - 5];
  const band = reference.s && !reference.far ? [draw("rect", { class: "band", x: f.box.l,
    width: f.box.r - f.box.l, y: f.py(reference.y + reference.s),
    height: f.py(reference.y - reference.s) - f.py(reference.y + reference.s) })] : [];
  return [...band,
    ...(reference.far ? [] : [draw("path", { class: "reference", d: `M${f.box.l},${y}H${f.box.r}` })]),
    draw("text", { class: "strong", x: reference.at[0], y: reference.at[1], "text-anchor": "end" },
      reference.text)];
}
function frontOf(points, sign) {
  const front = [];
  if (!sign) return front;
  for (const p of [...points].sort((a, b) => a.x - b.x || sign * (b.y - a.y)))
    if (!front.length || sign * (p.y - front[front.length - 1].y) > 0) front.push(p);
  return front;
}

// Points that would hide each other, or each other's bars, move sideways as far as they must: the
// best of one cost stays, and none goes to the left of a cheaper one.
function setApart(f, points, sign) {
  const placed = [], step = radius * 2 + 1, columns = new Map(); // of placed points, as wide as a point
  const free = (x, p, low, high) => [-1, 0, 1].every(i =>
    (columns.get(Math.floor(x / step) + i) ?? []).every(other => Math.abs(other.px - x) >= step - 1
      || high(other) < low(p) || low(other) > high(p)));
  const ends = [[p => f.py(p.y + p.s) - radius, p => f.py(p.y - p.s) + radius], // with its bar, or
    [p => p.py - radius, p => p.py + radius]]; // alone where there is no room
  for (const p of [...points].sort((a, b) => a.x - b.x || sign * (b.y - a.y))) {
    const x = f.px(p.x), cheaper = placed.filter(q => q.x < p.x && q.px > x - 7 * step);
    Object.assign(p, { px: x, py: f.py(p.y) });
    const places = [...Array(13).keys()].map(i => x + step * Math.ceil(i / 2) * (i % 2 ? 1 : -1))
      .filter(px => px >= f.box.l && px <= f.box.r + radius
        && (px >= x || cheaper.every(q => q.px <= px)));
    for (const [low, high] of ends) {
      const found = places.find(px => free(px, p, low, high));
      if (found === undefined) continue;
      p.px = found;
      break;
    }
    const column = Math.floor(p.px / step);
    if (!columns.has(column)) columns.set(column, []);
    columns.get(column).push(p);
    placed.push(p);
  }
}
function marker(f, p) {
  const { px: x, py: y } = p, [low, high] = [f.py(p.y - p.s), f.py(p.y + p.s)];
  const chosen = p.row.runs.includes(chosenIn(groupOf(p.own[0]))) ? " chosen" : "";
  return p.element = draw("g", { class: `point ${colour(p.row.method)}${chosen}`,
    "data-run": p.own[0].index },
  ...(p.s ? [draw("path", { class: "whisker", d: `M${x - 4},${high}h8m-4,0V${low}m-4,0h8` })] : []),
  draw("path", { class: "fill", d: shape(p.row.method, radius), transform: `translate(${x} ${y})` }));
}
function tipOf(p, group) {
  const { row } = p, get = key => at[key] === undefined ? null : row.mean[at[key]];
  const cost = data.costs.find(c => c.key === state.cost), score = group.score;
  const figure = key => data.figures[at[key]], own = upright(group);
  const parts = [row.label, `${score.title} ${shown(get(score.key), score, row.std[at[score.key]])}`];
  if (row.difference) parts[1] += `, to float ${toFloat(row.difference, score).join(" ")}`;
  if (own.key !== score.key) parts.push(`${own.title} ${p.y.toFixed(own.digits)}`);
  parts.push(`${cost.title} ${brief(p.x)}`);
  if (get("bits_weights") !== null)
    parts.push(`bits ${brief(get("bits_weights"))} weights, ${brief(get("bits_activations"))} inputs`);
  if (get("model_bytes") !== null)
    parts.push(`${shown(get("model_bytes"), figure("model_bytes"))} ${figure("model_bytes").title}`);
  const [run] = p.own;
  return [...parts, `${p.own.length > 1 ? `mean of ${p.own.length} runs` : `seed ${run.seed}`}, `
    + `commit ${run.commit}`].join("\n");
}

// Names go where there is room, those of the front first; what finds none is shown by the pointer.
const textBox = (x, y, text, anchor) => {
  const w = textWidth(text);
  return [anchor === "end" ? x - w : anchor === "middle" ? x - w / 2 : x, y - 10, w, 13];
};
const overlap = (a, b) => a[0] < b[0] + b[2] && b[0] < a[0] + a[2]
  && a[1] < b[1] + b[3] && b[1] < a[1] + a[3];
const lineBoxes = (f, front) => front.slice(1).flatMap((p, i) => {
  const [x0, y0, x1, y1] = [f.px(front[i].x), f.py(front[i].y), f.px(p.x), f.py(p.y)];
  return [[x0, y0 - 1, x1 - x0, 2], [x1 - 1, Math.min(y0, y1), 2, Math.abs(y1 - y0)]];
});
const referenceBoxes = (f, reference) => [textBox(...reference.at, reference.text, "end"),
  ...(reference.far ? [] : [[f.box.l, f.py(reference.y) - 1, f.box.r - f.box.l, 2]])];
function labels(f, group, points, front, lines) {
  const taken = points.map(p => [p.px - radius - 1, p.py - radius - 1, 2 * radius + 2, 2 * radius + 2]);
  taken.push(...lines);
  const found = [];
  const order = [...points].sort((a, b) => front.has(b) - front.has(a) || b.y - a.y);
  for (const p of order.slice(0, MOST_LABELS)) {
    const text = labelOf(short(group, p.row.label), narrow() ? 22 : 34), r = radius + 4;
    const places = [[p.px + r, p.py + 4, "start"], [p.px - r, p.py + 4, "end"],
      [p.px, p.py - r - 1, "middle"], [p.px, p.py + r + 10, "middle"],
      [p.px + r, p.py - 8, "start"], [p.px + r, p.py + 16, "start"],
      [p.px - r, p.py - 8, "end"], [p.px - r, p.py + 16, "end"],
      ...[-22, 30, -38, 46].flatMap(y => [[p.px + r + 6, p.py + y, "start"],
        [p.px - r - 6, p.py + y, "end"]])]; // the last ones with a line to the point
    for (const [x, y, anchor] of places) {
      const box = textBox(x, y, text, anchor);
      if (box[0] < f.box.l + 2 || box[0] + box[2] > f.box.r + 14 || box[1] < f.box.t - 8
        || box[1] + box[3] > f.box.b || taken.some(other => overlap(box, other))) continue;
      taken.push(box);
      if (Math.abs(y - p.py) > 20) found.push(draw("path", { class: "lead",
        d: `M${p.px},${p.py + Math.sign(y - p.py) * radius}L${x},${y - (y > p.py ? 10 : -2)}` }));
      found.push(draw("text", { class: front.has(p) ? "name strong" : "name", x, y,
        "text-anchor": anchor }, text));
      break;
    }
  }
  return found;
}

// The pointer shows what is nearest; arrow keys go from point to point, Enter chooses.
function listen(f, ends, seen, group) {
  const { svg } = f, order = [...ends].sort((a, b) => a.px - b.px || a.py - b.py);
  svg.classList.add("plot");
  fill(svg, { tabindex: 0, "data-keep": "plot", role: "application", "aria-roledescription": "chart",
    "aria-label": `${order.length} settings; left and right go from one to the next, Enter shows one` },
  []);
  const under = event => {
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width || 1;
    const x = (event.clientX - box.left) / scale, y = (event.clientY - box.top) / scale;
    const far = p => Math.hypot(p.px - x, p.py - y);
    const best = list => list.reduce((a, b) => a && far(a) <= far(b) ? a : b, null);
    const row = best(ends), dot = best(seen);
    const nearest = dot && far(dot) < 4 && far(dot) < far(row) ? dot : row;
    return nearest && far(nearest) < REACH ? nearest : null;
  };
  let focus = null;
  const mark = p => {
    svg.querySelectorAll(".under").forEach(e => e.classList.remove("under"));
    p?.element?.classList.add("under");
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width || 1;
    if (p) showTip(tipOf(p, group), box.left + p.px * scale, box.top + p.py * scale);
    else hideTip();
  };
  svg.addEventListener("pointermove", event => mark(under(event)));
  const leave = () => svg.isConnected && mark(null); // not when another takes its place
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("click", event => {
    const p = under(event);
    if (!p) return;
    choose(p.own[0].index); // which draws the chart anew
    showTip(tipOf(p, group), event.clientX, event.clientY);
  });
  svg.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (step) {
      event.preventDefault();
      const here = focus ?? order.findIndex(p => p.own.some(r => r.index === chosenIn(group)));
      focus = Math.max(0, Math.min(order.length - 1, here + step));
      mark(order[focus]);
    } else if (event.key === "Enter" && focus !== null) choose(order[focus].own[0].index);
  });
}
