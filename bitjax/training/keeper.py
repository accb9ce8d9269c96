"""What a run keeps on disk while it lasts, and how it finds its place again."""

import contextlib
import time
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from bitjax.costs.measures import bits_of
from bitjax.runs.checkpoint import Checkpoints, SaveError
from bitjax.runs.folder import write_bits
from bitjax.runs.results import StageResult
from bitjax.runs.rows import MetricsWriter, write_json
from bitjax.training.hosts import is_first
from bitjax.variables import QUANT, STATS

if TYPE_CHECKING:
    from bitjax.training.runner import Run


class Place(NamedTuple):
    """Where in a method a checkpoint stands.

    Attributes:
      stage: index of the stage.
      phase: `enter` (nothing of it is done), `prepare` (`unit` units are), `train` (`unit` steps
        are).
      unit: see above.
    """

    stage: int = 0
    phase: str = "enter"
    unit: int = 0


class Keeper:
    """Checkpoints, metrics and results of one run; without a folder it only keeps time.

    Args:
      run: whose folder it writes to.
    """

    def __init__(self, run: "Run"):
        self.run = run
        self.stages: list[StageResult] = []
        self.fractional: dict[str, Any] = {}
        self._began = time.monotonic()
        self._stage_began = 0.0
        self._checkpoints = self._best = self._writer = None
        self.commits = [str(run.provenance["commit"])]  # that made it, in turn
        self._best_score = (-1, -1.0)  # stage and accuracy: a later stage's model is another one
        # Checkpoints are written by all hosts together, everything else by the first.
        self._folder = run.folder if is_first() else None
        if run.folder is not None:
            keep = run.settings.keep_checkpoints
            self._checkpoints = Checkpoints(run.folder / "checkpoints", keep=keep)
            if run.settings.keep_best:
                self._best = Checkpoints(run.folder / "best", keep=1)
        if self._folder is not None:
            self._writer = MetricsWriter(self._folder, tensorboard=run.settings.tensorboard)

    def seconds(self) -> float:
        """Seconds this run has taken, earlier processes included."""
        return time.monotonic() - self._began

    @property
    def save_seconds(self) -> float:
        """Seconds that the slowest checkpoint has taken."""
        return self._checkpoints.slowest if self._checkpoints is not None else 0.0

    def stage_seconds(self) -> float:
        """Seconds the present stage has taken, earlier processes included."""
        return self.seconds() - self._stage_began

    def enter_stage(self, place: Place) -> None:
        """Starts a stage's clock, unless the run was resumed inside it."""
        if place.phase == "enter":
            self._stage_began = self.seconds()

    def end_stage(self, result: StageResult, learned: Mapping[str, Any] | None) -> None:
        """Notes a stage's result, and its bits if it learned them."""
        self.stages.append(result)
        if learned is not None:
            self.fractional = {s: np.asarray(n) for s, n in jax.device_get(learned).items()}

    def restore(self) -> tuple[Place, dict[str, Any]]:
        """The place to go on from and what was saved there; the beginning if nothing was."""
        restored = self._checkpoints.restore(self._template) if self._checkpoints else None
        self.rewind(restored.step if restored else -1)
        if restored is None:
            return Place(), {}
        self.recall(restored.meta)
        place = Place(*restored.meta["place"])
        if self.run.show:
            print(f"resuming at step {restored.step} ({place.phase} of stage {place.stage})")
        return place, restored.state

    def rewind(self, step: int) -> None:
        """Removes the rows of metrics behind a step."""
        if self._writer is not None:
            self._writer.rewind(step)

    def notes(self) -> dict[str, Any]:
        """What `recall` needs after a restart, as JSON."""
        return {
            "stages": [stage._asdict() for stage in self.stages],
            "fractional": {s: np.asarray(n).tolist() for s, n in self.fractional.items()},
            "seconds": self.seconds(),
            "stage_began": self._stage_began,
            "best": list(self._best_score),
            "commits": self.commits,
        }

    def recall(self, notes: Mapping[str, Any]) -> None:
        """Takes up what an earlier process noted."""
        self.stages = [StageResult(**stage) for stage in notes["stages"]]
        self.fractional = {s: np.asarray(n, np.float32) for s, n in notes["fractional"].items()}
        self._began -= notes["seconds"]
        self._stage_began = notes["stage_began"]
        self._best_score = tuple(notes.get("best", self._best_score))
        self.commits = list(dict.fromkeys([*notes.get("commits", ()), *self.commits]))

    def save(self, place: Place, tree: Mapping[str, Any]) -> None:
        """Saves a checkpoint of `tree` at `place`, in the background."""
        if self._checkpoints is None:
            return
        steps = sum(stage.steps for stage in self.run.method.stages[: place.stage])
        meta = {"place": list(place), **self.notes()}
        done = steps + (place.unit if place.phase == "train" else 0)
        self._checkpoints.save(done, dict(tree), meta)

    def offer(self, stage: int, step: int, accuracy: float, variables: Mapping[str, Any]) -> None:
        """Keeps the variables in `best/` if no others of this stage evaluated as well.

        Args:
          stage: index of the stage.
          step: of the run.
          accuracy: a fraction, on the evaluation split.
          variables: the model's.
        """
        if self._best is not None and (stage, accuracy) > self._best_score:
            self._best_score = (stage, accuracy)
            self._best.save(step, {"variables": dict(variables)}, {"accuracy": accuracy})

    def row(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds a row to `metrics.jsonl`."""
        if self._writer is not None:
            self._writer.write(step, values)

    def finish(self, result: Mapping[str, Any], variables: Mapping[str, Any]) -> None:
        """Writes `result.json` and `bits.csv`, once the last checkpoint is on disk."""
        for checkpoints in self._both():
            checkpoints.wait()
        if self._folder is not None:
            integer = jax.device_get(bits_of(variables))
            path = self._folder / "bits.csv"
            write_bits(path, self.run.costs, self.fractional, integer)
            write_json(self._folder / "result.json", result)

    def fail(self, error: BaseException) -> None:
        """Writes a `result.json` that says why the run ended; `stopped` can be resumed.

        Raises:
          SaveError: the run stopped, and its last checkpoint could not be written.
        """
        if self.run.folder is None:
            return
        stopped = type(error).__name__ in ("Stopped", "KeyboardInterrupt", "SystemExit")
        unsaved = None
        for checkpoints in self._both():
            try:
                checkpoints.wait()
            except SaveError as error_of_save:  # it is in the log too
                if stopped:
                    unsaved = error = error_of_save
        last = traceback.extract_tb(error.__traceback__)[-1:]
        result = {
            "status": "stopped" if stopped and unsaved is None else "failed",
            **self.run.facts,
            **self.run.provenance,
            "error": f"{type(error).__name__}: {error}",
            "where": [f"{frame.name}:{frame.lineno}" for frame in last],
            "wall_seconds": round(self.seconds(), 3),
            "stages": [stage._asdict() for stage in self.stages],
        }
        if self._folder is not None:
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

    def _both(self) -> list[Checkpoints]:
        return [checkpoints for checkpoints in (self._checkpoints, self._best) if checkpoints]

    def _template(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        """Shapes of what was saved at a place, without computing anything."""
        place = Place(*meta["place"])
        if place.phase == "train":
            return {"state": self.abstract_state(place.stage)}
        if place.phase == "prepare":
            return {
                "variables": self.abstract_variables(place.stage),
                "previous": self.abstract_variables(place.stage - 1),
            }
        return {"variables": self.abstract_variables(place.stage - 1)}

    def abstract_variables(self, index: int) -> dict[str, Any]:
        """Shapes of the model's variables in a stage; -1: before the first."""
        run = self.run
        floats = {k: v for k, v in run.start.items() if k not in (QUANT, STATS)}
        shapes = jax.eval_shape(lambda: floats)
        if index < 0 or not run.method.stages[index].rules:
            return shapes
        model = run.wrap(run.method.stages[index])
        # Of the shape alone: the images themselves may have to be decoded.
        images = jax.ShapeDtypeStruct((2, *run.dataset.image_shape), np.uint8)
        sample = jax.eval_shape(lambda x: run.preprocess(None, x), images)
        fresh = jax.eval_shape(lambda x: model.init(run.key, x), sample)
        return {**shapes, **{name: fresh[name] for name in (QUANT, STATS) if name in fresh}}

    def abstract_state(self, index: int) -> Any:
        """Shapes of the state of a stage."""
        shapes = self.abstract_variables(index)
        return jax.eval_shape(lambda v: self.run.fresh_state(index, v), shapes)
