"""What a run keeps on disk while it lasts, and how it finds its place again."""

import time
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from bitjax.cost import bits_of
from bitjax.linen import QUANT, STATS
from bitjax.training.checkpoint import Checkpoints
from bitjax.training.metrics import MetricsWriter, write_json
from bitjax.training.results import StageResult
from bitjax.training.run_folder import write_bits

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
        self._checkpoints = self._writer = None
        if run.folder is not None:
            self._checkpoints = Checkpoints(run.folder / "checkpoints")
            self._writer = MetricsWriter(run.folder, tensorboard=run.settings.tensorboard)

    def seconds(self) -> float:
        """Seconds this run has taken, earlier processes included."""
        return time.monotonic() - self._began

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
        }

    def recall(self, notes: Mapping[str, Any]) -> None:
        """Takes up what an earlier process noted."""
        self.stages = [StageResult(**stage) for stage in notes["stages"]]
        self.fractional = {s: np.asarray(n, np.float32) for s, n in notes["fractional"].items()}
        self._began -= notes["seconds"]
        self._stage_began = notes["stage_began"]

    def save(self, place: Place, tree: Mapping[str, Any]) -> None:
        """Saves a checkpoint of `tree` at `place`, in the background."""
        if self._checkpoints is None:
            return
        steps = sum(stage.steps for stage in self.run.method.stages[: place.stage])
        meta = {"place": list(place), **self.notes()}
        done = steps + (place.unit if place.phase == "train" else 0)
        self._checkpoints.save(done, dict(tree), meta)

    def row(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds a row to `metrics.jsonl`."""
        if self._writer is not None:
            self._writer.write(step, values)

    def finish(self, result: Mapping[str, Any], variables: Mapping[str, Any]) -> None:
        """Writes `result.json` and `bits.csv`."""
        if self.run.folder is not None:
            integer = jax.device_get(bits_of(variables))
            path = self.run.folder / "bits.csv"
            write_bits(path, self.run.costs, self.fractional, integer)
            write_json(self.run.folder / "result.json", result)

    def fail(self, error: BaseException) -> None:
        """Writes a `result.json` that says why the run ended; `stopped` can be resumed."""
        if self.run.folder is None:
            return
        stopped = type(error).__name__ in ("Stopped", "KeyboardInterrupt", "SystemExit")
        last = traceback.extract_tb(error.__traceback__)[-1:]
        write_json(
            self.run.folder / "result.json",
            {
                "status": "stopped" if stopped else "failed",
                **self.run.facts,
                **self.run.provenance,
                "error": f"{type(error).__name__}: {error}",
                "where": [f"{frame.name}:{frame.lineno}" for frame in last],
                "wall_seconds": round(self.seconds(), 3),
                "stages": [stage._asdict() for stage in self.stages],
            },
        )

    def close(self) -> None:
        """Waits for the last checkpoint and closes the files."""
        if self._checkpoints is not None:
            self._checkpoints.close()
        if self._writer is not None:
            self._writer.close()

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
        sample = jax.eval_shape(run.calibration_batch)
        fresh = jax.eval_shape(lambda x: model.init(run.key, x), sample)
        return {**shapes, **{name: fresh[name] for name in (QUANT, STATS) if name in fresh}}

    def abstract_state(self, index: int) -> Any:
        """Shapes of the state of a stage."""
        shapes = self.abstract_variables(index)
        return jax.eval_shape(lambda v: self.run.fresh_state(index, v), shapes)
