"""Draws data for notebooks and papers; each function returns the axes that it drew on.

Every function takes `axes` to draw on, or makes a figure of its own. Nothing here reads a
file or a model: `bitjax.runs.records.read_runs` gives what `bits_per_layer` and `curves` take.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bitjax.extras import extra
from bitjax.report.comparison import Group, row_cost
from bitjax.report.figures import BY_KEY, axis_title, layer_of
from bitjax.report.statistics import pareto_front
from bitjax.runs.files import SiteBits, is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FLOAT = 16.0  # more bits than this are float, and cut off


def bits_per_layer(
    sites: Sequence[SiteBits] | Mapping[str, Any],
    *,
    learned: Mapping[str, Any] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Final bits of weights and inputs by layer; marks are bits before rounding.

    Args:
      sites: A run's sites, as `RunRecord.sites` has them; or bits by site, as `bitjax.bits_of`
        gives them, of which each site's mean is drawn.
      learned: Bits by site before rounding, if `sites` are bits by site.
      axes: Axes to draw on; None makes new ones.

    Example:
      >>> sites = [SiteBits("conv/kernel", "kernel", 2.6, 3, 100, 10)]
      >>> bits_per_layer(sites).get_ylabel()
      'bits'
      >>> bits_per_layer({"conv/kernel": np.array([2.0, 4.0])}).patches[0].get_height()
      np.float64(3.0)
    """
    if isinstance(sites, Mapping):
        sites = _sites(sites, learned or {})
    axes = _axes(axes, (max(5.0, 0.35 * len(sites)), 3.5))
    layers = list(dict.fromkeys(_place(s) for s in sites))
    top = max([8.0, *(s.integer for s in sites if s.integer <= _FLOAT)])
    for shift, label, colour in ((-0.2, "weights", "C0"), (0.2, "inputs", "C1")):
        chosen = [s for s in sites if (s.role == "kernel") is (label == "weights")]
        x = [layers.index(_place(s)) + shift for s in chosen]
        heights = [min(s.integer, 1.05 * top) for s in chosen]
        bars = axes.bar(x, heights, 0.38, color=colour, label=label)
        for bar, place, site in zip(bars, x, chosen, strict=True):
            if site.integer > _FLOAT:
                bar.set_alpha(0.35)
                axes.annotate(f"{site.integer:g}", (place, 1.05 * top), ha="center", va="bottom")
        marks = [(p, s.fractional) for p, s in zip(x, chosen, strict=True)
                 if s.fractional != s.integer]  # fmt: skip
        if marks:
            axes.plot(*zip(*marks, strict=True), "_", color="black", ms=9)
    axes.set_xticks(range(len(layers)), [_text(name) or "(model)" for name in layers], rotation=90)
    axes.set(ylabel="bits", ylim=(0, 1.18 * top))
    axes.legend(frameon=False)
    return axes


def _place(site: SiteBits) -> str:
    # A layer has a kernel and an input; operands of products and caches are several to a name.
    return layer_of(site.site) if site.role in ("kernel", "input") else site.site


def _sites(final: Mapping[str, Any], learned: Mapping[str, Any]) -> list[SiteBits]:
    return [
        SiteBits(
            site,
            site.rpartition("/")[2],
            float(np.mean(learned.get(site, bits))),
            float(np.mean(bits)),
            0.0,
            0.0,
        )
        for site, bits in final.items()
    ]


def pareto(group: Group, cost: str = "bops", *, axes: Axes | None = None) -> Axes:
    """The score of a group's rows against a cost, spread over seeds, and the front.

    Args:
      group: A group of a comparison.
      cost: Key of `bitjax.report.figures.COSTS`. An accelerator's is the time relative to 16 bits.
      axes: Axes to draw on; None makes new ones.
    """
    axes = _axes(axes, (6.5, 4.5))
    known = [(c, row) for row in group.rows if (c := row_cost(row, cost)) is not None]
    scale = BY_KEY[cost].scale if BY_KEY[cost].cost else 1.0
    x = np.array([c / scale for c, _ in known])
    score = group.score
    y = np.array([row.figures[score.key].mean / score.scale for _, row in known])
    methods = list(dict.fromkeys(row.method for _, row in known))
    for i, method in enumerate(methods):
        own = [k for k, (_, row) in enumerate(known) if row.method == method]
        spread = [(known[k][1].figures[score.key].std or 0.0) / score.scale for k in own]
        axes.errorbar(x[own], y[own], spread, fmt="o", color=f"C{i % 10}", label=_text(method))
    front = np.flatnonzero(pareto_front(x.tolist(), [score.rank(v) for v in y]))
    front = front[np.argsort(x[front])]
    axes.step(x[front], y[front], "k--", where="post", lw=1, label="front")
    if len(x) and x.min() > 0 and x.max() > 8 * x.min():
        axes.set_xscale("log")
    axes.set(xlabel=axis_title(cost), ylabel=_text(score.title), title=_text(group.title))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return axes


def tensor_histogram(
    x: Any, levels: Any = (), *, bins: int = 100, axes: Axes | None = None
) -> Axes:
    """How a tensor's elements are spread, and the levels that they are quantized to.

    Args:
      x: Tensor of any shape.
      levels: Numbers that quantization leaves, as a list of them or as an x_hat of any shape.
      bins: Number of the histogram's bins.
      axes: Axes to draw on; None makes new ones.

    Example:
      >>> tensor_histogram([0.1, 0.2, 0.4], [0.0, 0.25]).get_xlabel()
      'x'
    """
    axes = _axes(axes, (6, 3.5))
    axes.hist(_flat(x), bins=bins, density=True, color="C0", alpha=0.6)
    for i, level in enumerate(np.unique(_flat(levels))):
        axes.axvline(float(level), color="C3", lw=1, label=None if i else "levels")
    axes.set(xlabel="x", ylabel="density")
    if len(_flat(levels)):
        axes.legend(frameon=False)
    return axes


def planes(codes: Any, bits: int, *, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """The bit planes of a picture of codes, from the most significant to the least.

    Args:
      codes: `[H, W]` integers in [0, 2^bits).
      bits: Number of planes.
      axes: Axes to draw on, one for each plane; None makes new ones.

    Returns:
      The axes, one for each plane.

    Example:
      >>> [a.get_title() for a in planes(np.array([[0, 3], [1, 2]]), bits=2)]
      ['plane 1', 'plane 0']
    """
    codes_HxW = np.asarray(codes)
    whole = codes_HxW.ndim == 2 and np.all(codes_HxW == np.rint(codes_HxW))
    if not whole or codes_HxW.min() < 0 or codes_HxW.max() >= 2**bits:
        raise ValueError(
            f"`codes` must be [H, W] integers in [0, {2**bits}), got shape {codes_HxW.shape} in "
            f"[{codes_HxW.min()}, {codes_HxW.max()}]."
        )
    if axes is None:
        axes = _grid(1, bits, (1.8 * bits, 2.2))
    if len(axes) != bits:
        raise ValueError(f"`axes` must be {bits}, one for each plane, got {len(axes)}.")
    for plane, one in zip(reversed(range(bits)), axes, strict=True):
        one.imshow(codes_HxW.astype(np.int64) >> plane & 1, cmap="gray", vmin=0, vmax=1)
        one.set_title(f"plane {plane}")
        one.set_axis_off()
    return list(axes)


def code_changes(before: Any, after: Any, *, axes: Axes | None = None) -> Axes:
    """How many codes went from where to where: a row for each code before, a column for each after.

    Args:
      before: Integers of any shape.
      after: Integers of the same shape.
      axes: Axes to draw on; None makes new ones.

    Example:
      >>> code_changes([-1, 0, 0, 1], [-1, 0, 1, 1]).get_title()
      '25.0 % of codes changed'
    """
    old, new = _flat(before), _flat(after)
    if old.shape != new.shape:
        raise ValueError(
            f"`before` and `after` must have one size, got {old.size} and {new.size} codes."
        )
    axes = _axes(axes, (4.5, 4))
    codes = np.unique(np.concatenate([old, new]))
    counts = np.zeros((len(codes), len(codes)), int)
    np.add.at(counts, (np.searchsorted(codes, old), np.searchsorted(codes, new)), 1)
    axes.imshow(np.log1p(counts), cmap="Blues")
    if len(codes) <= 16:
        for (i, j), count in np.ndenumerate(counts):
            colour = "white" if np.log1p(count) > 0.6 * np.log1p(counts.max()) else "black"
            axes.text(j, i, str(count), ha="center", va="center", color=colour, fontsize=8)
    ticks = range(0, len(codes), max(1, len(codes) // 16))
    names = [f"{codes[i]:g}" for i in ticks]
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    share = 100 * np.mean(old != new) if old.size else 0.0
    axes.set(xlabel="code after", ylabel="code before", title=f"{share:.1f} % of codes changed")
    return axes


def curves(
    metrics: Sequence[Mapping[str, Any]],
    keys: Sequence[str] = ("loss", "bits"),
    *,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """What a run logged against its steps, one picture below the other; stages part at dashes.

    Args:
      metrics: Rows of `metrics.jsonl`, as `RunRecord.metrics` has them.
      keys: Keys of the rows to draw. A row that lacks one is left out of that curve.
      axes: Axes to draw on, one for each key; None makes new ones.

    Returns:
      The axes, one for each key.

    Example:
      >>> [a.get_ylabel() for a in curves([{"step": 1, "loss": 0.5, "bits": 8.0}])]
      ['loss', 'bits']
    """
    if axes is None:
        axes = _grid(len(keys), 1, (6, 2.4 * len(keys)), sharex=True)
    staged = [(row["step"], row["stage"]) for row in metrics if "stage" in row]
    borders = [step for (step, name), (_, later) in zip(staged, staged[1:], strict=False)
               if name != later]  # fmt: skip
    for key, one in zip(keys, axes, strict=True):
        rows = [row for row in metrics if is_number(row.get(key))]
        one.plot([row["step"] for row in rows], [row[key] for row in rows])
        for step in borders:
            one.axvline(step, color="black", ls="--", lw=0.8)
        one.set_ylabel(key)
        one.grid(alpha=0.3)
    axes[-1].set_xlabel("step")
    return list(axes)


def distortion_rate(
    rates: Sequence[float],
    sqnr: Mapping[str, Any],
    bounds: Mapping[str, Any] | None = None,
    *,
    axes: Axes | None = None,
) -> Axes:
    """Signal over quantization noise against rate, beside the limits of rate-distortion theory.

    Args:
      rates: `[R]` bits per element.
      sqnr: `[R]` dB by name; or `[S, R]` of several sites, drawn as faint points and their median.
      bounds: `[R]` dB by name, which nothing can lie above.
      axes: Axes to draw on; None makes new ones.

    Example:
      >>> rates = [1.0, 2.0]
      >>> distortion_rate(rates, {"uniform": [4.0, 9.0]}, {"Gaussian": [6.0, 12.0]}).get_ylabel()
      'SQNR, dB'
    """
    axes = _axes(axes, (6.5, 4.5))
    for i, (name, values) in enumerate(sqnr.items()):
        sites_SxR = np.atleast_2d(np.asarray(values, float))
        if len(sites_SxR) > 1:
            for site_R in sites_SxR:
                axes.plot(rates, site_R, "o", color=f"C{i % 10}", alpha=0.3, ms=4)
        axes.plot(rates, np.median(sites_SxR, axis=0), color=f"C{i % 10}", label=_text(name))
    styles = itertools.cycle(("k-", "k--", "k:", "k-."))
    for (name, values), style in zip((bounds or {}).items(), styles, strict=False):
        axes.plot(rates, np.asarray(values, float), style, lw=1, label=_text(name))
    axes.set(xlabel="bits per element", ylabel="SQNR, dB")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return axes


def _axes(axes: Axes | None, size: tuple[float, float]) -> Axes:
    return _grid(1, 1, size, layout="constrained")[0] if axes is None else axes


def _grid(rows: int, columns: int, size: tuple[float, float], **options: Any) -> list[Axes]:
    """Axes of a new figure, row by row."""
    with extra("plots", "A picture"):
        import matplotlib.pyplot as plt

    made = plt.subplots(rows, columns, squeeze=False, figsize=size, **options)[1]
    return list(made.flat)


def _text(name: str) -> str:
    return name.replace("$", r"\$")  # between two of them Matplotlib reads a formula


def _flat(x: Any) -> np.ndarray:
    return np.asarray(x).ravel()
