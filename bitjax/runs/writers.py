"""Hands a run's figures on: to TensorBoard, Weights & Biases, MLflow, or a writer of your own.

`config.writers` names them. One of your own is the import path of a class, `my_package.logs:Mine`:

  class Mine:
      def __init__(self, folder: Path, settings: dict, after: int): ...
      def write(self, step: int, figures: dict[str, float]): ...
      def close(self): ...

`settings` are those of `config.json`. `after` is the step that a resumed run goes on from, so that
figures behind it come anew; it is -1 at the beginning. What a writer raises is told in one line,
and the run goes on without it.
"""

import contextlib
import importlib
import json
import logging
import os
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bitjax.extras import extra
from bitjax.files.reading import FileError, one_line, read_json
from bitjax.files.writing import write_text

_IDS = "writers.json"  # by which services know the run, so that it is the same one when resumed
_log = logging.getLogger(__name__)


class Writer(Protocol):
    """What takes the figures of one run."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Takes the numbers of a row, which need not be finite."""
        ...

    def close(self) -> None:
        """Ends, because the run does, or goes back to an earlier step."""
        ...


class TensorBoard:
    """Event files in the run's folder."""

    needs = "tensorboardX"

    def __init__(self, folder: Path, settings: Mapping[str, Any], after: int):
        from tensorboardX import SummaryWriter

        # The name of an event file counts seconds only: a second one would replace the first.
        self._events = SummaryWriter(
            str(folder),
            purge_step=after + 1,
            filename_suffix=f".{time.time_ns()}",
        )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds a scalar for each figure."""
        for name, value in figures.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the file."""
        self._events.close()


class WeightsAndBiases:
    """A run of Weights & Biases; its own variables, such as WANDB_MODE, hold."""

    needs = "wandb"

    def __init__(self, folder: Path, settings: Mapping[str, Any], after: int):
        import wandb

        known = _known_as(folder, "wandb") or _keep(folder, "wandb", secrets.token_hex(4))
        with _nobody_to_ask():  # for a key, which would hold up the run
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "bitjax"),
                name=_name(folder, settings),
                config=dict(settings),
                dir=folder,
                id=known,
                resume="allow",
                reinit="create_new",  # rows of one program are several runs of a process
                settings=wandb.Settings(console="off", silent=True),
            )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Logs a step's figures."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Ends the process that sends them."""
        self._run.finish()


class MLflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say."""

    needs = "mlflow"

    def __init__(self, folder: Path, settings: Mapping[str, Any], after: int):
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._client, self._metric = MlflowClient(), Metric
        self._run = _known_as(folder, "mlflow")
        if self._run:
            self._client.update_run(self._run, status="RUNNING")
            return
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "bitjax")
        found = self._client.get_experiment_by_name(title)
        place = found.experiment_id if found else self._client.create_experiment(title)
        run = self._client.create_run(place, run_name=_name(folder, settings))
        self._run = _keep(folder, "mlflow", run.info.run_id)
        texts = [Param(key, str(value)[:500]) for key, value in _flat(settings).items()]
        for first in range(0, len(texts), 100):  # of a batch
            self._client.log_batch(self._run, params=texts[first : first + 100])

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Logs a step's figures in one request."""
        now = int(1000 * time.time())
        rows = [self._metric(name, value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._run, metrics=rows)

    def close(self) -> None:
        """Says that nothing more comes."""
        self._client.set_terminated(self._run)


WRITERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}


def find_writer(name: str) -> Callable[..., Writer]:
    """The writer of a name or an import path.

    ValueError: no such writer. ImportError: its package, with the extra that has it.
    """
    if name in WRITERS:
        with extra(name, f"the writer {name!r}"):
            importlib.import_module(WRITERS[name].needs)
        return WRITERS[name]
    module, colon, attribute = name.partition(":")
    if not colon or module.partition(".")[0] in sys.stdlib_module_names:
        raise ValueError(
            f"`writers` must be among {', '.join(WRITERS)} or import paths of your own, as "
            f"'package.module:Name', got {one_line(name, 100)!r}."
        )
    found = getattr(importlib.import_module(module), attribute, None)
    if not callable(found):
        raise ValueError(f"`writers`: {module} has no class {attribute!r}; name one that it has.")
    return found


class Writers:
    """The writers of one run, each opened by the first row that it is given."""

    def __init__(self, folder: Path, names: Sequence[str]):
        self._folder, self._after = folder, -1
        self._open = {name: find_writer(name) for name in names}
        self._opened: dict[str, Writer] = {}

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Hands a row's numbers to each of them."""
        for name in [*self._open]:
            self._try(name, lambda name=name: self._get(name).write(step, dict(figures)))

    def rewind(self, step: int) -> None:
        """Notes that what comes behind a step will be written anew."""
        self.close()
        self._after = step

    def close(self) -> None:
        """Closes those that are open."""
        for name, writer in [*self._opened.items()]:
            self._try(name, writer.close)
        self._opened = {}

    def _get(self, name: str) -> Writer:
        if name not in self._opened:
            settings = _object(self._folder / "config.json")  # a run of a notebook may have none
            self._opened[name] = self._open[name](self._folder, settings, self._after)
        return self._opened[name]

    def _try(self, name: str, call: Callable[[], object]) -> None:
        try:
            call()
        except (Exception, SystemExit) as error:  # a run does not end because of a picture of it
            self._open.pop(name, None)
            self._opened.pop(name, None)
            _log.warning(
                "the writer %r is left out from here on (%s); metrics.jsonl has every row.",
                name,
                one_line(_told(error)),
            )


def _told(error: BaseException) -> str:
    """What a writer's author needs to know: the kind, the text, and the line."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{said}; {frame.filename}, line {frame.lineno}"


@contextlib.contextmanager
def _nobody_to_ask() -> Iterator[None]:
    """Keeps a library from asking at the terminal."""
    before = sys.stdin
    with open(os.devnull) as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = before


def _name(folder: Path, settings: Mapping[str, Any]) -> str:
    return str(settings.get("name") or folder.name)


def _known_as(folder: Path, writer: str) -> str:
    """The name by which a service knows the run; empty if it does not."""
    return str(_object(folder / _IDS).get(writer, ""))


def _object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where the file is not there or damaged."""
    with contextlib.suppress(FileError):  # damaged: its names are made anew
        found = read_json(path)
        return dict(found) if isinstance(found, Mapping) else {}
    return {}


def _keep(folder: Path, writer: str, known: str) -> str:
    kept = {**_object(folder / _IDS), writer: known}
    write_text(folder / _IDS, json.dumps(kept, indent=1) + "\n")
    return known


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = isinstance(value, Mapping) and value
        found |= _flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found
