"""Reads from their folders how far a sweep's runs are, and shows it."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from bitjax.files.reading import FileError, one_line, open_file, parse_json, printable
from bitjax.launch.grid import SweepRun, read_json
from bitjax.report.figures import TERMS, usual_text
from bitjax.report.live import live_table
from bitjax.runs.files import Unfit, is_number, number_of
from bitjax.runs.records import Score, score_of
from bitjax.runs.watch import Seen, Watch

LOG = "log.txt"
_LOGGED = {"step", "loss", "task_loss", "bits", "seconds"}  # of every task


def last_row(folder: Path) -> dict[str, Any]:
    """The last whole row of training metrics; of a long file only the end is read."""
    for line in reversed(_end(folder / "metrics.jsonl")):
        try:
            row = parse_json(line)
        except ValueError:
            continue  # half of a row, at either end
        if isinstance(row, dict) and "loss" in row and is_number(row.get("step")):
            return row
    return {}


def _end(path: Path) -> list[str]:
    """The last lines of a text, the first perhaps not whole; none where there is no such file."""
    try:
        with open_file(path) as file:
            file.seek(max(0, file.seek(0, 2) - 8192))
            return file.read(8192).decode(errors="replace").splitlines()
    except (FileError, OSError):
        return []


def _progress_text(run: SweepRun) -> str:
    """Steps, loss, a figure of the task and bits of a run that is under way."""
    row = {key: value for key, value in last_row(run.folder).items() if is_number(value)}
    parts = [f"{row.get('step', 0)}/{run.steps}"]
    if "loss" in row:
        parts.append(f"loss {row['loss']:.3g}")
    # What is logged beside these is the task's; of several the one that is known for a score.
    order = [*TERMS, *sorted(row)]
    if own := sorted(row.keys() - _LOGGED, key=order.index):
        parts.append(f"{own[0]} {usual_text(own[0], row[own[0]])}")
    if "bits" in row:
        parts.append(f"bits {row['bits']:.2f}")
    return "  ".join(parts)


def result_text(run: SweepRun) -> str:
    """Score, bits and time of a run that is finished."""
    name, value, bits, seconds = _figures(run)
    return f"{name} {value}  bits {bits}  {seconds} s"


def error_of(run: SweepRun) -> str:
    """Why a run failed, in a line: of its result, else the last line of its log."""
    result = read_json(run.folder / "result.json")
    if result.get("status") == "failed":
        return one_line(result.get("error", ""), 2000)
    lines = [line for line in _end(run.folder / LOG) if line.strip()]
    return one_line(lines[-1], 2000) if lines else "it left no log"


def _result_table(runs: Sequence[SweepRun], statuses: Mapping[str, str]) -> Table:
    """Status, score, bits and seconds of every run."""
    found = {run.name: _figures(run) for run in runs if statuses[run.name] == "finished"}
    scores = {name for name, *_ in found.values()}
    title = "score" if len(scores) != 1 else next(iter(scores))
    table = Table("run", "status")
    for name in (title, "bits", "seconds"):
        table.add_column(escape(name), justify="right")
    for run in runs:
        name, value, *others = found.get(run.name, ("", "", "", ""))
        text = value if name == title else f"{name} {value}".strip()
        table.add_row(run.name, statuses[run.name], escape(text), *others)
    return table


def _figures(run: SweepRun) -> tuple[str, str, str, str]:
    """The score's name and value, bits and seconds; what a result lacks is not a number."""
    result = read_json(run.folder / "result.json")
    try:
        score = score_of(result)
    except Unfit:
        score = Score("score", math.nan, True, "{:.2f}")
    others = []
    for keys in (("bits", "all", "integer"), ("wall_seconds",)):
        try:
            others.append(number_of(result, *keys))
        except Unfit:
            others.append(math.nan)
    bits, seconds = others
    return score.name, score.shown, f"{bits:.2f}", f"{seconds:.0f}"


class SweepProgress:
    """Shows all runs of a sweep: a table that moves on a terminal, lines in a log."""

    def __init__(
        self, runs: Sequence[SweepRun], *, every: float = 30.0, console: Console | None = None
    ):
        self._runs = {run.name: run for run in runs}
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._every = 1.0 if self._console.is_terminal else every
        self._shown_at = time.monotonic()
        self.statuses = {run.name: "waiting" for run in runs}
        self._watch = Watch([run.folder for run in runs])
        self._live: Live | None = None
        if self._console.is_terminal:
            # Refreshed by hand: a thread of rich's own would be copied into every child process.
            self._live = Live(console=self._console, auto_refresh=False)

    @property
    def unfinished(self) -> bool:
        """Whether any run is not finished."""
        return any(status != "finished" for status in self.statuses.values())

    def note(self, name: str, status: str, text: str = "") -> None:
        """Notes that a run has another status, and says so."""
        self.statuses[name] = status
        self.say(f"{name}: {status}{'  ' + text if text else ''}")

    def say(self, text: str) -> None:
        """Prints a line above whatever moves."""
        self._console.print(text, markup=False)
        self._console.file.flush()

    def tick(self) -> None:
        """Shows how far the runs are, if it is time to."""
        if time.monotonic() - self._shown_at < self._every:
            return
        self._shown_at = time.monotonic()
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            return
        for name, status in self.statuses.items():
            if status == "running":
                self.say(f"{name}: {_progress_text(self._runs[name])}")

    def _table(self) -> Group:
        found = {run.folder: run for run in self._watch.look()}
        seen = []
        for name, run in self._runs.items():
            own = found.get(printable(run.folder), Seen(name, "waiting"))
            status, steps = self.statuses[name], own.steps or run.steps
            seen.append(own._replace(folder=name, status=status, reason="", steps=steps))
        width, lines = self._console.size
        return live_table(seen, width=width, lines=lines, plain=self._console.options.ascii_only)

    def __enter__(self) -> "SweepProgress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def summarize(self) -> None:
        """Prints the table of results, and for each run that failed why and where to look."""
        runs = list(self._runs.values())
        # Where nobody looks at a terminal, a table need not fit into one.
        width = self._console.width if self._console.is_terminal else max(120, self._console.width)
        wide = Console(file=self._console.file, highlight=False, width=width)
        wide.print(_result_table(runs, self.statuses))
        for run in runs:
            if self.statuses[run.name] == "failed":
                self.say(f"{run.name} failed: {error_of(run)}")
                if (run.folder / LOG).exists():
                    self.say(f"  log: {run.folder / LOG}")
