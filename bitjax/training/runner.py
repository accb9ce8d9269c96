"""The one runner: takes a method's stages through preparation, training and evaluation.

It checkpoints at each unit of preparation, inside training and between stages, and resumes at any
of them with the same result, bit for bit on one machine.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bitjax.costs.measures import bits_of
from bitjax.costs.site import Costs
from bitjax.data import (
    AUGMENTATIONS,
    Dataset,
    StreamedDataset,
    eval_batches,
    normalize,
    train_batch,
    train_batches,
)
from bitjax.linen.attach import attach
from bitjax.linen.quantized import Quantized
from bitjax.linen.sites import site_costs
from bitjax.methods.base import Context, Method, Stage
from bitjax.runs.provenance import provenance
from bitjax.runs.results import StageResult, result_of
from bitjax.training.feed import feed, resident
from bitjax.training.finite import NonFiniteError as NonFiniteError
from bitjax.training.finite import check_finite
from bitjax.training.hosts import is_first
from bitjax.training.keeper import Keeper, Place
from bitjax.training.parallel import Placement, placement
from bitjax.training.preemption import Preemption
from bitjax.training.progress import Progress
from bitjax.training.settings import Settings as Settings
from bitjax.training.settings import check_place, check_settings
from bitjax.training.state import TrainState, initial_state, variables_of, with_variables
from bitjax.training.step import make_eval_step, make_train_step
from bitjax.variables import QUANT, STATS

_ORDER_SEED = 0x5EED  # of the images that preparation sees; the same in every run


class Stopped(Exception):
    """The run was asked to stop; its state is saved and it can be resumed."""


class Run:
    """One run of a method on a model and a data set.

    Args:
      method: the stages.
      model: a plain Linen module whose call takes the images first.
      dataset: the data.
      variables: to start from, float; None initialises from the seed.
      settings: see `Settings`.
      folder: an opened run folder; None keeps nothing on disk.
      facts: what `result.json` says beside the measurements: name, config_hash, budget, ...
      show: whether progress is shown.
      place: where it computes; chosen by the settings unless given.

    Attributes:
      variables: of the model under the last stage's rules, once `execute` has returned; those it
        starts from until then.

    Raises:
      ValueError: a setting is out of its range or does not go with the devices.

    Example:
      >>> import bitjax as bj
      >>> from bitjax.data import load
      >>> from bitjax.methods import uniform
      >>> from bitjax.models import MLP
      >>> rules = [bj.rule(".*", bj.uniform(bits=8))]
      >>> run = Run(uniform(rules), MLP(features=(8,)), load("digits"), show=False)
      >>> run.execute()["bits"]["all"]["integer"]
      8.0
      >>> float(bj.bits_of(run.variables)["head/kernel"])
      8.0
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        dataset: Dataset | StreamedDataset,
        variables: Mapping[str, Any] | None = None,
        settings: Settings | None = None,
        *,
        folder: Path | None = None,
        facts: Mapping[str, Any] | None = None,
        show: bool = True,
        place: Placement | None = None,
    ):
        self.method, self.dataset = method, dataset
        self.settings = check_settings(settings or Settings())
        self.place = place or placement(self.settings.parallel, self.settings.devices)
        check_place(self.settings, self.place, method)
        self.model = _computing_in(model, self.settings.compute_dtype)
        self.folder, self.facts, self.show = folder, dict(facts or {}), show and is_first()
        self.provenance = provenance()  # of the code as it is loaded, not as it is at the end
        self.preemption = Preemption()  # a signal's handler may ask it to stop the run
        self.key = jax.random.PRNGKey(self.settings.seed)
        sample = self.preprocess(None, jnp.asarray(dataset.eval_sample(2)))
        if variables is None:
            variables = jax.jit(self.model.init)(jax.random.fold_in(self.key, 0x1417), sample)
        self.start: dict[str, Any] = dict(variables)
        self.variables = self.start
        self.costs: Costs = site_costs(self.model, sample)

    def preprocess(self, key: jax.Array | None, images: jax.Array) -> jax.Array:
        """Raw pixels to what the model takes; augmented where there is a key."""
        data = self.dataset
        if key is not None:
            images = AUGMENTATIONS[self.settings.augmentation](key, images)
        return normalize(images, data.mean, data.std, data.max_value)

    def batches(self, count: int, augment: bool) -> Iterator[jax.Array]:
        """`count` model inputs from the training images, the same ones at every call.

        Whole batches on every host: what is prepared is computed by each of them alike.
        """
        augmented, plain = jax.jit(self.preprocess), jax.jit(lambda x: self.preprocess(None, x))
        size = self.settings.batch_size
        batches = train_batches(self.dataset, size, 0, _ORDER_SEED, stop=count, augment=augment)
        with contextlib.closing(batches):
            for i, batch in enumerate(batches):
                key = jax.random.fold_in(jax.random.PRNGKey(_ORDER_SEED), i)
                yield augmented(key, batch["image"]) if augment else plain(batch["image"])

    def calibration_batch(self) -> jax.Array:
        """The training images on which new ranges are fitted."""
        size = min(self.settings.calibration_size, self.dataset.num_train)
        batch = train_batch(self.dataset, size, 0, _ORDER_SEED, augment=False)
        return self.preprocess(None, jnp.asarray(batch["image"]))

    def evaluator(self, model: Any) -> Callable[[Any], tuple[float, float]]:
        """A function of variables: (top-1 accuracy as a fraction, mean loss in nats).

        Over the evaluation examples. It compiles once, so keep it where it is used again.
        """
        place = self.place
        step = place.evaluate(make_eval_step(model, self.preprocess, axis_name=place.axis_name))
        # What fills a batch up counts nowhere, so it may as well divide over the devices.
        size = self.settings.eval_batch_size
        size += -size % len(place.devices)

        def evaluate(variables):
            variables = place.put_state(variables)
            batches = eval_batches(self.dataset, size, shard=place.shard)
            with contextlib.closing(batches):
                sums = [
                    jax.device_get(step(variables, place.put_batch(batch))) for batch in batches
                ]
            total = {name: sum(float(s[name]) for s in sums) for name in sums[0]}
            return total["correct"] / total["count"], total["loss"] / total["count"]

        return evaluate

    def wrap(self, stage: Stage) -> Any:
        """The model under a stage's rules; the model itself where there are none."""
        return Quantized(self.model, tuple(stage.rules))

    def enter(self, stage: Stage, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The variables with the stage's sites: new ones fitted, gone ones dropped."""
        if not stage.rules:
            return {k: v for k, v in variables.items() if k not in (QUANT, STATS)}
        return attach(self.wrap(stage), variables, self.calibration_batch())

    def execute(self, progress: Progress | None = None) -> dict[str, Any]:
        """Runs what is left of the method.

        Args:
          progress: where to show it; a new one unless given.

        Returns:
          What `result.json` holds.

        Raises:
          NonFiniteError: a loss or gradient was not finite.
          Stopped: `preemption` asked for it; the state is saved.
          SaveError: the last checkpoint could not be written.
          ValueError: a stage's inputs are wrong, see its method.
        """
        keeper = Keeper(self)
        try:
            with progress or Progress(enabled=self.show) as progress:
                variables = self._stages(keeper, progress)
            result = result_of(self, keeper, variables)
            keeper.finish(result, variables)
            self.variables = dict(variables)
            return result
        except BaseException as error:
            keeper.fail(error)
            raise
        finally:
            keeper.close()

    def _stages(self, keeper: Keeper, progress: Progress) -> Mapping[str, Any]:
        place, saved = keeper.restore()
        variables = saved.get("variables", self.start)
        for index, stage in enumerate(self.method.stages):
            if index < place.stage:
                continue
            here = place if place.stage == index else Place(index, "enter")
            keeper.enter_stage(here)
            if here.phase == "train":
                state = saved["state"]
            else:
                previous = saved["previous"] if here.phase == "prepare" else variables
                if here.phase == "enter":
                    variables = self.enter(stage, previous)
                if stage.prepare is not None:
                    context = self._context(index, previous)
                    units = stage.prepare(context, variables, here.unit)
                    for unit, variables in enumerate(units, here.unit + 1):
                        tree = {"variables": variables, "previous": previous}
                        keeper.save(Place(index, "prepare", unit), tree)
                        self._stop_if_asked(index, keeper)
                state = self.fresh_state(index, variables)
            evaluate = self.evaluator(self.wrap(stage))
            state = self._train(index, state, evaluate, keeper, progress)
            variables = variables_of(state)
            accuracy, loss = evaluate(variables)
            done = StageResult(stage.name, stage.steps, keeper.stage_seconds(), accuracy, loss)
            learned = bits_of(variables) if "bits" in stage.optimizers else None
            keeper.end_stage(done, learned)
            keeper.offer(index, self._steps_before(index + 1), accuracy, variables)
            if self.show:
                split = self.dataset.eval_split
                print(f"{stage.name}: {split} accuracy {accuracy:.2%}", flush=True)
            keeper.save(Place(index + 1, "enter"), {"variables": variables})
            if index + 1 < len(self.method.stages):
                self._stop_if_asked(index + 1, keeper)
        return variables

    def fresh_state(self, index: int, variables: Mapping[str, Any]) -> TrainState:
        """The state in which a stage starts; its arrays are its own, because steps donate them."""
        stage = self.method.stages[index]
        offset = self._steps_before(index)
        state = initial_state(stage, variables, key=self.key, offset=offset, teacher=self.start)
        return jax.tree.map(jnp.copy, state)

    def _context(self, index: int, previous: Mapping[str, Any]) -> Context:
        stages = self.method.stages
        return Context(
            model=self.wrap(stages[index]),
            previous_model=self.wrap(stages[index - 1]) if index else None,
            previous=previous,
            batches=self.batches,
            costs=self.costs,
            key=jax.random.fold_in(self.key, 0x57A6E + index),
            log=lambda text: print(text, flush=True) if self.show else None,
        )

    def _train(
        self, index: int, state: TrainState, evaluate: Any, keeper: Keeper, progress: Progress
    ) -> TrainState:
        stage, settings = self.method.stages[index], self.settings
        done, offset = int(state.step), int(state.offset)
        if done >= stage.steps:
            return state
        model, place = self.wrap(stage), self.place
        step = place.train(
            make_train_step(
                model,
                stage,
                self.costs,
                self.preprocess,
                teacher=self.model,
                axis_name=place.axis_name,
                accumulate=settings.accumulate,
            ),
            scanned=settings.steps_per_dispatch > 1,
        )
        state = place.put_state(state)
        data = resident(self.dataset, place, settings.device_data_mb)
        steps = range(offset + done, offset + stage.steps)
        progress.stage(stage.name, stage.steps, done=done)
        began = time.monotonic()
        batches = feed(self.dataset, settings, place, steps, indices=bool(data))
        with contextlib.closing(batches):
            for count, batch in batches:
                state, metrics = step(state, batch, data)
                done += count
                progress.update(
                    done,
                    loss=metrics["loss"],
                    accuracy=metrics["accuracy"],
                    bits=metrics.get("bits"),
                )
                last = done == stage.steps
                stopping = self.preemption.reached(keeper.save_seconds)
                save = not last and (done % settings.checkpoint_every == 0 or stopping)
                log = last or done % settings.log_every == 0
                if log or save:
                    check_finite(self, model, state)
                if log:
                    row = {name: float(v) for name, v in jax.device_get(metrics).items()}
                    row["seconds"] = round(time.monotonic() - began, 3)
                    keeper.row(offset + done, {"stage": stage.name, **row})
                if stage.every is not None and done % stage.every[0] == 0:
                    # The preceding variables are those of this stage: no earlier form is read.
                    here = place.local(state)
                    context = self._context(index, variables_of(here))
                    new = stage.every[1](context, variables_of(here))
                    state = place.put_state(jax.tree.map(jnp.copy, with_variables(here, new)))
                if settings.eval_every and done % settings.eval_every == 0 and not last:
                    accuracy, loss = evaluate(variables_of(state))
                    keeper.row(offset + done, {"eval_accuracy": accuracy, "eval_loss": loss})
                    keeper.offer(index, offset + done, accuracy, variables_of(place.local(state)))
                if save:
                    keeper.save(Place(index, "train", done), {"state": place.local(state)})
                if stopping and not last:  # a stage that is done is evaluated and saved first
                    raise self._stopped(offset + done)
        return place.local(state)

    def _stop_if_asked(self, index: int, keeper: Keeper) -> None:
        if self.preemption.reached(keeper.save_seconds):
            raise self._stopped(self._steps_before(index))

    def _steps_before(self, index: int) -> int:
        return sum(stage.steps for stage in self.method.stages[:index])

    def _stopped(self, step: int) -> Stopped:
        reason = self.preemption.reason
        return Stopped(f"stopped at step {step} ({reason}); run the same command to resume.")


def _computing_in(model: nn.Module, dtype: str) -> nn.Module:
    """The model, in another dtype than the one of its parameters where that is asked for."""
    if dtype == "float32":
        return model
    if not hasattr(model, "dtype"):
        raise ValueError(
            f"`compute_dtype` must be 'float32' for {type(model).__name__}, which has no field "
            f"`dtype`, got {dtype!r}."
        )
    return model.clone(dtype=jnp.dtype(dtype))
