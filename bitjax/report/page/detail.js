// One run: what it is, the command that makes it again, its files, and its own charts.

const inner = () => width() - (narrow() ? 14 : 26);
const half = () => narrow() || width() < 1000 ? inner() : Math.floor((width() - 16) / 2) - 26;

function bitBars(run) {
  const sites = data.site_sets[run.sites], layers = [...new Set(sites.map(placeOf))];
  const tallest = Math.max(8, ...run.bits.filter(b => b <= 16)), wide = half();
  const letters = Math.floor(Math.min(230, 0.4 * wide) / 6.6);
  const name = layer => layer.length > letters ? "\u2026" + layer.slice(1 - letters) : layer || "(model)";
  const left = 14 + Math.max(...layers.map(l => textWidth(name(l))));
  const rise = 24, height = layers.length * rise + 56, end = tallest * 1.08;
  const f = frame({ x: [0, end], y: [0, 1], wide, height, left,
    xTitle: narrow() ? "bits" : "bits; a mark is what was learned, float is cut off" });
  layers.forEach((layer, i) => {
    const y = f.box.t + i * rise;
    f.svg.append(draw("text", { x: left - 6, y: y + 15, "text-anchor": "end" }, name(layer)));
    sites.forEach(([site, role], s) => {
      if (placeOf([site, role]) !== layer) return;
      const bits = run.bits[s], learned = run.fractional[s], top = y + (role === "kernel" ? 2 : 12);
      const text = `${site}\n${bits} bits` + (learned === bits ? "" : `, learned ${learned}`);
      f.svg.append(draw("rect", { class: `bar ${role === "kernel" ? "s0" : "s1"}`
        + (bits > 16 ? " fade" : ""), x: left, y: top, height: 9, "data-tip": text,
      width: Math.max(0, f.px(Math.min(bits, end)) - left) }));
      if (learned !== bits) f.svg.append(draw("path", { class: "axis thick",
        d: `M${f.px(Math.min(learned, end))},${top - 1}v11` }));
    });
  });
  return figure("Bits per layer", f.svg, "", legend([[swatch("s0"), "weights"],
    [swatch("s1"), "inputs"]]), "bits-chart");
}
// A curve of every seed of the run's setting; what was evaluated on the way are points.
function curves(run, key, title, scale) {
  const runs = rowOf(run).runs.map(i => data.runs[i])
    .filter(r => r.curve[key] || r.evaluated[key]);
  const series = runs.flatMap(r => [[r, r.curve, "curve"], [r, r.evaluated, "points"]])
    .filter(([, found]) => found[key]?.some(v => v !== null));
  if (!series.length) return null;
  const steps = series.flatMap(([, found]) => found.step);
  const values = series.flatMap(([, found]) => found[key]).filter(v => v !== null).map(v => v * scale);
  const f = frame({ x: [Math.min(0, ...steps), Math.max(...steps)],
    y: padded(Math.min(...values), Math.max(...values)), xTitle: "step", rising: true, wide: half(),
    height: 220 });
  for (const [r, found, kind] of series) {
    const ys = found[key].map(v => v === null ? null : v * scale);
    const look = `${colour(r.method)} ${r === run ? "" : "fade"}`;
    if (kind === "curve") f.svg.append(draw("path", { class: `curve ${look}`,
      d: line(f, found.step, ys), "data-tip": `seed ${r.seed}` }));
    else ys.forEach((y, i) => y === null || f.svg.append(draw("circle", { class: `bar ${look}`,
      cx: f.px(found.step[i]), cy: f.py(y), r: 4,
      "data-tip": `seed ${r.seed}, evaluated at step ${found.step[i]}: ${brief(y)}` })));
  }
  const both = new Set(series.map(([, , kind]) => kind)).size > 1;
  return figure(title, f.svg, both ? "Line: training batches. Points: evaluated." : "", null,
    `curve-${key}`);
}
function distortion(run) {
  const { rates, sqnr } = run.distortion;
  const names = Object.keys(sqnr), all = Object.values(sqnr).flat();
  const f = frame({ x: padded(Math.min(...rates), Math.max(...rates)), wide: half(),
    y: padded(Math.min(...all), Math.max(...all)), xTitle: "bits per element",
    yTitle: "SQNR, dB" });
  const bound = name => name.startsWith("bound");
  names.forEach((name, i) => f.svg.append(draw("path", { "data-tip": name,
    class: bound(name) ? "front" : `curve s${i % 10}`, d: line(f, rates, sqnr[name]) })));
  return figure("Distortion against rate", f.svg, "Medians over sites; dashed: bounds.",
    legend(names.filter(n => !bound(n)).map(n => [swatch(`s${names.indexOf(n) % 10}`), n])),
    "distortion");
}
function files(run) {
  const links = run.links.map(([name, link]) => make("a", { href: link }, name));
  const parts = [make("h3", {}, "Its files")];
  if (links.length) parts.push(make("p", { class: "links" }, ...links));
  if (run.files) {
    const { head, rows, links: model } = run.files;
    parts.push(make("div", { class: "scroll" }, make("table", { id: "files" },
      make("thead", {}, make("tr", {}, ...head.map((name, i) =>
        make("th", { scope: "col", class: i < 2 ? "text" : null }, name)))),
      make("tbody", {}, ...rows.map((row, r) => make("tr", {}, ...row.map((text, i) =>
        make("td", { class: i < 2 ? "text" : null },
          model[r] && i === 0 ? make("a", { href: model[r] }, text) : text))))))));
  }
  return links.length || run.files ? parts : [];
}
function detail(run) {
  const row = rowOf(run), group = groupOf(run), score = group.score;
  const stages = run.stages.map(([name, steps, value]) =>
    `${name}: ${steps} steps, ${score.title} ${shown(value, score)}`).join("; ");
  const facts = [["setting", row.label], [score.title, shown(run.figures[at[score.key]], score)],
    ["method", run.method], ["config", run.config], ["commit", run.commit], ["seed", String(run.seed)],
    ["machine", data.machines[run.machine]], ["folder", run.folder], ["stages", stages]];
  const logged = [[score.key, score.title, 1 / score.scale], ["bits", "average bits", 1],
    ["loss", "loss", 1], ["kl", "KL", 1]];
  const drawn = logged.filter(([key], i) => logged.findIndex(([k]) => k === key) === i)
    .map(([key, title, scale]) => curves(run, key, title, scale)).filter(Boolean);
  return make("section", { id: "detail", class: "far", tabindex: -1 },
    make("h2", {}, `Run: ${cut(short(group, row.label), 120)}, seed ${run.seed}`),
    make("dl", {}, ...facts.flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, v)])),
    ...run.notes.map(note => make("p", { class: "soft" }, note)),
    make("h3", {}, "Make it again"), make("pre", { id: "command", tabindex: 0 }, run.command),
    ...files(run),
    ...(drawn.length ? [] : [make("p", { class: "soft" },
      "Its folder keeps no metrics; make it again to see its curves.")]),
    make("div", { class: "charts" }, bitBars(run), make("div", { class: "stack" }, ...drawn,
      ...(run.distortion ? [distortion(run)] : []))));
}
