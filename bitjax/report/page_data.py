"""The plain data of the page: what its script draws, as short as a page needs it.

Numbers have six digits and curves as many points as leave a page of thousands of runs readable.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from bitjax.report.comparison import BASELINE, Comparison, Group, Row
from bitjax.report.figures import BY_KEY, COSTS, Figure, axis_title, figures_of, key_of
from bitjax.report.files import rows_of
from bitjax.runs.exports import EXPORT
from bitjax.runs.files import SiteBits, is_number
from bitjax.runs.records import RunRecord

_POINTS, _LEAST, _ALL = (
    120,
    24,
    100_000,
)  # of a curve at most and at least, and of all runs' together
_CURVES = ("bits", "loss", "kl")  # beside the score
_KEPT = ("result.json", "config.json", "bits.csv", "metrics.jsonl", "distortion.json")
_LEARNED_FROM = 8.0  # bits where a rule of learned ones does not say
_FLOAT = 32.0
_LONGEST, _SLOW = 120, re.compile(r"\)[*+{]")  # of patterns of sites and of their names
_RUNNING = ("steps", "wall_seconds")


def page_data(comparison: Comparison, commands: Mapping[str, str], beside: str) -> dict[str, Any]:
    """The plain data that the page's script draws; `commands` may lack a run's folder."""
    site_sets: dict[tuple[tuple[str, str], ...], int] = {}
    machines: dict[str, int] = {}
    runs: list[dict[str, Any]] = []
    groups = []
    shown = comparison.figures
    count = sum(len(row.runs) for group in comparison.groups for row in group.rows)
    points = max(_LEAST, min(_POINTS, _ALL // count))
    for place, group in enumerate(comparison.groups):
        rows = []
        for number, row in enumerate(group.rows):
            first = len(runs)
            for run in row.runs:
                names = tuple((s.site, s.role) for s in run.sites)
                versions = ", ".join(f"{k} {v}" for k, v in run.versions.items())
                machine = f"{run.device} ({versions})"
                about = {
                    "group": place,
                    "row": number,
                    "machine": machines.setdefault(machine, len(machines)),
                    "command": commands.get(run.folder, ""),
                    "sites": site_sets.setdefault(names, len(site_sets)),
                    "files": _files(run, beside),
                    "links": _links(run, beside),
                }
                runs.append(about | _run(run, shown, points))
            rows.append(_row(row, group, shown, range(first, len(runs))))
        groups.append(_group(group, rows))
    return {
        "figures": [f._asdict() | {"part": _part(f)} for f in shown],
        "costs": [
            {"key": k, "title": axis_title(k), "scale": BY_KEY[k].scale}
            for k in COSTS
            if BY_KEY[k] in shown
        ],
        "cost": comparison.cost,
        "confidence": comparison.confidence,
        "float": BASELINE,
        "groups": groups,
        "runs": runs,
        "site_sets": [[list(site) for site in names] for names in site_sets],
        "machines": list(machines),
        "skipped": [s._asdict() for s in comparison.skipped],
    }


def _group(group: Group, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "title": group.title,
        "shared": group.shared,
        "score": group.score._asdict(),
        "own": [figure._asdict() for figure in group.own],
        "rows": rows,
        "baseline": group.baseline,
        "warnings": [text.replace(group.shared, "") for text in group.warnings],
    }


def _part(figure: Figure) -> str:
    """The part of a table that a figure's column is in."""
    if figure.key not in BY_KEY:
        return "accuracy"
    if figure.key in _RUNNING:
        return "run"
    if not figure.cost:
        return "speed-up"
    return "bits" if figure.key.startswith("bits_") else "cost"


def _run(run: RunRecord, shown: Sequence[Figure], points: int) -> dict[str, Any]:
    figures = figures_of(run)
    return {
        "folder": run.folder,
        "method": run.method,
        "config": run.config,
        "seed": run.seed,
        "commit": run.commit,
        "figures": [_short(figures.get(f.key)) for f in shown],
        "stages": run.stages,
        "bits": [_short(s.integer) for s in run.sites],
        "fractional": [_short(s.fractional) for s in run.sites],
        "start": start_bits(run.settings.get("rules"), run.sites),
        "curve": curve(run, points),
        "evaluated": curve(run, points, before="eval_"),
        "distortion": run.distortion,
        "notes": run.notes,
    }


def start_bits(rules: Any, sites: Sequence[SiteBits]) -> list[float | None] | None:
    """The bits that a config's rules give each site before anything is learned; None if unknown.

    Example:
      >>> site = SiteBits("conv/kernel", "kernel", 2.5, 3, 100, 10)
      >>> start_bits([[".*/kernel", {"name": "bitlength", "init": 6.0}]], [site])
      [6.0]
    """
    try:
        known = [(_quick(pattern), _bits_of(spec)) for pattern, spec in rules]
    except (TypeError, ValueError, KeyError, AttributeError, re.error, OverflowError):
        return None  # a config's file may hold anything
    if any(len(s.site) > _LONGEST for s in sites):
        return None
    return [next((b for p, b in known if p.fullmatch(s.site)), _FLOAT) for s in sites]


def _quick(pattern: str) -> re.Pattern[str]:
    # Text from elsewhere: a few repeats, none of a bracket, cannot keep a reader waiting for hours.
    if len(pattern) > _LONGEST or _SLOW.search(pattern) or sum(map(pattern.count, "*+{")) > 3:
        raise ValueError("a pattern that may take long")
    return re.compile(pattern)


def _bits_of(spec: Any) -> float | None:
    if spec is None:
        return _FLOAT
    usual = _LEARNED_FROM if spec["name"] == "bitlength" else None
    bits = spec.get("bits", spec.get("init", usual))
    return bits if is_number(bits) else None


def _place(run: RunRecord, beside: str) -> str:
    # "./" keeps a folder's name from being read as a scheme.
    return "./" + quote(os.path.relpath(run.folder, beside).replace(os.sep, "/"))


def _files(run: RunRecord, beside: str) -> dict[str, Any] | None:
    """The files of a run's model as a table, and a link for each row whose file is there."""
    if not run.files:
        return None
    head, rows = rows_of(run.files)
    there = {file.path: file.there for file in run.files}
    place = _place(run, beside)
    links = [f"{place}/{quote(row[0])}" if there.get(row[0]) else None for row in rows]
    return {"head": head, "rows": rows, "links": links}


def _links(run: RunRecord, beside: str) -> list[list[str]]:
    """Names and links of what a run's folder keeps, and of what was exported beside its model."""
    place = _place(run, beside)
    try:
        there = {*os.listdir(run.folder)}
        exported = os.listdir(os.path.join(run.folder, EXPORT)) if EXPORT in there else []
    except OSError:  # a page is made of what was read, though its folder went away meanwhile
        return []
    listed = {file.path for file in run.files}
    names = [name for name in _KEPT if name in there]
    names += [f"{EXPORT}/{name}" for name in sorted(exported) if f"{EXPORT}/{name}" not in listed]
    return [[_printable(name), f"{place}/{quote(os.fsencode(name))}"] for name in names]


def curve(run: RunRecord, points: int = _POINTS, *, before: str = "") -> dict[str, list[Any]]:
    """A run's training curves, thinned to what a picture shows: `step` and what was logged.

    With `before` they are of the keys that begin with it: `eval_` of what was evaluated on the way.
    """
    keys = (run.score.name, *(key for key in _CURVES if key != run.score.name))
    # Evaluations are rows of their own, which would be holes in every curve. The last row stays.
    rows = [row for row in run.metrics if any(before + key in row for key in keys)]
    every = max(1, math.ceil(len(rows) / points))
    rows = rows[(len(rows) - 1) % every :: every] if rows else []
    found: dict[str, list[Any]] = {"step": [row["step"] for row in rows]} if rows else {}
    for key in keys:
        values = [row.get(before + key) for row in rows]
        if any(map(is_number, values)):
            found[key_of(key)] = [_short(v, 5) for v in values]
    return found


def _row(row: Row, group: Group, shown: Sequence[Figure], runs: Sequence[int]) -> dict[str, Any]:
    summaries = [row.figures.get(f.key) for f in shown]
    return {
        "label": row.label,
        "method": row.method,
        "config": row.config,
        "runs": list(runs),
        "mean": [_short(known and known.mean) for known in summaries],
        "std": [_short(known and known.std) for known in summaries],
        "count": row.figures[group.score.key].count,
        "difference": row.difference._asdict() if row.difference else None,
        "ratio": row.ratio,
        "rival": row.rival,
        "ahead": row.ahead._asdict() if row.ahead else None,
        "front": row.front,
    }


def _short(value: Any, digits: int = 6) -> Any:
    """A number with a few digits, as a page needs no more; None if it is none or not finite."""
    if not is_number(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.{digits}g}")


def _printable(name: str) -> str:
    # A file's name is bytes, of any encoding.
    return os.fsencode(name).decode("utf-8", "replace")
