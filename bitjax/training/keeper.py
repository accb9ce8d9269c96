"""Keeps one run on disk while it lasts, and finds its place again."""

import contextlib
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bitjax.costs.bits import bits_of
from bitjax.runs.checkpoint import Checkpoints, SaveError
from bitjax.runs.files import PLAN, Unfit, read_object
from bitjax.runs.folder import write_bits
from bitjax.runs.lock import LostError, lock
from bitjax.runs.provenance import provenance
from bitjax.runs.results import StageResult, plan_of, result_of
from bitjax.runs.rows import MetricsWriter, write_json
from bitjax.training.ending import Ending, write_model
from bitjax.training.hosts import is_first, on_first
from bitjax.training.identity import check_same_run, identity
from bitjax.training.notes import read_notes, read_place
from bitjax.training.preemption import Stopped
from bitjax.training.work import Work


class Position(NamedTuple):
    """The place in a method at which a checkpoint stands.

    Attributes:
      stage: index of the stage.
      phase: `enter` (nothing of it is done), `prepare` (`unit` units are), `train` (`unit` steps
        are).
      unit: units of preparation, or steps, that are done; 0 in `enter`.
    """

    stage: int = 0
    phase: str = "enter"
    unit: int = 0

    def steps(self, work: Work) -> int:
        """Steps of the run that are done here."""
        return work.steps_before(self.stage) + (self.unit if self.phase == "train" else 0)


class Keeper:
    """Checkpoints, metrics and results of one run; without a folder it only keeps time."""

    def __init__(self, work: Work, folder: Path | None = None):
        self.work = work
        self.stages: list[StageResult] = []
        self.learned: dict[str, Any] = {}  # bits by site before rounding
        self.identity = identity(work)
        self._about = provenance()  # of the code as it is loaded, not as it is at the end
        self._commits = [self._about["commit"] or "unknown"]  # that made it, in turn
        self._began = time.monotonic()
        self._stage_began = 0.0
        self._checkpoints = self._best = self._writer = self._lock = None
        # Index of the stage, which counts first for a later stage's model is another one; score.
        self._best_score: tuple[float, float] = (-1, -1.0)
        # Checkpoints are written by all hosts together, everything else by the first.
        self._home, self._folder = folder, folder if is_first() else None
        if folder is not None:
            keep, check = work.settings.keep_checkpoints, self._check_folder
            self._checkpoints = Checkpoints(folder / "checkpoints", keep=keep, check=check)
            if work.settings.keep_best:
                self._best = Checkpoints(folder / "best", keep=1, check=check)
        if self._folder is not None:
            self._lock = lock(self._folder)
            try:
                self._writer = MetricsWriter(self._folder, work.settings.writers)
            except BaseException:  # also of Ctrl-C
                self._lock.close()  # else a notebook keeps the folder until it ends
                raise

    def seconds(self) -> float:
        """Seconds this run has taken, earlier processes included."""
        return time.monotonic() - self._began

    @property
    def save_seconds(self) -> float:
        """Seconds that the slowest checkpoint has taken."""
        return self._checkpoints.slowest if self._checkpoints is not None else 0.0

    def enter_stage(self, position: Position) -> None:
        """Starts a stage's clock, unless the run was resumed inside the stage."""
        if self._folder is not None and not (self._folder / PLAN).exists():
            task, stages = self.work.task, self.work.method.stages
            score = (task.score, task.higher_is_better, task.form)
            write_json(self._folder / PLAN, plan_of(stages, score))
        if position.phase == "enter":
            self._stage_began = self.seconds()

    def end_stage(
        self, index: int, figures: Mapping[str, float], variables: Mapping[str, Any]
    ) -> None:
        """Notes a stage's result, its bits if it learned them, and whether it evaluated best."""
        stage = self.work.method.stages[index]
        seconds = self.seconds() - self._stage_began
        self.stages.append(StageResult(stage.name, stage.steps, seconds, figures))
        if "bits" in stage.optimizers:
            bits = jax.device_get(bits_of(variables))
            self.learned = {site: np.asarray(n) for site, n in bits.items()}
        self.offer(index, self.work.steps_before(index + 1), figures, variables)

    def check_own(self, notes: Mapping[str, Any], folder: Path | None) -> None:
        """Stops every host if a checkpoint's notes are of another run, or of other data."""

        def check():
            run = read_notes(notes).run
            if "config_hash" in run and self.work.is_config_of(run["config_hash"]):
                run = {**run, "config_hash": self.identity.get("config_hash")}
            check_same_run(run, self.identity, str(folder))

        on_first(check)

    def restore(self) -> tuple[Position, dict[str, Any]]:
        """The position to go on from and what was saved there; the beginning if nothing was."""
        restored = self._checkpoints.restore(self._template) if self._checkpoints else None
        self.rewind(restored.step if restored else -1)
        if restored is None:
            return Position(), {}
        self.recall(restored.meta)
        return position_of(restored.meta, self.work), restored.state

    def rewind(self, step: int) -> None:
        """Removes the rows of metrics behind a step."""
        if self._writer is not None:
            self._writer.rewind(step)

    def notes(self) -> dict[str, Any]:
        """What `recall` needs after a restart, as JSON."""
        return {
            "run": self.identity,
            "stages": [stage.to_json() for stage in self.stages],
            "fractional": {s: np.asarray(n).tolist() for s, n in self.learned.items()},
            "seconds": self.seconds(),
            "stage_began": self._stage_began,
            "best": list(self._best_score),
            "commits": self._commits,
        }

    def recall(self, notes: Mapping[str, Any]) -> None:
        """Takes up what an earlier process noted."""
        found = read_notes(notes)
        self.stages, self.learned = found.stages, found.learned
        self._began -= found.seconds
        self._stage_began = found.stage_began
        self._best_score = found.best
        self._commits = list(dict.fromkeys([*found.commits, *self._commits]))

    def save(self, position: Position, tree: Mapping[str, Any]) -> None:
        """Saves a checkpoint of `tree` at a position, in the background."""
        if self._checkpoints is not None:
            meta = {"place": list(position), **self.notes()}
            self._checkpoints.save(position.steps(self.work), dict(tree), meta)

    def offer(
        self, stage: int, step: int, figures: Mapping[str, float], variables: Mapping[str, Any]
    ) -> None:
        """Keeps the variables in `best/` if no others of this stage evaluated as well."""
        task = self.work.task
        score = figures[task.score] if task.higher_is_better else -figures[task.score]
        if self._best is not None and (stage, score) > self._best_score:
            self._best_score = (stage, score)
            meta = {task.score: figures[task.score]}
            self._best.save(step, {"variables": dict(variables)}, meta)

    def row(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds a row to `metrics.jsonl`."""
        self._check_folder()
        if self._writer is not None:
            self._writer.write(step, values)

    def kept(self) -> dict[str, Any] | None:
        """What the folder says of a run that is finished, if all that it names is there."""
        if self._home is None:
            return None
        try:
            result = dict(read_object(self._home / "result.json"))
            files = dict(result.get("files") or {}).values()
            there = all(
                (self._home / entry["path"]).stat().st_size == entry["bytes"]
                for entry in files
                if "path" in entry
            )
        except (Unfit, OSError, KeyError, TypeError, ValueError):
            return None
        same = self.work.is_config_of(result.get("config_hash"))
        return result if there and same and result.get("status") == "finished" else None

    def finish(self, end: Ending) -> dict[str, Any]:
        """Writes the model, `bits.csv` and `result.json`, once the last checkpoint is on disk."""
        work, task, variables = self.work, self.work.task, end.deployed.variables
        self._check_folder()
        for checkpoints in self._both():
            checkpoints.wait()
        files = {}
        if self._folder is not None:
            files["model"] = write_model(self._folder, work, end, self._commits[-1])
        about = {
            "method": work.method.name,
            "data": work.dataset.name,
            "task": task.name,
            "about_data": work.dataset.about,
            "eval_split": work.dataset.eval_split,
            "seed": work.settings.seed,
            **work.facts,
            **self._about,
            "commits": self._commits,
            "wall_seconds": round(self.seconds(), 3),
            **({"not_deployed": end.why_not} if end.why_not else {}),
            **({"files": files} if files else {}),
        }
        score = (task.score, task.higher_is_better, task.form)
        result = result_of(about, self.stages, score, work.costs, self.learned, variables)
        if self._folder is not None:
            integer = jax.device_get(bits_of(variables))
            write_bits(self._folder / "bits.csv", work.costs, self.learned, integer)
            write_json(self._folder / "result.json", result)
        return result

    def fail(self, error: BaseException) -> None:
        """Writes a `result.json` that says why the run ended; `stopped` can be resumed."""
        if self._checkpoints is None:
            return
        stopped = isinstance(error, Stopped | KeyboardInterrupt | SystemExit)
        unsaved = None
        for checkpoints in self._both():
            try:
                checkpoints.wait()
            except (SaveError, LostError) as error_of_save:  # it is in the log too
                if stopped:
                    unsaved = error = error_of_save
        last = traceback.extract_tb(error.__traceback__)[-1:]
        result = {
            "status": "stopped" if stopped and unsaved is None else "failed",
            **self.work.facts,
            **self._about,
            "error": f"{type(error).__name__}: {error}",
            "where": [f"{frame.name}:{frame.lineno}" for frame in last],
            "wall_seconds": round(self.seconds(), 3),
            "stages": [stage.to_json() for stage in self.stages],
        }
        if self._folder is not None and not (self._lock and self._lock.lost):
            with contextlib.suppress(OSError):  # the disk may be full, and `error` say so
                write_json(self._folder / "result.json", result)
        if unsaved is not None:
            raise unsaved

    def close(self) -> None:
        """Waits for the last checkpoint and closes the files."""
        for checkpoints in self._both():
            checkpoints.close()
        if self._writer is not None:
            self._writer.close()
        if self._lock is not None:
            self._lock.close()

    def _check_folder(self) -> None:
        if self._lock is not None:
            self._lock.check()

    def _both(self) -> list[Checkpoints]:
        return [checkpoints for checkpoints in (self._checkpoints, self._best) if checkpoints]

    def _template(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        self.check_own(meta, self._home)
        return shapes_at(self.work, position_of(meta, self.work))


def position_of(meta: Mapping[str, Any], work: Work) -> Position:
    """Where a checkpoint stands in a run."""
    return Position(*read_place(meta.get("place"), len(work.method.stages)))


def shapes_at(work: Work, position: Position) -> dict[str, Any]:
    """Shapes of what a run saves at a position, computing nothing."""
    if position.phase == "train":
        return {"state": work.state_shapes(position.stage)}
    if position.phase == "prepare":
        return {
            "variables": work.variable_shapes(position.stage),
            "previous": work.variable_shapes(position.stage - 1),
        }
    return {"variables": work.variable_shapes(position.stage - 1)}
