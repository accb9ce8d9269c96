"""K runs of one program as K rows of one state: seeds, strengths, learning rates on one device.

A step of the group is `jax.vmap` of the step of a run. What happens on the host (calibration,
allocation, rounding) happens row by row, as in `Run`. The group has one checkpoint; every row has a
run folder of its own, with metrics, bits and result.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bitjax.costs.measures import bits_of
from bitjax.data import Dataset, train_batch
from bitjax.runs.checkpoint import Checkpoints
from bitjax.runs.results import StageResult, result_of
from bitjax.training.finite import NonFiniteError, check_finite
from bitjax.training.keeper import Keeper, Place
from bitjax.training.parallel import placement
from bitjax.training.progress import Progress
from bitjax.training.rows import rows_of, stack
from bitjax.training.runner import Run, Stopped
from bitjax.training.state import TrainState, variables_of, with_variables
from bitjax.training.step import make_train_step

PyTree = Any

# The settings that a group's loop reads, or that are of each run's own model.
_KNOWN = {"batch_size", "eval_batch_size", "seed", "augmentation", "calibration_size"}
_KNOWN |= {"log_every", "checkpoint_every", "eval_every", "tensorboard", "compute_dtype"}


class VectorizedRuns:
    """Runs of one program as the rows of one state.

    Args:
      runs: by name; equal in everything but seed, start and what their methods keep in their states
        or do on the host, see `rows.programs`. All use the first one's data set.
      folder: of the group's checkpoints; None keeps none.
      show: whether progress is shown.

    Raises:
      ValueError: a setting or the data set is of a kind that a group cannot follow.

    Example: see `tests/training/test_vectorized.py`; `experiments.sweep --vectorize` is the usual
      caller.
    """

    def __init__(self, runs: Mapping[str, Run], folder: Path | None = None, *, show: bool = True):
        self.runs, self.show = dict(runs), show
        self.stopping = False  # set from a signal handler; read between steps
        self.first = next(iter(self.runs.values()))
        self.keepers: dict[str, Keeper] = {}
        self.failed: dict[str, str] = {}
        self._checkpoints = Checkpoints(folder / "checkpoints") if folder else None
        for run in self.runs.values():
            _check_known(run)
            run.dataset, run.show = self.first.dataset, False
            run.place = placement("none")  # a group has one device, whatever else there is
            run.facts["vectorized"] = len(self.runs)

    def execute(self) -> dict[str, dict[str, Any]]:
        """Runs what is left of the group.

        A row whose loss is not finite, or whose preparation is refused, fails by itself: `failed`
        says why, and the others go on.

        Returns:
          What `result.json` holds, of every row that did not fail.

        Raises:
          Stopped: `stopping` was set; the state is saved.
          ValueError: the group's folder holds other runs.
        """
        self.keepers = {name: Keeper(run) for name, run in self.runs.items()}
        begun = False
        try:
            place, names, saved = self._restore()
            begun = True
            with Progress(enabled=self.show) as progress:
                variables = self._stages(place, names, saved, progress)
            results = {}
            for name, final in variables.items():
                keeper, run = self.keepers[name], self.runs[name]
                results[name] = result_of(run, keeper, final)
                # So that the row's folder can start another run, or be exported.
                keeper.save(Place(len(run.method.stages), "enter"), {"variables": final})
                keeper.finish(results[name], final)
            return results
        except BaseException as error:
            for name in self.runs.keys() - self.failed.keys():
                if begun:  # else the folders may be those of other runs
                    self.keepers[name].fail(error)
            raise
        finally:
            for keeper in self.keepers.values():
                keeper.close()
            if self._checkpoints is not None:
                self._checkpoints.close()

    def _stages(
        self, place: Place, names: list[str], saved: dict[str, Any], progress: Progress
    ) -> dict[str, PyTree]:
        if "variables" in saved:
            variables = dict(zip(names, rows_of(saved["variables"], len(names)), strict=True))
        else:
            variables = {name: self.runs[name].start for name in names}
        for index, stage in enumerate(self.first.method.stages):
            if index < place.stage:
                continue
            if index == place.stage and place.phase == "train":
                state = saved["state"]
            else:
                for keeper in self.keepers.values():
                    keeper.enter_stage(Place(index, "enter"))
                variables = self._prepare(index, variables)
                names = list(variables)
                if not names:
                    return {}
                state = stack([self.runs[n].fresh_state(index, v) for n, v in variables.items()])
                if stage.prepare is not None:
                    self._save(Place(index, "train", 0), {"state": state}, names)
            evaluate = self.first.evaluator(self.first.wrap(stage))
            state = self._train(index, state, names, evaluate, progress)
            learned = "bits" in stage.optimizers
            variables = {
                name: variables_of(row)
                for name, row in zip(names, rows_of(state, len(names)), strict=True)
                if name not in self.failed
            }
            for name, found in variables.items():
                accuracy, loss = evaluate(found)
                keeper = self.keepers[name]
                done = StageResult(stage.name, stage.steps, keeper.stage_seconds(), accuracy, loss)
                keeper.end_stage(done, bits_of(found) if learned else None)
                self._say(f"{name}: {stage.name}: accuracy {accuracy:.2%}")
            if not variables:
                return {}
            tree = {"variables": stack(list(variables.values()))}
            self._save(Place(index + 1, "enter"), tree, list(variables))
            if index + 1 < len(self.first.method.stages):
                self._stop_if_asked(index + 1)
        return variables

    def _prepare(self, index: int, variables: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """Each row's variables at the start of a stage; rows that are refused are left out."""
        prepared = {}
        for name, previous in variables.items():
            run = self.runs[name]
            stage = run.method.stages[index]
            try:
                found = run.enter(stage, previous)
                if stage.prepare is not None:
                    for unit in stage.prepare(run._context(index, previous), found, 0):
                        found = unit
                        self._stop_if_asked(index)
            except ValueError as error:
                self._fail(name, error)
                continue
            prepared[name] = found
        return prepared

    def _train(
        self, index: int, state: TrainState, names: list[str], evaluate: Any, progress: Progress
    ) -> TrainState:
        run = self.first
        stage, settings = run.method.stages[index], run.settings
        done, offset = int(state.step[0]), int(state.offset[0])
        if done >= stage.steps:
            return state
        one = make_train_step(run.wrap(stage), stage, run.costs, run.preprocess, teacher=run.model)
        step = jax.jit(jax.vmap(one), donate_argnums=0)
        progress.stage(f"{stage.name} x {len(names)}", stage.steps, done=done)
        began = time.monotonic()
        while done < stage.steps:
            state, metrics = step(state, self._batches(names, offset + done))
            done += 1
            last, stopping = done == stage.steps, self.stopping  # it may be set at any moment
            save = not last and (done % settings.checkpoint_every == 0 or stopping)
            log = last or done % settings.log_every == 0
            if log or save:
                self._check_finite(index, state, names)
            if log:
                host = jax.device_get(metrics)
                ok = [i for i, name in enumerate(names) if name not in self.failed]
                for i in ok:
                    row = {key: float(value[i]) for key, value in host.items()}
                    row["seconds"] = round(time.monotonic() - began, 3)
                    row = {"stage": stage.name, **row}
                    self.keepers[names[i]].row(offset + done, row)
                shown = {k: host[k][ok].mean() for k in ("loss", "accuracy", "bits") if k in host}
                progress.update(done, **shown if ok else {})
            progress.update(done)
            if stage.every is not None and done % stage.every[0] == 0:
                state = self._on_host(index, state, names)
            if settings.eval_every and done % settings.eval_every == 0 and not last:
                for name, row in zip(names, rows_of(state, len(names)), strict=True):
                    if name not in self.failed:
                        accuracy, loss = evaluate(variables_of(row))
                        values = {"eval_accuracy": accuracy, "eval_loss": loss}
                        self.keepers[name].row(offset + done, values)
            if save:
                self._save(Place(index, "train", done), {"state": state}, names)
            if stopping and not last:  # a stage that is done is evaluated and saved first
                raise _stopped(offset + done)
            if all(name in self.failed for name in names):
                return state
        return state

    def _batches(self, names: list[str], step: int) -> dict[str, np.ndarray]:
        size = self.first.settings.batch_size
        seeds = [self.runs[name].settings.seed for name in names]
        rows = [train_batch(self.first.dataset, size, step, seed) for seed in seeds]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def _on_host(self, index: int, state: TrainState, names: list[str]) -> TrainState:
        rows = []
        for name, row in zip(names, rows_of(state, len(names)), strict=True):
            every = self.runs[name].method.stages[index].every
            if every is not None and name not in self.failed:
                before = variables_of(row)
                new = every[1](self.runs[name]._context(index, before), before)
                row = with_variables(row, new)
            rows.append(row)
        return stack(rows)

    def _check_finite(self, index: int, state: TrainState, names: list[str]) -> None:
        bad = np.asarray(state.bad_step)
        if not any(b >= 0 and n not in self.failed for b, n in zip(bad, names, strict=True)):
            return
        for name, row in zip(names, rows_of(state, len(names)), strict=True):
            run = self.runs[name]
            if name not in self.failed:
                try:
                    check_finite(run, run.wrap(run.method.stages[index]), row)
                except NonFiniteError as error:
                    self._fail(name, error)

    def _fail(self, name: str, error: Exception) -> None:
        self.failed[name] = f"{type(error).__name__}: {error}"
        self.keepers[name].fail(error)
        self._say(f"{name}: {self.failed[name]}")

    def _stop_if_asked(self, index: int) -> None:
        if self.stopping:
            raise _stopped(sum(stage.steps for stage in self.first.method.stages[:index]))

    def _save(self, place: Place, tree: PyTree, names: Sequence[str]) -> None:
        if self._checkpoints is None:
            return
        meta = {
            "place": list(place),
            "hashes": self._hashes(),
            # Rows of the state; one that failed stays in it until its stage ends.
            "rows": list(names),
            "failed": self.failed,
            "notes": {name: keeper.notes() for name, keeper in self.keepers.items()},
        }
        steps = sum(stage.steps for stage in self.first.method.stages[: place.stage])
        done = steps + (place.unit if place.phase == "train" else 0)
        self._checkpoints.save(done, tree, meta)

    def _restore(self) -> tuple[Place, list[str], dict[str, Any]]:
        restored = self._checkpoints.restore(self._template) if self._checkpoints else None
        for keeper in self.keepers.values():
            keeper.rewind(restored.step if restored else -1)
        if restored is None:
            return Place(), list(self.runs), {}
        place = Place(*restored.meta["place"])
        self.failed = dict(restored.meta["failed"])
        for name, notes in restored.meta["notes"].items():
            self.keepers[name].recall(notes)
        self._say(f"resuming at step {restored.step} ({place.phase} of stage {place.stage})")
        return place, restored.meta["rows"], restored.state

    def _template(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        if meta["hashes"] != self._hashes():
            raise ValueError(
                "the folder's checkpoint is of other runs: "
                f"{', '.join(meta['hashes'])} there, {', '.join(self.runs)} now. Choose another "
                "--workdir, or remove its checkpoints."
            )
        place, keeper = Place(*meta["place"]), self.keepers[next(iter(self.runs))]
        if place.phase == "train":
            one = {"state": keeper.abstract_state(place.stage)}
        else:
            one = {"variables": keeper.abstract_variables(place.stage - 1)}
        count = len(meta["rows"])
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), one)

    def _hashes(self) -> dict[str, str]:
        return {name: str(run.facts.get("config_hash", "")) for name, run in self.runs.items()}

    def _say(self, text: str) -> None:
        if self.show:
            print(text, flush=True)


def _stopped(step: int) -> Stopped:
    return Stopped(f"stopped at step {step}; run the same command to resume.")


def _check_known(run: Run) -> None:
    defaults = type(run.settings)._field_defaults
    for name, value in run.settings._asdict().items():
        if name not in _KNOWN and value != defaults.get(name):
            raise ValueError(
                f"`{name}` must be {defaults.get(name)!r} in a vectorized group, got {value!r}: "
                "leave it out, or run its rows one by one."
            )
    if not isinstance(run.dataset, Dataset):
        raise ValueError(
            f"the data set {run.dataset.name!r} must be in memory for a vectorized group, got a "
            f"{type(run.dataset).__name__}: run its rows one by one."
        )
