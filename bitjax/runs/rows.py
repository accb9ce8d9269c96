"""Writes JSON files and rows of metrics, and reads rows back."""

import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitjax.files.reading import FileError, one_line, parse_json, read_bytes
from bitjax.files.writing import open_to_append, unwritten, write_text
from bitjax.runs.writers import Writers

# JSON has no numbers for these. Python's float() and JavaScript's Number() read the strings back.
_NON_FINITE = ("NaN", "Infinity", "-Infinity")


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Writes `obj` as strict JSON; a reader sees the old file or the new one, never a part."""
    write_text(path, json_text(obj))


def json_text(obj: Any) -> str:
    """`obj` as strict JSON, where numbers that are not finite are strings."""
    return json.dumps(_plain(obj), indent=1, allow_nan=False) + "\n"


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads a file of JSON rows, such as metrics.jsonl, leaving out a half-written last one.

    Returns:
      One dict per row; "NaN", "Infinity" and "-Infinity" are floats again.

    Raises:
      ValueError: if a row that is not the last cannot be read.
    """
    lines = read_bytes(path).decode(errors="replace").splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        place = f"{os.fspath(path)}, line {number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            if number == len(lines):  # The process was killed while it wrote this row.
                break
            raise FileError(place, f"is not JSON ({one_line(error)})", "remove that line") from None
        if not isinstance(row, dict):
            raise FileError(place, "holds no object", "remove that line")
        rows.append({k: float(v) if v in _NON_FINITE else v for k, v in row.items()})
    return rows


class MetricsWriter:
    """Appends rows to `metrics.jsonl`, and hands their numbers to the writers that are named.

    `rewind` to the step of the checkpoint makes a resumed run leave the file of one that was not
    interrupted.
    """

    def __init__(self, folder: str | os.PathLike, writers: Sequence[str] = ()) -> None:
        self.path = Path(folder) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._writers = Writers(self.path.parent, writers)
        if self.path.exists():
            self._keep(lambda row: True)
        self._file = self._append()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one row and hands it to the operating system, so that a kill does not lose it."""
        row = _plain({"step": step, **values})
        self._add((json.dumps(row, allow_nan=False) + "\n").encode())
        numbers = {
            name: float(row[name])
            for name in values
            if isinstance(row[name], int | float) or row[name] in _NON_FINITE
        }
        self._writers.write(step, numbers)

    def _append(self) -> io.FileIO:
        # No buffer, which would keep what a full disk refused.
        return io.FileIO(open_to_append(self.path), "a")

    def _add(self, line: bytes) -> None:
        end = os.fstat(self._file.fileno()).st_size
        try:
            rest = line
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(end)
            raise unwritten(self.path, len(line), error) from error

    def rewind(self, step: int) -> None:
        """Removes the rows of later steps: a resumed run will write them again."""
        self._file.close()
        self._keep(lambda row: row["step"] <= step)
        self._file = self._append()
        self._writers.rewind(step)

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        text = read_bytes(self.path).decode(errors="replace")
        rows = read_rows(self.path)
        if bad := [n for n, row in enumerate(rows, 1) if not isinstance(row.get("step"), int)]:
            place = f"{self.path}, line {bad[0]}"
            raise FileError(place, "has no step that is a whole number", "remove that line")
        rows = [row for row in rows if wanted(row)]
        kept = "".join(json.dumps(_plain(row), allow_nan=False) + "\n" for row in rows)
        if kept != text:
            write_text(self.path, kept)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._writers.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _plain(obj: Any) -> Any:
    """`obj` in JSON's types, numbers that are not finite as strings."""
    if obj is None or isinstance(obj, bool | int | str):
        return obj
    if isinstance(obj, float):
        if math.isfinite(obj):
            return float(obj)
        return "NaN" if math.isnan(obj) else "Infinity" if obj > 0 else "-Infinity"
    if isinstance(obj, Mapping):
        for key in obj:
            if not isinstance(key, str):
                raise TypeError(f"a JSON key must be a string, got {key!r}.")
        return {key: _plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_plain(value) for value in obj]
    if hasattr(obj, "dtype") and hasattr(obj, "shape"):
        # bfloat16 and its like are no numbers to tolist(); every one of them fits a float32.
        array = np.asarray(obj)
        return _plain((array if array.dtype.kind in "biuf" else array.astype("float32")).tolist())
    raise TypeError(f"{type(obj).__name__} has no JSON form: {obj!r}.")


def thinned(rows: tuple[Mapping[str, Any], ...], most: int) -> str:
    """Rows of metrics as lines of at most `most` bytes together, evenly left out.

    Numbers have five digits. What was logged and what was evaluated are thinned each for itself,
    and the last row of both stays.

    Example:
      >>> thinned(({"step": 1, "loss": 1 / 3}, {"step": 2, "loss": 0.25}), 30)
      '{"step": 2, "loss": 0.25}\\n'
    """
    lines = [json.dumps(_plain({k: _five(v) for k, v in row.items()})) + "\n" for row in rows]
    evaluated = [any(key.startswith("eval_") for key in row) for row in rows]
    places = [[i for i, e in enumerate(evaluated) if e is kind] for kind in (False, True)]
    for every in range(max(1, sum(map(len, lines)) // most), len(rows) + 1):
        kept = sorted(i for own in places for i in own[(len(own) - 1) % every :: every])
        text = "".join(lines[i] for i in kept)
        if len(text.encode()) <= most:
            return text
    return ""


def _five(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
