"""Names and explains each figure of a run that tables, charts and the page show.

A task's own figures, its score first, are described from what the runs say of them (`own_figures`).
Those that every run has are in `FIGURES`.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

from bitjax.costs.accelerators import RULES, LayerBits, speedup
from bitjax.runs.files import SiteBits
from bitjax.runs.records import CACHE, FORM, RunRecord


class Figure(NamedTuple):
    """One figure of a run.

    Attributes:
      key: Name in files.
      title: Name in tables.
      digits: Digits behind the decimal point in tables.
      scale: Number that tables divide the figure by.
      about: A sentence that explains the figure.
      cost: Whether less is better, so that it may be the axis of a Pareto front.
      higher: Of a task's figure, whether more is better; None where that is not known.
    """

    key: str
    title: str
    digits: int
    scale: float
    about: str
    cost: bool = False
    higher: bool | None = None

    @property
    def noun(self) -> str:
        """The title without its unit."""
        return self.title.removesuffix(" %")

    def rank(self, value: float) -> float:
        """The value, or its negative where less is better: more is better then."""
        return -value if self.higher is False else value


def _bits(key, title, about):
    return Figure(f"bits_{key}", f"bits {title}", 2, 1.0, f"Average bits of {about}.", True)


FIGURES = (
    _bits("weights", "w", "weights over sites, after rounding; float counts 32"),
    _bits("activations", "a", "activations over sites, after rounding"),
    _bits("all", "all", "all sites, after rounding"),
    _bits("inner", "inner", "the sites of all layers but the first and the last"),
    _bits("weights_inner", "w inner", "weights without the first and the last layer"),
    _bits("activations_inner", "a inner", "activations without the first and the last layer"),
    _bits("weights_fractional", "w frac", "weights before rounding"),
    _bits("activations_fractional", "a frac", "activations before rounding"),
    _bits("all_fractional", "all frac", "all sites before rounding"),
    _bits("inner_fractional", "inner frac", "inner sites before rounding"),
    _bits("weights_inner_fractional", "w inner frac", "inner weights before rounding"),
    _bits("activations_inner_fractional", "a inner frac", "inner activations before rounding"),
    Figure("model_bytes", "model kB", 1, 1024, "Codes, scales, bit tables, float leaves.", True),
    Figure("activation_bytes", "act. kB", 1, 1024, "Inputs of layers, for one example.", True),
    Figure(CACHE, "cache B/token", 1, 1.0, "Keys and values kept for each token.", True),
    Figure("bops", "MBOPs", 1, 1e6, "MACs * weight bits * input bits, for one example.", True),
    Figure("stripes", "Stripes x", 2, 1.0, "Speed-up over 16 bits on it, fully used."),
    Figure("loom", "Loom x", 2, 1.0, "Speed-up over 16 bits on it, fully used."),
    Figure("bit_fusion", "Bit Fusion x", 2, 1.0, "Speed-up over 16 bits on it, fully used."),
    Figure("steps", "steps", 0, 1.0, "Of training."),
    Figure("wall_seconds", "s", 0, 1.0, "Wall time of the run on its device."),
)
BY_KEY = {figure.key: figure for figure in FIGURES}
# A front may also be drawn against an accelerator's time, which is 1 / speed-up.
COSTS = tuple(f.key for f in FIGURES if f.cost) + tuple(RULES)
TERMS = {  # of tasks: what a figure is called, its format, what it is
    "accuracy": ("top-1", "{:.2%}", "Accuracy of the final integer model."),
    "perplexity": ("perplexity", "{:.4f}", "exp of the final integer model's loss, in nats."),
    "loss": ("loss", "{:.4f}", "Of the final integer model, in nats."),
    "kl": ("KL", "{:.4f}", "Of the float network's predictions from the model's, in nats."),
    "bits_per_token": ("bits/token", "{:.4f}", "The final integer model's loss, in bits."),
    "token_accuracy": ("token top-1", "{:.2%}", "Share of tokens that the model ranks first."),
}
# Keys of a run in files, which a task's figure may not have, too.
TAKEN = frozenset({"group", "row", "method", "config", "seed", "seeds", "commit", "device",
                   "folder", "label", "difference", "ratio"})  # fmt: skip


def axis_title(cost: str) -> str:
    """What an axis of a cost is called."""
    figure = BY_KEY[cost]
    if figure.cost:
        return figure.title
    return f"time on {figure.title.removesuffix(' x')}, 16 bits = 1"


def layer_of(site: str) -> str:
    """The layer of a site."""
    return site.rpartition("/")[0]


def layers_of(sites: Iterable[SiteBits]) -> dict[str, LayerBits]:
    """The layers of a run with their final bits; an input without a site is float.

    Example:
      >>> kernel = SiteBits("conv/kernel", "kernel", 2.5, 3, 100, 10)
      >>> layers_of([kernel, kernel._replace(site="conv/input", role="input", integer=4)])
      {'conv': LayerBits(macs=100, weights=10, weight_bits=3, input_bits=4)}
    """
    sites = tuple(sites)
    inputs = {layer_of(s.site): s.integer for s in sites if s.role == "input"}
    return {
        (layer := layer_of(s.site)): LayerBits(
            s.macs, s.elements, s.integer, inputs.get(layer, 32.0)
        )
        for s in sites
        if s.role == "kernel"
    }


def own_figures(runs: Sequence[RunRecord]) -> tuple[Figure, ...]:
    """The figures of the runs' own task, their score first; all runs have that score.

    Example:
      >>> from bitjax.runs.records import read_runs
      >>> [figure.title for figure in own_figures(read_runs(["results/digits/lsq"])[0])]
      ['top-1 %', 'loss']
    """
    score = runs[0].score
    names = {name: None for run in runs for name in run.figures if name != score.name}
    order = list(TERMS)
    sides = sorted(names, key=lambda n: (order.index(n) if n in order else len(order), n))
    values = {n: [r.figures[n] for r in runs if n in r.figures] for n in (score.name, *sides)}
    first = _own_figure(score.name, score.form, values[score.name])
    better = f"{'More' if score.higher_is_better else 'Less'} is better."
    return (
        first._replace(about=f"{first.about} {better}", higher=score.higher_is_better),
        *(_own_figure(name, "", values[name]) for name in sides),
    )


def _own_figure(name: str, form: str, values: Sequence[float]) -> Figure:
    title, usual, about = TERMS.get(name, (name.replace("_", " "), "{:.4g}", ""))
    digits, kind, unit = FORM.findall(form or usual)[0]
    digits = int(digits)
    if kind in "eg" and (largest := max(map(abs, values))):  # a column ends at one digit
        digits = max(0, digits - 1 - math.floor(math.log10(largest)))
    title += " %" if kind == "%" else f", {unit}" if unit else ""
    about = about or "Of the final integer model."
    higher = name.endswith("accuracy") if name in TERMS else None
    scale = 0.01 if kind == "%" else 1.0
    return Figure(key_of(name), title, min(digits, 12), scale, about, higher=higher)


def usual_text(name: str, value: float) -> str:
    """A task's figure as people read it, where the task has not said how."""
    return TERMS.get(name, ("", "{:.4g}", ""))[1].format(value)


def key_of(name: str) -> str:
    """The key of a task's figure: its name, unless that is another figure's."""
    return f"task_{name}" if name in BY_KEY or name in TAKEN else name


def figures_of(run: RunRecord) -> dict[str, float]:
    """Every figure of a finished run by key, in its own unit, those of its task first."""
    order = list(dict.fromkeys(layer_of(s.site) for s in run.sites))
    inner = set(order[1:-1])
    own = {key_of(name): value for name, value in run.figures.items()}
    found: dict[str, float] = {}
    for name, (fractional, integer) in run.bits.items():
        found[f"bits_{name}"], found[f"bits_{name}_fractional"] = integer, fractional
    for name, kernel in (("weights", True), ("activations", False)):
        sites = [s for s in run.sites if (s.role == "kernel") is kernel]
        chosen = [s for s in sites if layer_of(s.site) in inner]
        if chosen:
            found[f"bits_{name}_inner"] = fmean(s.integer for s in chosen)
            found[f"bits_{name}_inner_fractional"] = fmean(s.fractional for s in chosen)
    found |= {name: value for name, value in run.costs.items() if name in BY_KEY}
    layers = list(layers_of(run.sites).values())
    found |= {name: speedup(rule, layers) for name, rule in RULES.items()}
    found |= {"steps": run.steps, "wall_seconds": run.wall_seconds}
    return own | {f.key: found[f.key] for f in FIGURES if f.key in found}


def cost_of(figures: dict[str, float], cost: str) -> float | None:
    """A run's place on the axis of a cost, less is better; None where it has none."""
    value = figures.get(cost)
    return 1.0 / value if cost in RULES and value is not None else value
