"""One training step and one evaluation step, as pure per-device functions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bitjax.costs.bits import bits_of
from bitjax.costs.measures import average_bits
from bitjax.costs.site import Costs
from bitjax.frameworks.finite import is_finite
from bitjax.frameworks.linen import Quantized
from bitjax.methods.base import Stage
from bitjax.training.state import TrainState, moving, optimizer, variables_of, with_variables
from bitjax.training.task import Preprocess, Task, all_sums, classification
from bitjax.variables import QUANT, STATS

Metrics = dict[str, jax.Array]


def step_keys(key: jax.Array, step: Any, device: Any = None, part: Any = None) -> jax.Array:
    """Keys of augmentation, quantizers and dropout, [3, 2] uint32, of a step of the whole run."""
    key = jax.random.fold_in(key, step)
    for place in (device, part):
        if place is not None:
            key = jax.random.fold_in(key, place)
    return jax.random.split(key, 3)


def make_train_step(
    model: Quantized,
    stage: Stage,
    costs: Costs,
    preprocess: Preprocess,
    *,
    task: Task | None = None,
    teacher: Any = None,
    axis_name: str | None = None,
    accumulate: int = 1,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """Builds `step(state, batch) -> (state, metrics)` for one device of `axis_name`, not jitted.

    Everything that a run may vary without a new program is in the state: bits, strengths, learning
    rates, the seed. A step whose loss, gradient or result is not finite changes nothing but
    `bad_step`, and no later step changes anything: the last good state is what remains.

    Args:
      model: under the stage's rules.
      stage: whose optimizers, penalty and loss the step uses.
      costs: the costs of every site, from `site_costs`.
      preprocess: `(key, images) -> model input`; augments where key is not None.
      task: the loss and the figures; `classification()` unless given.
      teacher: the float model, where `stage.teacher`.
      axis_name: name of the axis of devices that share the batch.
      accumulate: parts in which a device takes its examples, one after the other, to save memory;
        gradients and metrics are means over the parts. Batch statistics and ranges are those of a
        part, and what is kept of them is the mean too, so that their averages move once a step.

    Returns:
      The step. Batches are as the task takes them; metrics are scalars: `loss` (with the penalty),
      `task_loss`, the task's other figures, and `bits`, the average, where there are any.

    Example: see `tests/training/test_step.py`; the runner is the usual caller.
    """
    model = model.clone(axis_name=axis_name)
    task = task or classification()
    differentiate = _make_gradient(model, stage, costs, preprocess, task, teacher)
    weigh = task.weights if axis_name or accumulate > 1 else None
    tx = optimizer(stage)

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        device = jax.lax.axis_index(axis_name) if axis_name else None
        when = state.offset + state.step
        usual = None if weigh is None else _usual_weight(weigh(batch), axis_name, accumulate)
        if accumulate == 1:
            found = differentiate(state, batch, step_keys(state.key, when, device), usual)
        else:

            def one(part, examples):
                keys = step_keys(state.key, when, device, part)
                return differentiate(state, examples, keys, usual)

            found = _mean_over_parts(one, batch, accumulate)
        metrics, updates, grads = found
        if axis_name:
            metrics, updates, grads = _merge(metrics, updates, grads, axis_name)
        new, tested = _updated(state, stage, tx, costs, updates, grads, metrics["loss"])
        # A conditional, because XLA would work out every leaf of it a second time, as a part of the
        # one vector that is tested.
        good = jax.lax.cond(state.bad_step < 0, is_finite, lambda tree: jnp.bool_(False), tested)
        # A conditional, not a select per leaf: XLA would fuse the whole test into each of them, and
        # compile four times as long.
        new = jax.lax.cond(good, lambda new, old: new, lambda new, old: old, new, state)
        bad = jnp.where(good | (state.bad_step >= 0), state.bad_step, state.step)
        if state.quant:
            metrics = {**metrics, "bits": average_bits(bits_of(new.quant), costs)}
        return new._replace(bad_step=bad), metrics

    return step


def _make_gradient(
    model: Quantized,
    stage: Stage,
    costs: Costs,
    preprocess: Preprocess,
    task: Task,
    teacher: Any,
) -> Callable[..., tuple[Metrics, Any, Any]]:
    """`(state, batch, keys, usual) -> (metrics, what the model observed, gradient)` of a part."""
    # `usual` is the weight of all predictions of a part on average. A mean over parts is then that
    # over predictions, however many each part has. Where it is None the parts count alike.

    def differentiate(
        state: TrainState, batch: dict[str, jax.Array], keys: jax.Array, usual: Any
    ) -> Any:
        augment_key, quant_key, dropout_key = keys
        args, kwargs = task.inputs(preprocess, augment_key, batch)
        progress = state.step / max(1, stage.steps)
        soft = None
        if stage.teacher:
            soft = jax.lax.stop_gradient(teacher.apply(state.teacher, *args, **kwargs))

        quantized = model
        if stage.anneal is not None:
            quantized = model.clone(rules=tuple(stage.anneal(model.rules, costs, progress)))

        def loss_of(trained):
            outputs, updates = quantized.apply(
                {**variables_of(state), **trained},
                *args,
                **kwargs,
                train=True,
                mutable=[*state.other, STATS],
                rngs={QUANT: quant_key, "dropout": dropout_key},
            )
            outputs = jax.tree.map(_widened, outputs)
            loss = task.loss(outputs, batch)
            counts = task.weights(batch) if task.weights is not None else None
            if stage.loss is not None:
                loss = stage.loss(loss, outputs, soft, counts)
            if counts is not None and usual is not None:
                loss = loss * (jnp.sum(counts) / usual)
            extra = jnp.float32(0.0)
            if stage.penalty is not None:
                extra = stage.penalty(trained[QUANT], costs, state.controls, progress)
            return loss + extra, (loss, outputs, updates)

        trained = {"params": state.params, QUANT: state.quant}
        (loss, (own, outputs, updates)), grads = jax.value_and_grad(loss_of, has_aux=True)(trained)
        figures = task.figures(task.sums(outputs, batch))
        return {**figures, "task_loss": own, "loss": loss}, updates, grads

    return differentiate


def _usual_weight(weights: jax.Array, axis_name: str | None, accumulate: int) -> jax.Array:
    """The weight of all predictions of a device's part of a batch, on average over the parts."""
    total = jnp.sum(weights)
    total = jax.lax.pmean(total, axis_name) if axis_name else total
    return jnp.maximum(total / accumulate, 1e-6)


def _merge(metrics: Metrics, updates: Any, grads: Any, axis_name: str) -> tuple[Any, Any, Any]:
    """Means over devices; batch normalisations and quantizers have merged their own updates."""
    with jax.named_scope("merge_metrics"):
        metrics = jax.lax.pmean(metrics, axis_name)
    merged = {}
    for name, tree in grads.items():
        with jax.named_scope(f"merge_gradients_{name}"):
            merged[name] = jax.lax.pmean(tree, axis_name)
    own = {n: t for n, t in updates.items() if n not in (STATS, "batch_stats")}
    own = jax.tree.map(lambda x: jax.lax.pmean(x, axis_name) if _is_float(x) else x, own)
    return metrics, {**updates, **own}, merged


def _updated(
    state: TrainState,
    stage: Stage,
    tx: optax.GradientTransformation,
    costs: Costs,
    updates: Any,
    grads: Any,
    loss: jax.Array,
) -> tuple[TrainState, Any]:
    """The state after an update; and loss, gradient and result, which must be finite."""
    trained = {"params": state.params, QUANT: state.quant}
    # What no optimizer moves needs no gradient: the compiler drops what would have made it.
    moves = moving(stage, trained)
    grads = jax.tree.map(lambda g, moved: g if moved else jnp.zeros_like(g), grads, moves)
    if stage.steer is not None:
        progress = state.step / max(1, stage.steps)
        steered = stage.steer(grads[QUANT], state.quant, costs, state.controls, progress)
        grads = {**grads, QUANT: steered}
    deltas, opt_state = tx.update(grads, state.opt_state, trained)
    trained: Any = optax.apply_updates(trained, deltas)  # a tree of the kind that it was given
    variables = {**variables_of(state), **trained, **updates}
    controls = state.controls
    if stage.after_step is not None:
        variables, controls = stage.after_step(variables, controls, costs, state.step + 1)
    new = with_variables(
        state._replace(opt_state=opt_state, controls=controls, step=state.step + 1), variables
    )
    # A step may overflow where its gradient does not.
    return new, (loss, grads, variables)


def _mean_over_parts(one: Callable, batch: dict[str, jax.Array], count: int) -> Any:
    """The mean of `one(part, examples)` over `count` parts of a batch, computed one by one."""
    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
    shapes = jax.eval_shape(one, 0, jax.tree.map(lambda x: x[0], parts))

    def add(total, at):
        found = one(*at)
        return jax.tree.map(lambda t, x: t + x if _is_float(x) else x, total, found), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    # XLA's CPU library runs a convolution inside a loop ten times slower.
    unroll = count if jax.default_backend() == "cpu" else 1
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(count), parts), unroll=unroll)
    return jax.tree.map(lambda x: x / count if _is_float(x) else x, total)


def _is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _widened(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) if _is_float(leaf) else leaf


def make_eval_step(
    model: Any,
    preprocess: Preprocess,
    *,
    task: Task | None = None,
    teacher: Any = None,
    axis_name: str | None = None,
) -> Callable[[Any, dict[str, jax.Array]], Metrics]:
    """Builds `step(variables, batch) -> sums` over the examples whose mask is 1.

    Args:
      model: `Quantized` or plain.
      preprocess: the function that `make_train_step` takes, called without a key.
      task: what is summed; `classification()` unless given.
      teacher: the float model, where the task compares; the step's variables are then a pair, the
        model's and the teacher's.
      axis_name: name of the axis of devices that share the batch.

    Returns:
      The step; its sums are the task's, for `classification()` `loss` (nats), `correct` and
      `count`, float32 scalars.
    """
    task = task or classification()

    def step(variables: Any, batch: dict[str, jax.Array]) -> Metrics:
        args, kwargs = task.inputs(preprocess, None, batch)
        soft = None
        if task.compare is not None:
            variables, floats = variables
            soft = teacher.apply(floats, *args, **kwargs)
        sums = all_sums(task, model.apply(variables, *args, **kwargs), soft, batch)
        return jax.lax.psum(sums, axis_name) if axis_name else sums

    return step
