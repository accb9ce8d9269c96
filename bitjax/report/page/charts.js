// The charts.

function pareto(place, runs) {
  const cost = data.costs.find(c => c.key === state.cost), score = data.groups[place].score;
  const key = at[score.key], sign = score.higher ? 1 : -1, better = (a, b) => sign * (a - b) > 0;
  const scaled = points => points.filter(p => p.x !== null).map(p =>
    ({ ...p, x: p.x / cost.scale, y: p.y / score.scale, s: (p.s ?? 0) / score.scale }));
  const shownRows = new Set(runs.map(r => r.row));
  const rows = scaled(data.groups[place].rows.filter((_, i) => shownRows.has(i))
    .map(r => ({ row: r, x: costOf(r.mean, cost.key), y: r.mean[key], s: r.std[key] })));
  const dots = scaled(runs.map(r =>
    ({ run: r, x: costOf(r.figures, cost.key), y: r.figures[key] })));
  if (!dots.length) return make("p", { class: "soft" }, "No run to draw.");
  const xs = dots.map(p => p.x), low = Math.min(...xs), high = Math.max(...xs);
  const log = low > 0 && high > 8 * low;
  // Runs that failed would leave all others on one line.
  const ranked = dots.map(p => sign * p.y).sort((a, b) => a - b);
  const q = share => ranked[Math.floor(share * (dots.length - 1))];
  const floor = q(0.25) - 3 * Math.max(10 ** (2 - score.digits), q(0.75) - q(0.25));
  const lost = state.all ? 0 : ranked.filter(y => y < floor).length;
  const drawn = p => sign * p.y >= (lost ? floor : ranked[0]);
  const ends = rows.filter(drawn), seen = dots.filter(drawn).map(p => p.y);
  const f = frame({ x: log ? [low / 1.2, high * 1.2] : padded(low, high), log,
    y: padded(Math.min(...seen, ...ends.map(p => p.y - p.s)),
      Math.max(...seen, ...ends.map(p => p.y + p.s))),
    xTitle: cost.title, yTitle: score.title });
  const front = [];
  for (const p of [...ends].sort((a, b) => a.x - b.x || sign * (b.y - a.y)))
    if (!front.length || better(p.y, front[front.length - 1].y)) front.push(p);
  if (front.length) f.svg.append(draw("path", { class: "front", d: front.map((p, i) => i
    ? `H${f.px(p.x).toFixed(1)}V${f.py(p.y).toFixed(1)}`
    : `M${f.px(p.x).toFixed(1)},${f.py(p.y).toFixed(1)}`).join("") }));
  for (const p of dots.filter(drawn)) f.svg.append(point(f, p, p.run, 3.5, "fade"));
  for (const p of ends) {
    const x = f.px(p.x), mark = colour(p.row.method);
    if (p.s) f.svg.append(draw("line", { class: `whisker ${mark}`, x1: x, x2: x,
      y1: Math.min(f.box.b, f.py(p.y - p.s)), y2: f.py(p.y + p.s) }));
    const first = data.runs[p.row.runs.find(i => passes(data.runs[i]))];
    f.svg.append(point(f, p, first, 6, "", `mean of ${p.row.runs.length} run(s)\n`));
  }
  const used = methods.filter(m => runs.some(r => r.method === m));
  const noun = score.noun[0].toUpperCase() + score.noun.slice(1);
  return figure(`${noun} against cost`, f.svg,
    "Large: means over seeds, with their standard deviation; small: runs. Dashed: the front."
    + (score.higher ? "" : ` Less ${score.noun} is better.`)
    + (lost ? ` ${lost} of ${dots.length} runs are far worse and are not drawn.` : ""),
    legend(used.map(m => [colour(m), m])), `pareto-${place}`);
}
function point(f, p, run, radius, extra, lead = "") {
  const row = rowOf(run), index = data.runs.indexOf(run), score = scoreOf(run);
  const cost = data.costs.find(c => c.key === state.cost);
  const text = `${row.label}\n${lead}${score.title} ${p.y.toFixed(score.digits)}, `
    + `${cost.title} ${brief(p.x)}\nconfig ${run.config}\ncommit ${run.commit}`
    + (lead ? "" : `, seed ${run.seed}`);
  return tipped(draw("circle", { class: `point ${colour(run.method)} ${extra}`
    + (index === state.run && !lead ? " chosen" : ""), cx: f.px(p.x), cy: f.py(p.y),
  r: radius, tabindex: 0, onclick: () => choose(index),
  onkeydown: event => { if (event.key === "Enter") choose(index); } }), text);
}

function bitBars(run) {
  const sites = data.site_sets[run.sites];
  const layers = [...new Set(sites.map(placeOf))];
  const tallest = Math.max(8, ...run.bits.filter(b => b <= 16));
  const left = Math.min(230, 30 + 6.2 * Math.max(...layers.map(l => l.length)));
  const rise = 22, width = 640, height = layers.length * rise + 54;
  const f = frame({ x: [0, tallest * 1.08], y: [0, 1], xTitle: "bits (line: before rounding; "
    + "float is cut off)", yTitle: "", width, height, left });
  const clean = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  for (const child of [...f.svg.childNodes]) {
    const sideways = child.getAttribute("y1") !== null
      && child.getAttribute("y1") === child.getAttribute("y2");
    const label = child.getAttribute("text-anchor") === "end";
    if (!sideways && !label) clean.append(child);
  }
  layers.forEach((layer, i) => {
    const y = f.box.t + i * rise;
    clean.append(draw("text", { x: left - 6, y: y + 14, "text-anchor": "end" },
      layer || "(model)"));
    sites.forEach(([site, role], s) => {
      if (placeOf([site, role]) !== layer) return;
      const bits = run.bits[s], top = y + (role === "kernel" ? 2 : 11);
      const end = f.px(Math.min(bits, tallest * 1.08));
      clean.append(tipped(draw("rect", { class: `bar ${role === "kernel" ? "s0" : "s1"}`
        + (bits > 16 ? " fade" : ""), x: left, y: top, width: Math.max(0, end - left),
      height: 8 }), `${site}\n${bits} bits`
        + (run.fractional[s] === bits ? "" : `, learned ${run.fractional[s]}`)));
      const learned = f.px(Math.min(run.fractional[s], tallest * 1.08));
      if (run.fractional[s] !== bits) clean.append(draw("line", { class: "axis", x1: learned,
        x2: learned, y1: top - 1, y2: top + 9 }));
      if (bits > 16) clean.append(draw("text", { x: end - 4, y: top + 8, "text-anchor": "end" },
        String(bits)));
    });
  });
  return figure("Bits per layer", clean, "", legend([["s0", "weights"], ["s1", "inputs"]]),
    "bits-chart");
}

// A layer has a kernel and an input; operands of products and caches are several to a name.
const placeOf = ([site, role]) => role === "kernel" || role === "input"
  ? site.slice(0, Math.max(0, site.lastIndexOf("/"))) : site;

function bitMap(place, runs) {
  const group = data.groups[place];
  const rows = group.rows.map((row, i) => [row, runs.filter(r => r.row === i)])
    .filter(([, own]) => own.length);
  const sites = runs.flatMap(r => data.site_sets[r.sites]);
  const layers = [...new Set(sites.map(placeOf))];
  const cell = 17, names = 6.1 * Math.min(44, Math.max(...rows.map(([r]) => r.label.length)));
  const left = names + 10, top = 12 + 6.4 * Math.max(5, ...layers.map(l => l.length));
  const gap = 12, width = left + 2 * layers.length * cell + gap + 6;
  const height = top + rows.length * cell + 22;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
    width, height });
  ["kernel", "input"].forEach((role, side) => {
    const x0 = left + side * (layers.length * cell + gap);
    svg.append(draw("text", { x: x0, y: height - 6 }, role === "kernel" ? "weights" : "inputs"));
    layers.forEach((layer, j) => {
      const x = x0 + (j + 0.7) * cell;
      svg.append(draw("text", { x, y: top - 5, transform: `rotate(-90 ${x} ${top - 5})` },
        layer || "(model)"));
      rows.forEach(([row, own], i) => {
        const found = own.flatMap(r => data.site_sets[r.sites].flatMap(([site, kind], s) =>
          (kind === "kernel") === (role === "kernel") && placeOf([site, kind]) === layer
            ? [r.bits[s]] : []));
        if (!found.length) return;
        const mean = found.reduce((a, b) => a + b, 0) / found.length;
        const y = top + i * cell;
        svg.append(tipped(draw("rect", { class: mean > 16 ? "cell float" : "cell",
          x: x0 + j * cell, y, width: cell - 1, height: cell - 1,
          "fill-opacity": mean > 16 ? 1 : Math.min(1, 0.08 + mean / 10) }),
        `${row.label}\n${layer}, ${role}: ${brief(mean)} bits`
          + (found.length > 1 ? `, mean of ${found.length} runs` : "")));
        const mark = mean > 5 && mean <= 16 ? "inside" : "outside";
        svg.append(draw("text", { class: mark, x: x0 + (j + 0.47) * cell, y: y + 12,
          "text-anchor": "middle" }, String(Math.round(mean))));
      });
    });
  });
  rows.forEach(([row, own], i) => svg.append(tipped(draw("text", { class: "pick", x: left - 6,
    y: top + i * cell + 12, "text-anchor": "end",
    onclick: () => choose(data.runs.indexOf(own[0])) },
  row.label.length > 44 ? row.label.slice(0, 42) + "\u2026" : row.label), row.label)));
  return make("figure", { id: `map-${place}` }, make("figcaption", {}, "Bits per layer"),
    make("p", { class: "soft" }, "After rounding, mean over seeds; 32 is float."),
    make("div", { class: "scroll fixed" }, svg));
}

function curves(run, key, title, scale) {
  const family = rowOf(run).runs.map(i => data.runs[i]).filter(r => r.curve[key]);
  if (!family.length) return null;
  const xs = family.flatMap(r => r.curve.step);
  const ys = family.flatMap(r => r.curve[key]).filter(v => v !== null).map(v => v * scale);
  if (!ys.length) return null;
  const f = frame({ x: [0, Math.max(1, ...xs)], y: padded(Math.min(...ys), Math.max(...ys)),
    xTitle: "step", yTitle: title, height: 260 });
  let done = 0;
  for (const [name, steps] of run.stages) {
    if (done && steps) f.svg.append(draw("line", { class: "front", x1: f.px(done), x2: f.px(done),
      y1: f.box.t, y2: f.box.b }));
    if (steps) f.svg.append(draw("text", { x: f.px(done) + 4, y: f.box.t + 10 }, name));
    done += steps;
  }
  for (const r of family) f.svg.append(tipped(draw("path",
    { class: `curve ${colour(r.method)} ${r === run ? "" : "fade"}`,
      d: line(f, r.curve.step, r.curve[key].map(v => v === null ? null : v * scale)) }),
  `seed ${r.seed}`));
  return figure(title, f.svg, "", null, `curve-${key}`);
}

function distortion(run) {
  const { rates, sqnr } = run.distortion;
  const names = Object.keys(sqnr), all = Object.values(sqnr).flat();
  const f = frame({ x: padded(Math.min(...rates), Math.max(...rates)),
    y: padded(Math.min(...all), Math.max(...all)), xTitle: "bits per element",
    yTitle: "SQNR, dB" });
  names.forEach((name, i) => {
    const bound = name.startsWith("bound");
    f.svg.append(tipped(draw("path", { class: bound ? "front" : `curve s${i % 10}`,
      d: line(f, rates, sqnr[name]) }), name));
  });
  return figure("Distortion against rate", f.svg, "Medians over sites; dashed: bounds.",
    legend(names.filter(n => !n.startsWith("bound")).map(n => [`s${names.indexOf(n) % 10}`, n])),
    "distortion");
}

function files(run) {
  const { head, rows, links } = run.files;
  const cell = (text, i, link) => make("td", { class: i < 2 ? "text" : null },
    link && i === 0 ? make("a", { href: link }, text) : text);
  return [make("h3", {}, "Take it away"), make("div", { class: "scroll" }, make("table", { id: "files" },
    make("thead", {}, make("tr", {}, ...head.map((name, i) =>
      make("th", { scope: "col", class: i < 2 ? "text" : null }, name)))),
    make("tbody", {}, ...rows.map((row, r) =>
      make("tr", {}, ...row.map((text, i) => cell(text, i, links[r])))))))];
}
function detail(run) {
  const row = rowOf(run), score = scoreOf(run);
  const facts = [["setting", row.label], ["method", run.method], ["config", run.config],
    ["commit", run.commit], ["seed", String(run.seed)], ["machine", data.machines[run.machine]],
    ["folder", run.folder], ["stages", run.stages.map(([name, steps, value]) =>
      `${name}: ${steps} steps, ${score.title} ${shown(value, score)}`).join("; ")]];
  const logged = [[score.key, `${score.title} of training batches`, 1 / score.scale],
    ...[["bits", "average bits", 1], ["loss", "loss", 1]].filter(([key]) => key !== score.key)];
  const charts = [bitBars(run),
    make("div", {}, ...logged.map(([key, title, scale]) => curves(run, key, title, scale))
      .filter(Boolean)),
    ...(run.distortion ? [distortion(run)] : [])];
  const empty = Object.keys(run.curve).length ? []
    : [make("p", { class: "soft" }, "The folder has no metrics.jsonl, so there are no curves.")];
  return make("section", { id: "detail" }, make("h2", {}, `Run: ${row.label}, seed ${run.seed}`),
    make("dl", {}, ...facts.flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, v)])),
    ...run.notes.map(note => make("p", { class: "warn" }, note)),
    make("h3", {}, "Make it again"), make("pre", { id: "command" }, run.command),
    ...(run.files ? files(run) : []), ...empty,
    make("div", { class: "charts" }, ...charts));
}
