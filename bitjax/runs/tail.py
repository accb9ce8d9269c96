"""Follows the rows of a run that is under way: each reading takes what came since the last one."""

import math
import os
from collections import deque
from pathlib import Path

from bitjax.files.reading import one_line, open_file, parse_json
from bitjax.runs.files import is_number

_MOST = 1 << 16  # bytes that one reading takes; of a longer file the end tells enough
_NAMES = 50  # of figures that are kept
_NON_FINITE = ("NaN", "Infinity", "-Infinity")


class Tail:
    """The end of a `metrics.jsonl`, and what its rows say.

    Attributes:
      step: the last row's step.
      stage: the last row's stage.
      figures: the newest number of each name.
      damaged: lines that are no rows.
    """

    def __init__(self, path: Path):
        self._path = path
        self.forget()

    def forget(self) -> None:
        """Begins anew: the file is another one."""
        self.step, self.stage, self.damaged = 0, "", 0
        self.figures: dict[str, float] = {}
        self._offset, self._rest = 0, b""
        self._places: deque[tuple[float, float]] = deque(maxlen=50)  # steps and seconds of rows

    def read(self) -> None:
        """Reads what is new; a FileError tells what is wrong with the file."""
        with open_file(self._path) as file:
            size = os.fstat(file.fileno()).st_size
            if size < self._offset:
                self.forget()
            if cut := size - self._offset > _MOST:
                self._offset, self._rest = size - _MOST, b""
            file.seek(self._offset)
            new = file.read(min(size - self._offset, _MOST))
        self._offset += len(new)
        # What is behind the last line's end is the half of a row, until its other half comes.
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines[cut:]:
            self._take(line)
        if len(self._rest) > _MOST // 2:  # no row is so long
            self._rest, self.damaged = b"", self.damaged + 1

    def seconds_to(self, steps: int) -> float:
        """Seconds from the last row to the end of so many steps, at the pace of the last rows."""
        if len(self._places) < 2:
            return math.nan
        (first, began), (last, ended) = self._places[0], self._places[-1]
        return max(0.0, (ended - began) / (last - first) * (steps - last))

    def _take(self, line: bytes) -> None:
        try:
            row = parse_json(line)
            step = row["step"]
            if type(step) is not int or not 0 <= step < 1 << 53:
                raise ValueError("a step is a whole number")
        except (ValueError, TypeError, LookupError):
            self.damaged += 1
            return
        for name, value in row.items():
            known = name in self.figures or len(self.figures) < _NAMES
            if known and (is_number(value) or value in _NON_FINITE):
                self.figures[name] = float(value)
        if "loss" not in row:  # an evaluation's, which says nothing of the pace
            return
        stage, second = one_line(row.get("stage", ""), 40), row.get("seconds")
        goes_on = is_number(second) and stage == self.stage and step > self.step
        if not goes_on or (self._places and second < self._places[-1][1]):
            self._places.clear()
        if is_number(second):
            self._places.append((step, second))
        self.step, self.stage = step, stage
