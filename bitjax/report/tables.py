"""Writes a comparison as Markdown, CSV, JSON, and a table for the terminal."""

import csv
import io
from collections.abc import Collection, Sequence
from typing import Any

from rich.table import Table

from bitjax.report.comparison import Comparison, Group, Row
from bitjax.report.figures import BY_KEY, CACHE, FIGURES, Figure, figures_of
from bitjax.report.statistics import Difference, Summary
from bitjax.report.terminal import Column, aligned, table_of

# Figures of a terminal's table beside the score and the cost; the higher, the sooner left out.
_TERMINAL = {"bits_weights": 3, "bits_activations": 4, "bits_inner": 6, CACHE: 5}
_HEAD = ("group", "row", "method", "config", "seed", "commit", "device", "folder")


def number(summary: Summary | None, figure: Figure) -> str:
    """Mean and spread in a figure's unit; the spread is left out where it would show as zero."""
    if summary is None:
        return ""
    form = f".{figure.digits}f"
    text = format(summary.mean / figure.scale, form)
    spread = format((summary.std or 0.0) / figure.scale, form)
    return f"{text} ± {spread}" if float(spread) else text


def difference(value: Difference | None, score: Figure) -> str:
    """A difference in the score's unit, with its interval and its number of pairs."""
    if value is None:
        return ""
    form, ends = f".{score.digits}f", ""
    if value.low is not None and value.high is not None:
        low, high = (format(end / score.scale, form) for end in (value.low, value.high))
        ends = f" [{low}, {high}]"
    return f"{format(value.mean / score.scale, '+' + form)}{ends} ({len(value.seeds)})"


def markdown(comparison: Comparison, columns: Collection[str] | None = None) -> str:
    """A table for each group, with its warnings below, and the folders that are left out.

    Args:
      comparison: The comparison to show.
      columns: Keys of the figures to show beside the score; all, if None.
    """
    parts = []
    for group in comparison.groups:
        shown = (*group.own[1:], *FIGURES)
        keys = [f for f in shown if columns is None or f.key in columns]
        keys = [f for f in keys if any(f.key in row.figures for row in group.rows)]
        keys = [f for f in keys if "fractional" not in f.key or _learned(group, f)]
        shared = _shared(group)
        folder = group.rows[0].label[:shared]
        notes = [f"- {_cell(warning)}" for warning in group.warnings]
        if folder:
            notes.append(f"- Settings are those of {_code(folder)}.")
        front = f"- Front: of {_cell(group.score.noun)} against {BY_KEY[comparison.cost].title}"
        notes.append(front + ("." if group.score.higher else "; less of both is better."))
        table = "\n".join(_lines(group, keys, _level(comparison)))
        parts += [f"## {_cell(group.title)}", table, "\n".join(notes)]
    if comparison.skipped:
        left = [f"- {_code(s.folder)}: {_cell(s.reason)}" for s in comparison.skipped]
        parts += ["Not compared:", "\n".join(left)]
    return "\n\n".join(parts) + "\n"


def _lines(group: Group, keys: Sequence[Figure], level: str) -> list[str]:
    """A group's table in Markdown: the score, what it is to the float row's, the figures."""
    score, skip = group.score, _shared(group)
    head = ["method", "setting", "seeds", _cell(score.title), f"difference to float, {level}"]
    rivals = any(row.ahead for row in group.rows)
    head += [*_ratio_head(group), *["to uniform, equal cost"] * rivals]
    head += [*(_cell(f.title) for f in keys), "front"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in group.rows:
        cells = [
            _cell(row.method),
            _code(row.label[skip:]),
            str(row.figures[score.key].count),
            number(row.figures[score.key], score),
            *_to_float(row, group),
            *[difference(row.ahead, score)] * rivals,
            *(number(row.figures.get(f.key), f) for f in keys),
            "yes" if row.front else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _ratio_head(group: Group) -> list[str]:
    """The title of the column of ratios, in a group that has any."""
    return ["x float"] if any(row.ratio is not None for row in group.rows) else []


def _to_float(row: Row, group: Group) -> list[str]:
    """A row's cells of the difference to the baseline, and of the ratio where there is a column."""
    own = row.label == group.baseline
    cells = ["baseline" if own else difference(row.difference, group.score)]
    ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
    return cells + [ratio] * len(_ratio_head(group))


def csv_text(comparison: Comparison) -> str:
    """A line for each run, its figures in their own units (fractions, bits, bytes, operations)."""
    text = io.StringIO()
    head = [*_HEAD, *(f.key for f in comparison.figures)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_plain_cell, head))
    for entry in _run_values(comparison):
        writer.writerow(_plain_cell(entry.get(key, "")) for key in head)
    return text.getvalue()


def _plain_cell(value: Any) -> Any:
    # A spreadsheet takes what begins so for a formula, which may run programs; numbers stay.
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@"))
    return f"'{value}" if formula else value


def _run_values(comparison: Comparison) -> list[dict[str, Any]]:
    """One flat mapping for each run of a comparison."""
    return [
        dict(
            zip(_HEAD, (group.title, row.label, run.method, run.config, run.seed, run.commit,
                        run.device, run.folder), strict=True)
        )
        | figures_of(run)
        for group in comparison.groups
        for row in group.rows
        for run in row.runs
    ]  # fmt: skip


def json_value(comparison: Comparison) -> dict[str, Any]:
    """All of it as plain data: groups with rows and their statistics, runs, what was left out."""
    return {
        "cost": comparison.cost,
        "confidence": comparison.confidence,
        "figures": {f.key: f.about for f in comparison.figures},
        "groups": [
            {
                "title": group.title,
                "score": group.score.key,
                "higher_is_better": group.score.higher,
                "baseline": group.baseline,
                "warnings": list(group.warnings),
                "rows": [_row_value(row) for row in group.rows],
            }
            for group in comparison.groups
        ],
        "runs": _run_values(comparison),
        "skipped": [skipped._asdict() for skipped in comparison.skipped],
    }


def terminal(group: Group, comparison: Comparison, width: int | None = None) -> Table:
    """A table of rich, with as many columns as a line of `width` holds; files have all of them."""
    score, cost, rows = group.score, BY_KEY[comparison.cost], group.rows
    skip = _shared(group)
    compared = [aligned(texts) for texts in zip(*(_to_float(r, group) for r in rows), strict=True)]
    titles = ["to float", *_ratio_head(group)]
    columns = [
        Column("", ["*" if row.front else "" for row in rows]),  # first, so that nothing cuts it
        Column("setting", [row.label[skip:] for row in rows], folds=True),
        Column(score.title, aligned([number(row.figures[score.key], score) for row in rows])),
        *map(Column, titles, compared, (0, 2)),
        *(_means(rows, key, rank) for key, rank in _TERMINAL.items() if key != cost.key),
        _means(rows, cost.key, 0),
        *(_means(rows, key, rank) for key, rank in (("steps", 7), ("wall_seconds", 8))),
    ]
    better = "" if score.higher else f", less {score.noun} is better"
    title = f"{group.title}; differences with their {_level(comparison)}{better}, * is the front"
    return table_of(title, columns, width)


def _means(rows: Sequence[Row], key: str, rank: int) -> Column:
    figure = BY_KEY[key]
    return Column(figure.title, [number(_mean(row, key), figure) for row in rows], rank)


def _shared(group: Group) -> int:
    """Letters that all names begin with, a folder of configs say: they tell nothing in a table."""
    return len(group.shared)


def _mean(row: Row, key: str) -> Summary | None:
    summary = row.figures.get(key)
    return summary and summary._replace(std=None)


def _row_value(row: Row) -> dict[str, Any]:
    return {
        "label": row.label,
        "method": row.method,
        "config": row.config,
        "seeds": sorted({run.seed for run in row.runs}),
        "figures": {key: summary._asdict() for key, summary in row.figures.items()},
        "difference": row.difference._asdict() if row.difference else None,
        "ratio": row.ratio,
        "rival": row.rival,
        "ahead": row.ahead._asdict() if row.ahead else None,
        "front": row.front,
    }


def _learned(group: Group, figure: Figure) -> bool:
    """Whether bits before rounding say something that bits after it do not."""
    key = figure.key.removesuffix("_fractional")
    both = [(row.figures.get(key), row.figures.get(figure.key)) for row in group.rows]
    return any(a and b and abs(a.mean - b.mean) >= 0.005 for a, b in both)


def _level(comparison: Comparison) -> str:
    return f"{100 * comparison.confidence:g} % interval (pairs)"


def _cell(text: str) -> str:
    # Markdown passes HTML on, a bar or a line's end ends a cell, and a link may be a picture's.
    for raw, safe in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"),
                      ("](", "]\\("), ("][", "]\\[")):  # fmt: skip
        text = text.replace(raw, safe)
    return " ".join(text.split())


def _code(text: str) -> str:
    # Nothing is HTML here, but a backtick would end it.
    return "`" + " ".join(text.replace("`", "'").replace("|", "\\|").split()) + "`"
