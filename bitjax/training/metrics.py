"""What a run tells while it works: JSON files, rows of metrics, and a progress bar."""

import io
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.progress

from bitjax.training.disk import unwritten

# JSON has no numbers for these. Python's float() and JavaScript's Number() read the strings back.
_NON_FINITE = ("NaN", "Infinity", "-Infinity")


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Writes `obj` as strict JSON; a reader sees the old file or the new one, never a part.

    Args:
      path: the file; its folder must exist.
      obj: mappings with string keys, sequences, strings, numbers, booleans and None; arrays of
        NumPy and JAX become numbers and lists. A number that is not finite becomes one of the
        strings "NaN", "Infinity" and "-Infinity".

    Raises:
      TypeError: if something in `obj` has no JSON form.
      OSError: it could not be written; the message names the file and what is free there.
    """
    # Beside the target, because os.replace is atomic within one file system only.
    temporary = Path(f"{os.fspath(path)}.tmp")
    text = json.dumps(_plain(obj), indent=1, allow_nan=False) + "\n"
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        raise unwritten(path, len(text), error) from error


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads a file of JSON rows, such as metrics.jsonl, leaving out a half-written last one.

    Returns:
      One dict per row; "NaN", "Infinity" and "-Infinity" are floats again.

    Raises:
      ValueError: if a row that is not the last cannot be read.
    """
    lines = Path(path).read_text(errors="replace").splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # The process was killed while it wrote this row.
                break
            raise ValueError(
                f"{path}, line {number} is not JSON ({error}); remove that line."
            ) from None
        rows.append({k: float(v) if v in _NON_FINITE else v for k, v in row.items()})
    return rows


class MetricsWriter:
    """Appends rows to `metrics.jsonl`, and on request to TensorBoard's event files.

    A run that was interrupted and resumed leaves the file that an uninterrupted run leaves: call
    `rewind` with the step of the checkpoint it resumed from.

    Args:
      folder: the run's folder; made if it is not there.
      tensorboard: also write every number as a scalar for TensorBoard.

    Raises:
      ImportError: if `tensorboard` is asked for and tensorboardX is not installed.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> with MetricsWriter(folder) as writer:
      ...     writer.write(100, {"stage": "learn_bits", "loss": 0.5})
      ...     writer.write(200, {"stage": "learn_bits", "loss": float("nan")})
      ...     writer.rewind(100)
      >>> read_rows(f"{folder}/metrics.jsonl")
      [{'step': 100, 'stage': 'learn_bits', 'loss': 0.5}]
    """

    def __init__(self, folder: str | os.PathLike, *, tensorboard: bool = False) -> None:
        self.path = Path(folder) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._tensorboard = _tensorboard_writer() if tensorboard else None
        self._events = None  # Opened by the first row, so that `rewind` can come before it.
        self._purge_step: int | None = None
        if self.path.exists():
            self._keep(lambda row: True)
        self._file = self._append()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one row and hands it to the operating system, so that a kill does not lose it.

        Args:
          step: the step the values belong to; the row's first key.
          values: what `write_json` takes; numbers that are not finite become strings as there.

        Raises:
          OSError: the row could not be written; the file ends with the row before it.
        """
        row = _plain({"step": step, **values})
        self._add((json.dumps(row, allow_nan=False) + "\n").encode())
        if self._tensorboard is None:
            return
        if self._events is None:
            # The name of an event file counts seconds only: a second one would replace the first.
            self._events = self._tensorboard(
                str(self.path.parent),
                purge_step=self._purge_step,
                filename_suffix=f".{time.time_ns()}",
            )
        for name in values:
            if isinstance(row[name], int | float) or row[name] in _NON_FINITE:
                self._events.add_scalar(name, float(row[name]), step)

    def _append(self) -> io.FileIO:
        return io.FileIO(self.path, "a")  # No buffer, which would keep what a full disk refused.

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
        self._purge_step = step + 1
        if self._events is not None:
            self._events.close()
            self._events = None

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        text = self.path.read_text(errors="replace")
        rows = [row for row in read_rows(self.path) if wanted(row)]
        kept = "".join(json.dumps(_plain(row), allow_nan=False) + "\n" for row in rows)
        if kept != text:
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(kept)
            os.replace(temporary, self.path)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Progress:
    """Shows how far a run is: a bar on a terminal, a line every now and then in a log.

    Args:
      every: seconds between two lines where the output is not a terminal; each stage also ends
        with one.
      enabled: False shows nothing: for all but one of several processes.
      console: where to show it; standard output unless given.

    Example:
      >>> with Progress() as progress:
      ...     progress.stage("learn_bits", steps=2)
      ...     progress.update(1, loss=0.61, bits=7.5)
      ...     progress.update(2, loss=0.25, accuracy=0.93, bits=6.0)
      learn_bits 2/2  loss 0.25  accuracy 93.00%  bits 6.00  0:00 left
    """

    def __init__(
        self,
        *,
        every: float = 15.0,
        enabled: bool = True,
        console: rich.console.Console | None = None,
    ) -> None:
        self._console = console or rich.console.Console(soft_wrap=True, highlight=False)
        self._enabled = enabled
        self._bar = None
        if enabled and self._console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(bar_width=20),
                rich.progress.TextColumn("{task.fields[text]}"),
                console=self._console,
            )
        self._every = 0.1 if self._bar is not None else every
        self._task: rich.progress.TaskID | None = None
        self._name = ""
        self._steps = self._done = self._first = 0
        self._values: dict[str, Any] = {}
        self._started = self._shown_at = time.monotonic()
        self._shown_step = 0

    def stage(self, name: str, steps: int, *, done: int = 0) -> None:
        """Begins a stage of `steps` steps, of which a resumed run has `done` behind it."""
        self._finish()
        self._name, self._steps, self._done, self._first = name, steps, done, done
        self._values = {}
        # The first line of a log comes after `every` seconds too, not at the first step.
        self._started = self._shown_at = time.monotonic()
        self._shown_step = done
        if self._bar is not None:
            self._task = self._bar.add_task(name, total=steps, completed=done, text=self._text())

    def update(
        self, step: int, *, loss: Any = None, accuracy: Any = None, bits: Any = None
    ) -> None:
        """Notes how far the stage is.

        Args:
          step: steps of this stage that are done.
          loss: of the last step; like the two others a number or an array of one, which is
            fetched from its device only when it is shown.
          accuracy: a fraction; shown until the next one is given.
          bits: average bits per element; shown until the next one is given.
        """
        self._done = step
        given = {"loss": loss, "accuracy": accuracy, "bits": bits}
        self._values |= {name: value for name, value in given.items() if value is not None}
        if time.monotonic() - self._shown_at >= self._every:
            self._show()

    def _text(self) -> str:
        parts = [f"{self._done}/{self._steps}"]
        formats = {"loss": "loss {:.4g}", "accuracy": "accuracy {:.2%}", "bits": "bits {:.2f}"}
        for name, form in formats.items():
            if name in self._values:
                parts.append(form.format(float(np.asarray(self._values[name]))))
        if self._done > self._first:
            pace = (time.monotonic() - self._started) / (self._done - self._first)
            minutes, seconds = divmod(round(pace * (self._steps - self._done)), 60)
            hours, minutes = divmod(minutes, 60)
            clock = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
            parts.append(f"{clock} left")
        return "  ".join(parts)

    def _show(self) -> None:
        self._shown_at, self._shown_step = time.monotonic(), self._done
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, text=self._text())
        elif self._enabled:
            self._console.print(f"{self._name} {self._text()}", markup=False)
            self._console.file.flush()

    def _finish(self) -> None:
        if self._shown_step != self._done:
            self._show()

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._finish()
        if self._bar is not None:
            self._bar.stop()


def _tensorboard_writer() -> Callable[..., Any]:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ImportError(
            "TensorBoard files need tensorboardX: pip install 'bitjax[tensorboard]'."
        ) from None
    return SummaryWriter


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
