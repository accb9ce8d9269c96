"""Draws runs that are under way as a table for the terminal: a word for each state, and why."""

import math
import os
from collections import Counter
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from bitjax.files.reading import printable
from bitjax.report.figures import TERMS, usual_text
from bitjax.report.terminal import bar
from bitjax.runs.watch import Seen

# By how soon a reader must know. A word says the state; its colour only repeats it.
STATES = {
    "failed": "red",
    "damaged": "red",
    "killed": "yellow",
    "silent": "yellow",
    "stopped": "yellow",
    "running": "cyan",
    "waiting": "",
    "finished": "green",
}
_ORDER = ("running", *(state for state in STATES if state != "running"))
_HEAD = ("state", "progress", "loss", "score", "bits", "time")
_LONGEST = 60  # letters of a folder's name in a line below the table


def clock(seconds: float) -> str:
    """Seconds as `1:02:03`; nothing where they are unknown."""
    if not math.isfinite(seconds) or seconds >= 1e9:
        return ""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def live_table(
    runs: Sequence[Seen], *, width: int, lines: int | None = None, plain: bool = False
) -> Group:
    """The runs as a table, those under way first, and below it what is wrong with the others.

    A line holds `width` letters; of a longer name the end is shown. Runs beyond `lines` are
    counted, without it all are shown. `plain` bars are made without Unicode.
    """
    shared = _shared([run.folder for run in runs])
    runs = sorted(runs, key=lambda run: _ORDER.index(run.status))
    told = [run for run in runs if run.reason]
    reasons = len(told) if lines is None else min(len(told), max(1, (lines - 6) // 3))
    room = len(runs) if lines is None else max(1, lines - reasons - 6)
    rows = [_cells(run, plain) for run in runs[:room]]
    others = sum(
        max(map(len, [name, *cells])) + 1 for name, *cells in zip(_HEAD, *rows, strict=True)
    )
    most = max(12, width - others - 2)
    table = Table(box=SIMPLE_HEAD, padding=(0, 0))
    table.add_column("run", no_wrap=True)
    for name in _HEAD:
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    for run, (state, *cells) in zip(runs, rows, strict=False):
        name = _end(run.folder[shared:], most, plain)
        table.add_row(Text(name), Text(state, STATES[state]), *map(Text, cells))
    counts = Counter(run.status for run in runs)
    words = ", ".join(f"{counts[state]} {state}" for state in _ORDER if counts[state])
    more = f" ({len(runs) - room} more than fit)" if room < len(runs) else ""
    below = [Text(f"{words or 'no runs yet'}{more}")]
    for run in told[:reasons]:
        name = _end(run.folder[shared:], _LONGEST, plain)
        line = Text(f"{name} {run.status}: {printable(run.reason)}")
        line.no_wrap, line.overflow = lines is not None, "ellipsis"
        below.append(line)
    return Group(table, *below)


def _shared(names: Sequence[str]) -> int:
    """Letters of the folder that all runs lie in, which tell nothing."""
    folder = os.path.commonprefix(names).rpartition("/")
    return len(folder[0] + folder[1])


def _end(name: str, most: int, plain: bool) -> str:
    """A name's end, which tells runs apart, where it is too long."""
    cut = "..." if plain else "…"
    return name if len(name) <= most else cut + name[len(name) - most + len(cut) :]


def _cells(run: Seen, plain: bool) -> list[str]:
    """What a row says of a run, behind its name."""
    if run.steps:
        share = run.step / run.steps
        progress = f"{bar(share, 6, plain=plain)} {math.floor(100 * share):3.0f} %"
    else:
        progress = f"step {run.step}" if run.step else ""
    bits = run.figures.get("bits", math.nan)
    return [
        run.status,
        progress,
        f"{run.figures['loss']:.4g}" if "loss" in run.figures else "",
        _score(run),
        "" if math.isnan(bits) else f"{bits:.2f}",
        clock(run.seconds) if run.status == "finished" else _left(run),
    ]


def _left(run: Seen) -> str:
    return f"{clock(run.left)} left" if clock(run.left) else ""


def _score(run: Seen) -> str:
    """The score; until the run is finished its last evaluation's, or `~` and the batch's."""
    figures, score = run.figures, run.score
    if score is None:  # of a version that did not say: the figure that is known for a score
        name = next((name for name in TERMS if name in figures and name != "loss"), "")
        return f"~{usual_text(name, figures[name])}" if name else ""
    if not math.isnan(score.value):
        return printable(score.shown)
    for key, sign in ((f"eval_{score.name}", ""), (score.name, "~")):
        if key in figures:
            return printable(sign + score.form.format(figures[key]))
    return ""
