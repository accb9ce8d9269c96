"""Writes a comparison as one page that needs nothing else: data, script and style are inside it.

The script (the files of `page/`, joined) draws everything from the data, and puts text only where
text goes, never as HTML. The page's security policy lets exactly this script run and nothing be
fetched, so that a run's name cannot do either.
"""

import base64
import hashlib
import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any
from urllib.parse import quote

from bitjax.report.comparison import Comparison, Group, Row
from bitjax.report.figures import BY_KEY, COSTS, Figure, axis_title, figures_of, key_of
from bitjax.report.files import rows_of
from bitjax.runs.files import is_number
from bitjax.runs.records import RunRecord

_POINTS = 120  # of a curve: more than its picture has room for
_SCRIPTS = ("base", "tables", "axes", "charts", "main")
_CURVES = ("bits", "loss")  # beside the score

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
script-src 'sha256-{script_hash}'{policy}; style-src 'sha256-{style_hash}'; base-uri 'none'; \
form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1></header>
<main id="main"><noscript>This page draws its tables with JavaScript.</noscript></main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
{reload}</body>
</html>
"""


def page(
    comparison: Comparison,
    commands: Mapping[str, str],
    *,
    title: str = "Comparison of runs",
    beside: str = ".",
    reload: str = "",
) -> str:
    """The whole page as text.

    Args:
      comparison: The comparison to show.
      commands: Shell commands that make a run again, by the run's folder.
      title: Title of the page.
      beside: The folder that the page will be in, to which its links to files are relative.
      reload: A further script, of a page that is served; it may ask the server.
    """
    style = (resources.files("bitjax.report") / "page" / "page.css").read_text("utf-8")
    script = page_script()
    return _PAGE.format(
        title=html.escape(title),
        data=_script_safe(_page_data(comparison, commands, beside)),
        script=script,
        style=style,
        script_hash=_hash(script),
        style_hash=_hash(style),
        policy=f" 'sha256-{_hash(reload)}'; connect-src 'self'" if reload else "",
        reload=f"<script>{reload}</script>\n" if reload else "",
    )


def page_script() -> str:
    """The page's script: its files in a scope of their own."""
    folder = resources.files("bitjax.report") / "page"
    parts = [(folder / f"{name}.js").read_text("utf-8") for name in _SCRIPTS]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


def _page_data(comparison: Comparison, commands: Mapping[str, str], beside: str) -> dict[str, Any]:
    """The plain data that the page's script draws; `commands` may lack a run's folder."""
    site_sets: dict[tuple[tuple[str, str], ...], int] = {}
    machines: dict[str, int] = {}
    runs: list[dict[str, Any]] = []
    groups = []
    shown = comparison.figures
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
                }
                runs.append(about | _run(run, shown))
            rows.append(_row(row, group, shown, range(first, len(runs))))
        groups.append(
            {
                "title": group.title,
                "score": group.score._asdict() | {"noun": group.score.noun},
                "rows": rows,
                "baseline": group.baseline,
                "warnings": group.warnings,
            }
        )
    return {
        "figures": [f._asdict() for f in shown],
        "costs": [
            {"key": k, "title": axis_title(k), "scale": BY_KEY[k].scale}
            for k in COSTS
            if BY_KEY[k] in shown
        ],
        "cost": comparison.cost,
        "confidence": comparison.confidence,
        "groups": groups,
        "runs": runs,
        "site_sets": [[list(site) for site in names] for names in site_sets],
        "machines": list(machines),
        "skipped": [s._asdict() for s in comparison.skipped],
    }


def _run(run: RunRecord, shown: Sequence[Figure]) -> dict[str, Any]:
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
        "curve": curve(run),
        "distortion": run.distortion,
        "notes": run.notes,
    }


def _files(run: RunRecord, beside: str) -> dict[str, Any] | None:
    """The files of a run's model as a table, and a link for each row whose file is there."""
    if not run.files:
        return None
    head, rows = rows_of(run.files)
    there = {file.path: file.there for file in run.files}
    # "./" keeps a folder's name from being read as a scheme.
    place = "./" + quote(os.path.relpath(run.folder, beside).replace(os.sep, "/"))
    links = [f"{place}/{quote(row[0])}" if there.get(row[0]) else None for row in rows]
    return {"head": head, "rows": rows, "links": links}


def curve(run: RunRecord) -> dict[str, list[Any]]:
    """A run's training curves, thinned to what a picture shows: `step` and what was logged."""
    keys = (run.score.name, *_CURVES)
    # Evaluations are rows of their own, which would be holes in every curve. The last row stays.
    rows = [row for row in run.metrics if any(key in row for key in keys)]
    every = max(1, math.ceil(len(rows) / _POINTS))
    rows = rows[(len(rows) - 1) % every :: every] if rows else []
    found: dict[str, list[Any]] = {"step": [row["step"] for row in rows]} if rows else {}
    for key in keys:
        values = [row.get(key) for row in rows]
        if any(map(is_number, values)):
            found[key_of(key)] = [_short(v) for v in values]
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
        "front": row.front,
    }


def _short(value: Any) -> Any:
    """A number with six digits, as a page needs no more; None if it is none or not finite."""
    if not is_number(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _script_safe(value: Any) -> str:
    # "</script>" or "<!--" inside a string would end the element that holds it.
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
