"""Puts runs side by side: comparable ones in a group, the seeds of one setting in a row."""

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from bitjax.report.figures import BY_KEY, COSTS, FIGURES, Figure, cost_of, figures_of, own_figures
from bitjax.report.labels import labels_of, shared_by
from bitjax.report.statistics import (
    Difference,
    Summary,
    paired_difference,
    pareto_front,
    summarize,
)
from bitjax.runs.folder import LATER, flatten
from bitjax.runs.records import RunRecord, Skipped

BASELINE, PLAIN = "full_precision", "uniform"
# Settings of data that cut tokens into examples.
_TOKENS = {key: LATER[f"data.{key}"] for key in ("form", "context", "marker")}
_EQUAL = 0.05  # share by which costs may differ where scores are compared at equal cost
_FAR_APART = 2.0  # scores at costs further apart than this say little without the costs
# Settings that leave the result as it is, or that a seed brings with it.
_IRRELEVANT = ("seed", "name", "init_from", "log_every", "checkpoint_every", "eval_every",
               "keep_checkpoints", "keep_best", "tensorboard", "writers", "parallel",
               "devices", "steps_per_dispatch", "device_data_mb", "data.root")  # fmt: skip
# What runs did before their configs could say so.
_BEFORE = LATER | {"accumulate": 1, "compute_dtype": "float32", "data.image_size": 0,
                   "data.splits": []}  # fmt: skip


class Row(NamedTuple):
    """One setting, run with one seed or several.

    Attributes:
      label: Name in tables, unique in the group.
      method: Name of the method.
      config: Path of the config file, with its variant.
      runs: The runs, ordered by seed. A seed that was run twice is there twice.
      figures: Each figure's summary over seeds. A seed that was run twice counts once, by its mean.
      difference: Difference in the score to the baseline over common seeds, or None.
      ratio: The score over the baseline's, the mean over common seeds; None where more is better.
      rival: Label of the plain `uniform` row of equal cost, within 5 %; None where there is none.
      ahead: Difference in the score to that row over common seeds, or None.
      front: Whether no other row of the group is as good at no higher cost.
    """

    label: str
    method: str
    config: str
    runs: tuple[RunRecord, ...]
    figures: Mapping[str, Summary]
    difference: Difference | None = None
    ratio: float | None = None
    rival: str | None = None
    ahead: Difference | None = None
    front: bool = False


class Group(NamedTuple):
    """Rows that may be compared: one model, one data set, one evaluation set, one score.

    Attributes:
      title: The model, the data and the evaluation set that the rows share.
      rows: The rows, ordered by cost.
      baseline: Label of the float row that differences are to, or None.
      warnings: Sentences that a reader of the table must know.
      own: The figures of the rows' task, its score first.
    """

    title: str
    rows: tuple[Row, ...]
    baseline: str | None
    warnings: tuple[str, ...]
    own: tuple[Figure, ...]

    @property
    def score(self) -> Figure:
        """The figure that the rows are compared by."""
        return self.own[0]

    @property
    def shared(self) -> str:
        """What all names begin with, a folder of configs say: it tells nothing in a table."""
        return shared_by([row.label for row in self.rows])


class Comparison(NamedTuple):
    """All runs, compared.

    Attributes:
      groups: The groups: one, unless several were asked for.
      cost: Key of the figure that fronts are drawn against.
      skipped: The folders that were left out, and why.
      confidence: Confidence of the intervals, in (0, 1).
    """

    groups: tuple[Group, ...]
    cost: str
    skipped: tuple[Skipped, ...] = ()
    confidence: float = 0.95

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The figures that a group has: scores first, then what else the tasks measured."""
        scores = [group.score for group in self.groups]
        first: dict[str, Figure] = {}
        for figure in [*scores, *(side for group in self.groups for side in group.own[1:])]:
            first.setdefault(figure.key, figure)
        there = {key for group in self.groups for row in group.rows for key in row.figures}
        return tuple(f for f in (*first.values(), *FIGURES) if f.key in there)


def compare(
    runs: Sequence[RunRecord],
    *,
    skipped: Sequence[Skipped] = (),
    group: bool = False,
    cost: str = "bops",
    baseline: str = "",
    confidence: float = 0.95,
) -> Comparison:
    """Puts finished runs side by side.

    Args:
      runs: Finished runs, at least one.
      skipped: Folders to list as left out.
      group: Whether to allow several models, data sets, evaluation sets or scores, each in its own
        group.
      cost: Key of `COSTS` for the Pareto front and the order of rows.
      baseline: Label of the row that differences are to. If empty, it is the float row with most
        seeds, and among equals the best.
      confidence: Confidence of the intervals, in (0, 1).

    Raises:
      ValueError: There is no run, a name is unknown, or runs are not comparable and `group` is off.
    """
    if not runs:
        raise ValueError("there is no finished run to compare.")
    if cost not in COSTS:
        raise ValueError(f"`cost` must be one of {', '.join(COSTS)}, got {cost!r}.")
    if not any(cost in figures_of(run) for run in runs):
        raise ValueError(f"`cost` must be one that a run has, and none has {cost!r}.")
    apart = _apart(runs)
    if len(apart) > 1 and not group:
        raise ValueError(
            f"the runs are of {len(apart)} different models, data or evaluation sets, or scores: "
            + "; ".join(f"{title} ({_shown(found)})" for title, found in apart.items())
            + ". Choose one, or use the option group for a table of each."
        )
    rows = {title: _rows(found) for title, found in apart.items()}
    labels = {row.label for found in rows.values() for row in found}
    if baseline and baseline not in labels:
        raise ValueError(
            f"`baseline` must be the label of a row: {', '.join(sorted(labels))}; got {baseline!r}."
        )
    groups = tuple(_group(t, found, cost, baseline, confidence) for t, found in rows.items())
    return Comparison(groups, cost, tuple(skipped), confidence)


def _apart(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Runs that may be compared, by what they share; scores are told where nothing else differs."""
    apart: dict[tuple[str, str], list[RunRecord]] = {}
    for run in runs:
        name, _, higher, _ = run.score
        by = f"by {name}, {'more' if higher else 'less'} is better"
        apart.setdefault((comparable(run), by), []).append(run)
    titles = [title for title, _ in apart]
    return {
        title if titles.count(title) == 1 else f"{title}, {by}": found
        for (title, by), found in apart.items()
    }


def comparable(run: RunRecord) -> str:
    """What runs must share to be compared: the model with its settings, the data, the split."""
    model = dict(run.settings["model"])
    name = model.pop("name")
    kept = {k: v for k, v in model.items() if k != "dropout"}  # evaluation has none
    settings = ", ".join(f"{k}={_plain(v)}" for k, v in sorted(kept.items()))
    data = run.settings["data"]
    split, limit = run.eval_split, data.get("eval_limit")
    first = f"first {_plain(limit)} " if limit else ""
    if split == "validation":
        split = f"{'of ' if limit else ''}{data.get('validation', 0)} {split}"
    own = {key: data.get(key, usual) for key, usual in _TOKENS.items()}
    cut = [f", {key} {_plain(value)}" for key, value in own.items() if value != _TOKENS[key]]
    return f"{name}({settings}) on {run.data}, {first}{split} examples{''.join(cut)}"


def _rows(runs: Sequence[RunRecord]) -> list[Row]:
    """Runs that differ in nothing but their seed share a row."""
    settings: dict[str, list[RunRecord]] = {}
    for run in runs:
        key = json.dumps([run.config, _settings(run)], sort_keys=True)
        settings.setdefault(key, []).append(run)
    labels = labels_of([(found[0].name, _settings(found[0])) for found in settings.values()])
    rows = []
    for label, found in zip(labels, settings.values(), strict=True):
        found = sorted(found, key=lambda run: run.seed)
        by_seed = _by_seed(found)
        keys = [k for k in next(iter(by_seed.values())) if all(k in f for f in by_seed.values())]
        figures = {k: summarize([f[k] for f in by_seed.values()]) for k in keys}
        rows.append(Row(label, found[0].method, found[0].config, tuple(found), figures))
    return rows


def _by_seed(runs: Sequence[RunRecord]) -> dict[int, dict[str, float]]:
    found: dict[int, list[dict[str, float]]] = {}
    for run in runs:
        found.setdefault(run.seed, []).append(figures_of(run))
    return {
        seed: {
            k: summarize([f[k] for f in several]).mean
            for k in several[0]
            if all(k in f for f in several)
        }
        for seed, several in found.items()
    }


def _settings(run: RunRecord) -> dict[str, str]:
    flat = {k: v for k, v in flatten(run.settings).items() if k not in _IRRELEVANT}
    # Which float run it started from is the seed's matter; whether from one is not.
    flat |= {"init_from": "weights" if run.settings.get("init_from") else ""}
    return {k: _plain(v) for k, v in (_BEFORE | flat).items()}


def _group(title: str, rows: list[Row], cost: str, baseline: str, confidence: float) -> Group:
    own = own_figures([run for row in rows for run in row.runs])
    score = own[0]
    rows, base, warnings = _to_baseline(rows, score, baseline, confidence)
    rows = _to_plain(rows, cost, confidence)
    for row in rows:
        seeds = [run.seed for run in row.runs]
        if twice := sorted({s for s in seeds if seeds.count(s) > 1}):
            warnings.append(
                f"{row.label}: seeds {twice} were run more than once, each counts once; "
                "leave out the runs that are superseded."
            )
        if len(commits := {run.commit for run in row.runs}) > 1:
            warnings.append(
                f"{row.label}: its runs are of {len(commits)} commits; run the older ones again "
                "if the code between them matters."
            )
    costs = [row_cost(row, cost) for row in rows]
    known = [i for i, c in enumerate(costs) if c is not None]
    front = pareto_front(
        [c for c in costs if c is not None],
        [score.rank(rows[i].figures[score.key].mean) for i in known],
    )
    rows = [row._replace(front=i in known and front[known.index(i)]) for i, row in enumerate(rows)]
    quantized = [
        (c, row) for c, row in zip(costs, rows, strict=True) if c and row.method != BASELINE
    ]
    if quantized:
        low, high = min(quantized, key=lambda p: p[0]), max(quantized, key=lambda p: p[0])
        if high[0] > _FAR_APART * low[0]:
            read = f"{score.key[:-1]}ies" if score.key.endswith("y") else f"values of {score.key}"
            warnings.append(
                f"Costs differ by {high[0] / low[0]:.1f}x ({BY_KEY[cost].title}) between quantized "
                f"rows ({low[1].label} to {high[1].label}): read {read} along with the cost."
            )
    order = sorted(range(len(rows)), key=lambda i: (costs[i] is None, -(costs[i] or 0.0)))
    ordered = tuple(rows[i] for i in order)
    return Group(title, ordered, base, tuple(warnings), own)


def _to_baseline(
    rows: list[Row], score: Figure, baseline: str, confidence: float
) -> tuple[list[Row], str | None, list[str]]:
    """The rows with their differences to one of them, its label, and what must be told of it."""
    floats = [row for row in rows if row.label == baseline] or [
        row for row in rows if row.method == BASELINE
    ]
    if not floats:
        missing = "There is no float run, so no difference to one: add a full_precision run."
        return rows, None, [missing]
    base = max(
        reversed(floats),
        key=lambda r: (len({run.seed for run in r.runs}), score.rank(r.figures[score.key].mean)),
    )
    told = f"Of {len(floats)} float rows, differences are to {base.label!r}"
    remedy = "; name another as the baseline if that is not the one."
    warnings = [told + remedy] if len(floats) > 1 else []
    against = _scores(base)
    compared = []
    for row in rows:
        own = _scores(row)
        difference = None if row is base else paired_difference(own, against, confidence)
        compared.append(row._replace(difference=difference, ratio=_ratio(own, against, score)))
    unpaired = [row.label for row in compared if row.label != base.label and not row.difference]
    if unpaired:
        names = ", ".join(unpaired[:3]) + (f" and {len(unpaired) - 3} more" * (len(unpaired) > 3))
        warnings.append(f"No seed in common with the float row: {names}; run one of its seeds.")
    return compared, base.label, warnings


def _to_plain(rows: list[Row], cost: str, confidence: float) -> list[Row]:
    """The rows with their differences to the plain row of equal cost, the nearest if several."""
    plain = [(c, row) for row in rows if row.method == PLAIN and (c := row_cost(row, cost))]

    def compared(row):
        own = row_cost(row, cost) or 0.0
        equal = [(abs(c - own), r) for c, r in plain if abs(c - own) <= _EQUAL * c]
        if row.method in (PLAIN, BASELINE) or not equal:
            return row
        _, rival = min(equal, key=lambda pair: pair[0])
        ahead = paired_difference(_scores(row), _scores(rival), confidence)
        return row._replace(rival=rival.label, ahead=ahead)

    return [compared(row) for row in rows]


def _scores(row: Row) -> dict[int, float]:
    """The score by seed; a seed that was run twice has the mean."""
    found: dict[int, list[float]] = {}
    for run in row.runs:
        found.setdefault(run.seed, []).append(run.score.value)
    return {seed: fmean(values) for seed, values in found.items()}


def _ratio(own: Mapping[int, float], against: Mapping[int, float], score: Figure) -> float | None:
    # What more is better of is a share or a gain mostly, whose ratio says little.
    seeds = own.keys() & against.keys()
    if score.higher or not seeds or min(min(own[s], against[s]) for s in seeds) <= 0:
        return None
    return fmean(own[s] / against[s] for s in seeds)


def row_cost(row: Row, cost: str) -> float | None:
    """A row's mean place on the axis of a cost; None where it has none."""
    return cost_of({k: s.mean for k, s in row.figures.items()}, cost)


def _shown(runs: Sequence[RunRecord]) -> str:
    more = f" and {len(runs) - 2} more" if len(runs) > 2 else ""
    return ", ".join(run.folder for run in runs[:2]) + more


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
