"""Watches runs from their folders: a look at them reads only what is new.

A look takes one `stat` for each file that may have changed, and opens those that have. It writes
nothing and takes no lock, so a run does not notice that it is watched.
"""

import contextlib
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bitjax.files.reading import FileError, find_file, one_line, printable
from bitjax.runs.exports import EXPORT, LISTED
from bitjax.runs.files import PLAN, Unfit, number_of, read_object
from bitjax.runs.lock import LOCK, holder_of, locked_files
from bitjax.runs.records import Score, score_of
from bitjax.runs.tail import Tail

_CONFIG, _RESULT, _ROWS = "config.json", "result.json", "metrics.jsonl"
_EXPORTS = f"{EXPORT}/{LISTED}"
_OWN = ("checkpoints", "best", "wandb", EXPORT)  # folders inside a run's that hold no runs
_SILENT = 600.0  # seconds without a row after which a run of another machine may have ended
_LATE = 120.0  # seconds without a row after which a run says so
Stamp = tuple[int, int, int]  # inode, time of the last change in nanoseconds, size


class Seen(NamedTuple):
    """A run as it was found.

    Attributes:
      folder: its folder, as a terminal can show it.
      status: `running`, `finished`, `stopped` (it can be resumed), `failed`, `killed` (no process
        has it, and it did not say why), `silent` (another machine's, without news), `waiting` (not
        begun) or `damaged`.
      reason: why it is not running, or what is wrong with its files; one line.
      stage: the stage that it is in.
      step: steps that are done, as far as its rows tell.
      steps: steps of the whole run; 0 where the run did not say.
      figures: numbers of its last rows by name, which need not be finite.
      score: the figure that it is judged by, NaN until the run is finished; None if unknown.
      left: seconds that are left at the pace of its last rows; NaN if unknown.
      seconds: seconds that a finished run took; else NaN.
      stamps: what changes whenever its result or the record of its exports does.
    """

    folder: str
    status: str
    reason: str = ""
    stage: str = ""
    step: int = 0
    steps: int = 0
    figures: Mapping[str, float] = {}
    score: Score | None = None
    left: float = math.nan
    seconds: float = math.nan
    stamps: tuple[Stamp | None, ...] = ()


class Watch:
    """Looks at the runs below some folders again and again.

    Example:
      >>> seen = Watch(["results/digits/lsq"]).look()
      >>> [(run.folder[-5:], run.status) for run in seen][:2]
      [('seed0', 'finished'), ('seed1', 'finished')]
    """

    def __init__(self, folders: Sequence[str | os.PathLike]):
        self._roots = [Path(folder) for folder in folders]
        self._runs: dict[Path, _Run] = {}
        self._listed: dict[Path, tuple[int, bool, list[Path]]] = {}

    def look(self) -> list[Seen]:
        """The runs as they are now, by folder."""
        locked, now = locked_files(), time.time()
        seen: dict[Path, Seen] = {}
        for folder, wrong in self._folders(now):
            if wrong:
                seen[folder] = Seen(_shown(folder), "damaged", wrong)
            else:
                seen[folder] = self._runs.setdefault(folder, _Run(folder)).look(locked, now)
        return [seen[folder] for folder in sorted(seen)]

    def _folders(self, now: float) -> Iterator[tuple[Path, str]]:
        """The folders of runs, and with the reason those that cannot be looked into."""
        left, done = list(self._roots), set()
        while left:
            folder = left.pop()
            if folder in done:
                continue
            done.add(folder)
            try:
                changed = os.stat(folder).st_mtime_ns
                known = self._listed.get(folder)
                if known is None or known[0] != changed:
                    # What has just changed may change again without another time: look once more.
                    settled = changed if now - changed / 1e9 > 2 else 0
                    known = self._listed[folder] = (settled, *_list(folder))
            except FileNotFoundError:
                continue
            except OSError as error:
                yield folder, f"the folder cannot be looked into ({error.strerror})"
                continue
            left += known[2]
            if known[1]:
                yield folder, ""


def _list(folder: Path) -> tuple[bool, list[Path]]:
    """Whether a folder is a run's, and the folders in it that may hold others."""
    with os.scandir(folder) as entries:
        found = {entry.name: entry for entry in entries}
    is_run = _CONFIG in found or _RESULT in found
    hidden = _OWN if is_run else ()
    inside = [
        folder / name
        for name, entry in found.items()
        if not name.startswith(".") and name not in hidden and entry.is_dir(follow_symlinks=False)
    ]
    return is_run, inside


class _Run:
    """What is known of a run, and which of its files have been read."""

    def __init__(self, folder: Path):
        self.folder, self.shown = folder, _shown(folder)
        self.rows = Tail(folder / _ROWS)
        self.stamps: dict[str, Stamp | None] = {}
        self.wrong: dict[str, str] = {}  # by file
        self.plan: list[int] = []
        self.planned: Score | None = None
        self.result: Mapping[str, Any] = {}
        self.holder: tuple[int, str] | None = None

    def look(self, locked: frozenset[int] | None, now: float) -> Seen:
        """The run as it is now."""
        self.read(_RESULT, self.take_result)
        self.read(_EXPORTS, lambda: None)
        if self.result.get("status") != "finished":  # else no row comes, and the result says all
            self.read(_CONFIG, self.take_config)
            self.read(PLAN, self.take_plan)
            self.read(_ROWS, self.take_rows)
            self.read(LOCK, self.take_lock)
        rows, score = self.rows, self.planned
        since = now - (self.stamps.get(_ROWS) or (0, 0, 0))[1] / 1e9
        status, reason = self.status(locked, since)
        steps, figures = sum(self.plan), dict(rows.figures)
        step, seconds, left = min(rows.step, steps or rows.step), math.nan, math.nan
        if status == "finished":
            step = steps = int(_number(self.result, "steps", otherwise=max(step, steps)))
            seconds = _number(self.result, "wall_seconds")
            figures = {"bits": _number(self.result, "bits", "all", "integer")}
            with contextlib.suppress(Unfit):  # which `wrong` has
                score = score_of(self.result)
        elif status == "running" and steps:
            left = max(rows.seconds_to(steps) - since, 0.0)  # NaN stays
        damaged = f"{rows.damaged} damaged lines in {_ROWS}" if rows.damaged else ""
        reason = "; ".join(filter(None, (reason, *self.wrong.values(), damaged)))
        stamps = self.stamps[_RESULT], self.stamps[_EXPORTS]
        return Seen(
            *(self.shown, status, reason, rows.stage, step, steps, figures, score, left, seconds),
            stamps,
        )

    def read(self, name: str, reader: Callable[[], None]) -> None:
        """Reads a file if it is another one than at the last look; notes what is wrong with it."""
        before, self.stamps[name] = self.stamps.get(name), None
        try:
            self.stamps[name] = stamp = _stamp(self.folder / name)
            if stamp == before:
                return
            self.wrong.pop(name, None)
            if name == _ROWS and not (stamp and before and stamp[0] == before[0]):
                self.rows.forget()
            reader()
        except Unfit as error:
            self.wrong[name] = str(error).removeprefix("is damaged: ")
        except FileError as error:
            self.wrong[name] = f"{name} {error.what}"

    def take_config(self) -> None:
        """What is wrong with the config; nothing of it is shown."""
        if self.stamps[_CONFIG] is not None:
            read_object(self.folder / _CONFIG)

    def take_plan(self) -> None:
        """The steps and the score of a run that has begun."""
        self.plan, self.planned = [], None
        if self.stamps[PLAN] is None:
            return
        value = read_object(self.folder / PLAN)
        stages = value.get("stages")
        for stage in stages if isinstance(stages, list) else ():
            steps = stage.get("steps") if isinstance(stage, Mapping) else None
            if type(steps) is not int or not 0 <= steps < 1 << 53:
                raise Unfit(f"{PLAN} has a stage without steps")
            self.plan.append(steps)
        if isinstance(score := value.get("score"), Mapping):
            self.planned = score_of({"score": {**score, "value": 0.0}})._replace(value=math.nan)

    def take_result(self) -> None:
        """How the run has ended."""
        self.result = {}
        if self.stamps[_RESULT] is None:
            return
        self.result = read_object(self.folder / _RESULT)
        if self.result.get("status") == "finished":
            score_of(self.result)

    def take_rows(self) -> None:
        """The rows that are new."""
        if self.stamps[_ROWS] is not None:
            self.rows.read()

    def take_lock(self) -> None:
        """The process that has the run, or had it."""
        self.holder = holder_of(self.folder)

    def status(self, locked: frozenset[int] | None, since: float) -> tuple[str, str]:
        """The run's status and why; `since` are the seconds since its last row."""
        said = self.result.get("status")
        if said == "finished":
            return "finished", ""
        begun = bool(self.stamps[_ROWS])
        news = f"no row for {since:.0f} s" if begun and since > _LATE else ""
        runs, where = self.runs(locked, since)
        if runs:
            return "running", "; ".join(filter(None, (where, news)))
        if said in ("stopped", "failed"):
            return str(said), one_line(self.result.get("error") or "it did not say why")
        if said is not None or _RESULT in self.wrong:
            return "damaged", "" if said is None else f"its status is {one_line(said, 40)!r}"
        if runs is None:
            return "silent", "; ".join(filter(None, (where, news)))
        if not begun and self.stamps[PLAN] is None:
            return "waiting", ""
        return "killed", "no process has it; its command goes on from the last checkpoint"

    def runs(self, locked: frozenset[int] | None, since: float) -> tuple[bool | None, str]:
        """Whether a process has the folder, None if that cannot be known; on which other host."""
        stamp = self.stamps[LOCK]
        if stamp is None:
            return False, ""
        if self.holder is not None and self.holder[1] != socket.gethostname():
            return True if since < _SILENT else None, f"on {printable(self.holder[1])}"
        if locked is not None:
            return stamp[0] in locked, ""
        return self.holder is not None and _lives(self.holder[0]), ""


def _stamp(path: Path) -> Stamp | None:
    """What tells that a file was changed; None of one that is not there."""
    try:
        found = find_file(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _lives(number: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def _number(value: Mapping[str, Any], *keys: str, otherwise: float = math.nan) -> float:
    try:
        return number_of(value, *keys)
    except Unfit:
        return otherwise


def _shown(folder: Path) -> str:
    # A folder's name is bytes, of any encoding.
    return printable(os.fsencode(folder).decode("utf-8", "replace"))
