"""One run of a method as a value: what is trained on what, how and where."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bitjax.costs.site import Costs
from bitjax.data import (
    AUGMENTATIONS,
    Dataset,
    DatasetLike,
    eval_batches,
    normalize,
    train_batch,
    train_batches,
)
from bitjax.data.check import check_labels
from bitjax.export.deploy import Deployed, deploy
from bitjax.frameworks.attach import attach, attached_shapes
from bitjax.frameworks.compiled import compile_quickly, jit_arrays
from bitjax.frameworks.costs import site_costs
from bitjax.frameworks.linen import Quantized
from bitjax.methods.base import Context, Method, Stage
from bitjax.training.parallel import Placement, placement
from bitjax.training.settings import Settings, check_images, check_place, check_settings
from bitjax.training.state import TrainState, initial_state
from bitjax.training.step import make_eval_step, make_train_step
from bitjax.training.task import TASKS, Preprocess, Task, figures_of
from bitjax.training.trial import try_task
from bitjax.variables import as_batch, as_call, floats_of

Variables = Mapping[str, Any]

_ORDER_SEED = 0x5EED  # of the images that preparation sees; the same in every run


class Work(NamedTuple):
    """One run of a method on a model and a data set, as a value; `make_work` makes and checks it.

    Attributes:
      method: the stages.
      model: a plain Linen module.
      dataset: the data.
      task: the model's inputs, the loss, the figures and the score.
      settings: batch size, seed, devices and the like, see `Settings`.
      place: the devices, and the form in which a step runs on them.
      key: raw PRNG key of the run, [2] uint32.
      start: the float variables that it starts from.
      costs: the costs of every site, from `site_costs`.
      facts: entries of `result.json` beside the measurements: name, config_hash, budget, ...
      known_as: hashes that older versions gave its config.
      entered: a stage and its variables when entered from `start`, where they are made already.
    """

    method: Method
    model: nn.Module
    dataset: DatasetLike
    task: Task
    settings: Settings
    place: Placement
    key: jax.Array
    start: Variables
    costs: Costs
    facts: Mapping[str, Any]
    known_as: tuple[str, ...] = ()
    entered: tuple[Stage, Variables] | None = None

    def is_config_of(self, digest: Any) -> bool:
        """Whether a hash names the run's config; of a run without one, whether there is none."""
        own = self.facts.get("config_hash")
        return digest == own or digest in self.known_as

    def preprocess(self, key: jax.Array | None, images: jax.Array) -> jax.Array:
        """Raw pixels to what the model takes; augmented where there is a key."""
        return preprocessing(self.dataset, self.settings.augmentation)(key, images)

    def inputs(self, key: jax.Array | None, batch: Mapping[str, Any]) -> tuple[tuple, dict]:
        """The model's `(args, kwargs)` of a batch; augmented where there is a key."""
        return self.task.inputs(self.preprocess, key, batch)

    def batches(self, count: int, augment: bool) -> Iterator[Any]:
        """`count` model inputs from the training examples, the same ones at every call.

        Whole batches on every host: what is prepared is computed by each of them alike. A tuple
        where the model takes several arguments, `bitjax.Inputs` where it takes some by name.
        """
        preprocess = preprocessing(self.dataset, self.settings.augmentation)
        static = self.task.inputs, preprocess
        size = self.settings.batch_size
        batches = train_batches(self.dataset, size, 0, _ORDER_SEED, stop=count, augment=augment)
        with contextlib.closing(batches):
            for i, batch in enumerate(batches):
                key = jax.random.fold_in(jax.random.PRNGKey(_ORDER_SEED), i) if augment else None
                yield jit_arrays(_as_batch, key, batch, static=static)

    def weights(self, count: int, augment: bool) -> Iterator[Any]:
        """How much each position of the same examples counts, where the task tells."""
        weights = self.task.weights
        assert weights is not None, "the task tells"
        size = self.settings.batch_size
        batches = train_batches(self.dataset, size, 0, _ORDER_SEED, stop=count, augment=augment)
        with contextlib.closing(batches):
            yield from map(weights, batches)

    def calibration_batch(self) -> Any:
        """The training examples on which new ranges are fitted, as the model takes them."""
        size = min(self.settings.calibration_size, self.dataset.num_train)
        batch = train_batch(self.dataset, size, 0, _ORDER_SEED, augment=False)
        return as_batch(*self.inputs(None, jax.device_put(batch)))

    def evaluator(self, model: Any) -> Callable[..., dict[str, float]]:
        """A function of variables: the task's figures over the evaluation examples.

        It compiles once, so keep it where it is used again. A task that compares does so with this
        run's start, unless another run's is given behind the variables.
        """
        place, task = self.place, self.task
        step = place.evaluate(
            make_eval_step(
                model, self.preprocess, task=task, teacher=self.model, axis_name=place.axis_name
            )
        )
        # What fills a batch up counts nowhere, so it may as well divide over the devices.
        size = self.settings.eval_batch_size
        size += -size % len(place.devices)

        def evaluate(variables, start=None):
            if task.compare is not None:
                variables = variables, self.start if start is None else start
            variables = place.put_state(variables)
            batches = eval_batches(self.dataset, size, shard=place.shard)
            with contextlib.closing(batches):
                sums = [
                    jax.device_get(step(variables, place.put_batch(batch))) for batch in batches
                ]
            total = {name: sum(float(s[name]) for s in sums) for name in sums[0]}
            return figures_of(task, total)

        return evaluate

    def wrap(self, stage: Stage) -> Quantized:
        """The model under a stage's rules."""
        return Quantized(self.model, tuple(stage.rules), sums=self.settings.sums)

    def enter(self, stage: Stage, variables: Variables) -> dict[str, Any]:
        """The variables with the stage's sites: new ones fitted, gone ones dropped."""
        if not stage.rules:
            return floats_of(variables)
        if self.entered and self.entered[0] is stage and variables is self.start:
            return jax.tree.map(lambda x: x, dict(self.entered[1]))  # dicts of its own
        inputs = as_call(self.calibration_batch())
        return attach(self.wrap(stage), variables, *inputs.args, **inputs.kwargs)

    def context(self, index: int, previous: Variables, log: Callable[[str], None]) -> Context:
        """What the preparation of a stage may use.

        Args:
          index: the stage's place in the method.
          previous: the variables that the stage before it ended with.
          log: takes a line of text.
        """
        stages = self.method.stages
        return Context(
            model=self.wrap(stages[index]),
            previous_model=self.wrap(stages[index - 1]) if index else None,
            previous=previous,
            batches=self.batches,
            costs=self.costs,
            key=jax.random.fold_in(self.key, 0x57A6E + index),
            log=log,
            weights=self.weights if self.task.weights else None,
        )

    def train_step(self, index: int) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
        """The per-device step of a stage, not jitted; see `make_train_step`."""
        stage = self.method.stages[index]
        return make_train_step(
            self.wrap(stage),
            stage,
            self.costs,
            self.preprocess,
            task=self.task,
            teacher=self.model,
            axis_name=self.place.axis_name,
            accumulate=self.settings.accumulate,
        )

    def steps_before(self, index: int) -> int:
        """Steps of the run before a stage."""
        return sum(stage.steps for stage in self.method.stages[:index])

    def first_state(self, index: int, variables: Variables) -> TrainState:
        """The state in which a stage starts; its arrays may be the variables' own."""
        return initial_state(
            self.method.stages[index],
            variables,
            key=self.key,
            offset=self.steps_before(index),
            teacher=self.start,
        )

    def input_shapes(self, count: int = 2) -> tuple[tuple, dict]:
        """Shapes of the model's arguments for so many examples."""
        # Of the shapes alone: the examples themselves may have to be decoded.
        specs = self.dataset.specs(count)
        return jax.eval_shape(lambda batch: self.inputs(None, batch), specs)

    def deployed(self, variables: Variables) -> Deployed:
        """The model of the last stage as it is taken away."""
        args, kwargs = self.input_shapes()
        return deploy(self.wrap(self.method.stages[-1]), variables, *args, **kwargs)

    def variable_shapes(self, index: int) -> dict[str, Any]:
        """Shapes of the model's variables in a stage, computing nothing; -1: before the first."""
        shapes = jax.eval_shape(lambda: floats_of(self.start))
        if index < 0 or not self.method.stages[index].rules:
            return shapes
        model = self.wrap(self.method.stages[index])
        args, kwargs = self.input_shapes()
        return {**shapes, **attached_shapes(model, shapes, args, kwargs)}

    def state_shapes(self, index: int) -> Any:
        """Shapes of the state of a stage, computing nothing."""
        return jax.eval_shape(lambda v: self.first_state(index, v), self.variable_shapes(index))


def preprocessing(dataset: Any, augmentation: str) -> Preprocess:
    """What makes a model's inputs of a data set's images."""
    scale = [getattr(dataset, name, None) for name in ("mean", "std", "max_value")]
    return partial(_preprocess, augmentation, *scale)


def _preprocess(augmentation, mean, std, max_value, key, images):
    if key is not None:
        images = AUGMENTATIONS[augmentation](key, images)
    return normalize(images, mean, std, max_value)


def _as_batch(inputs, preprocess, key, batch):
    return as_batch(*inputs(preprocess, key, batch))


def task_of(dataset: DatasetLike) -> Task:
    """The task that a data set is for, unless a run has another one."""
    return TASKS[dataset.task]()


def make_work(
    method: Method,
    model: nn.Module,
    dataset: DatasetLike,
    variables: Variables | None = None,
    settings: Settings | None = None,
    *,
    task: Task | None = None,
    facts: Mapping[str, Any] | None = None,
    place: Placement | None = None,
) -> Work:
    """Checks what a run consists of, initialises its model and measures its costs.

    Args:
      method: the stages.
      model: a plain Linen module whose call takes what `task.inputs` gives.
      dataset: the data.
      variables: float variables to start from; None initialises them from the seed.
      settings: batch size, seed, devices and the like; `Settings()` unless given.
      task: that of the data set, `classification()` or `next_token()`, unless given.
      facts: entries of `result.json` beside the measurements.
      place: the devices that compute; chosen by the settings unless given.

    Raises:
      ValueError: a setting is out of its range or does not go with the devices, a stage does not go
        with the model's sites, labels are no classes, or the task does not go with the model's
        outputs or with the data.

    Example:
      >>> from bitjax.data import load
      >>> from bitjax.methods import full_precision
      >>> from bitjax.models import MLP
      >>> work = make_work(full_precision(steps=5), MLP(features=(8,)), load("digits"))
      >>> work.task.score, sorted(work.start)
      ('accuracy', ['params'])
    """
    settings = check_settings(settings or Settings())
    check_images(settings, dataset)
    # Files of JSON, which hold the steps, take no NumPy integers.
    method = method._replace(stages=tuple(s._replace(steps=int(s.steps)) for s in method.stages))
    if task is None and isinstance(dataset, Dataset):
        check_labels(dataset)
    task = task or task_of(dataset)
    place = place or placement(settings.parallel, settings.devices)
    check_place(settings, place, method)
    model = _computing_in(model, settings.compute_dtype)
    try_task(task, model, dataset, preprocessing(dataset, settings.augmentation))
    key = jax.random.PRNGKey(settings.seed)
    work = Work(
        method=method,
        model=model,
        dataset=dataset,
        task=task,
        settings=settings,
        place=place,
        key=key,
        start={},
        costs={},
        facts=dict(facts or {}),
    )
    # Variables start from real examples: a layer may fit itself to what it is shown.
    args, kwargs = work.inputs(None, jax.device_put(dataset.eval_sample(2)))
    if variables is None:
        init = jax.jit(model.init, **compile_quickly(exact=True))
        variables = init(jax.random.fold_in(key, 0x1417), *args, **kwargs)
    costs = site_costs(Quantized(model, sums=settings.sums), *args, **kwargs)
    for stage in method.stages:
        if stage.check is not None:
            stage.check(costs)
    return work._replace(start=dict(variables), costs=costs)


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
