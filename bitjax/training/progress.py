"""Shows how far a run is: a bar on a terminal, lines in a log."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import rich.console
import rich.progress

_LOSS, _BITS = {"loss": "{:.4g}"}, {"bits": "{:.2f}"}


class Progress:
    """Shows how far a run is: a bar on a terminal, a line every now and then in a log."""

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
        self._forms: dict[str, str] = {}
        self._started: float | None = None  # when the stage's first step was done
        self._shown_at = time.monotonic()
        self._shown_step = 0

    def stage(
        self, name: str, steps: int, *, done: int = 0, forms: Mapping[str, str] | None = None
    ) -> None:
        """Begins a stage of `steps` steps, of which a resumed run has `done` behind it.

        `forms` are the formats of figures that are shown beside the loss and the bits.
        """
        self._finish()
        self._forms = {**_LOSS, **(forms or {}), **_BITS}
        self._name, self._steps, self._done, self._first = name, steps, done, done
        self._values = {}
        # The first line of a log comes after `every` seconds too, not at the first step.
        self._started, self._shown_at = None, time.monotonic()
        self._shown_step = done
        if self._bar is not None:
            self._task = self._bar.add_task(name, total=steps, completed=done, text=self._text())

    def update(self, step: int, /, **values: Any) -> None:
        """Notes how far the stage is."""
        if self._started is None:  # the first step compiles: the pace is that of the others
            self._first, self._started = step, time.monotonic()
        self._done = step
        self._values |= {name: value for name, value in values.items() if name in self._forms}
        if time.monotonic() - self._shown_at >= self._every:
            self._show()

    def _text(self) -> str:
        parts = [f"{self._done}/{self._steps}"]
        for name, form in self._forms.items():
            if name in self._values:
                value = np.asarray(self._values[name])
                finite = value[np.isfinite(value)] if value.ndim else value
                parts.append(
                    f"{name} {form.format(float(finite.mean() if finite.size else 'nan'))}"
                )
        if self._started is not None and self._done > self._first:
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
