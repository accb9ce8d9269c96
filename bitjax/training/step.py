"""One training step and one evaluation step, as pure per-device functions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bitjax.costs.measures import average_bits, bits_of
from bitjax.costs.site import Costs
from bitjax.linen.finite import is_finite
from bitjax.linen.quantized import Quantized
from bitjax.methods.base import Stage
from bitjax.training.state import TrainState, moving, optimizer, variables_of, with_variables
from bitjax.variables import QUANT, STATS

Metrics = dict[str, jax.Array]
Preprocess = Callable[[jax.Array | None, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy of each example, [batch], in nats; float32 or wider.

    Example:
      >>> round(float(cross_entropy(jnp.zeros((1, 2)), jnp.array([0]))[0]), 4)
      0.6931
    """
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(wide, labels)


def step_keys(key: jax.Array, step: Any, device: Any = None, part: Any = None) -> jax.Array:
    """Keys of augmentation, quantizers and dropout, [3, 2] uint32, of a step of the whole run.

    Args:
      key: raw PRNG key of the run.
      step: of the run.
      device: its place in the batch, where there are several: each draws for itself.
      part: of the device's examples, where it takes them in parts.

    Example:
      >>> step_keys(jax.random.PRNGKey(0), 7).shape
      (3, 2)
    """
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
      costs: from `site_costs`.
      preprocess: `(key, images) -> model input`; augments where key is not None.
      teacher: the float model, where `stage.teacher`.
      axis_name: of the devices that share the batch.
      accumulate: parts in which a device takes its examples, one after the other, to save memory;
        gradients and metrics are means over the parts. Batch statistics and ranges are those of a
        part, and what is kept of them is the mean too, so that their averages move once a step.

    Returns:
      The step. Batches are {'image': [n, ...], 'label': int32 [n]}; metrics are scalars: `loss`
      (with the penalty), `task_loss`, `accuracy`, and `bits`, the average, where there are any.

    Example: see `tests/training/test_step.py`; the runner is the usual caller.
    """
    model = model.clone(axis_name=axis_name, parts=accumulate)
    tx = optimizer(stage)

    def differentiate(state: TrainState, batch: dict[str, jax.Array], keys: jax.Array) -> Any:
        """(loss, task loss, share of hits), what the model observed, and the gradient."""
        augment_key, quant_key, dropout_key = keys
        x = preprocess(augment_key, batch["image"])
        progress = state.step / max(1, stage.steps)
        soft = None
        if stage.teacher:
            soft = jax.lax.stop_gradient(teacher.apply(state.teacher, x))

        def loss_of(trained):
            variables = {**variables_of(state), **trained}
            mutable = [name for name in (*state.other, STATS)]
            logits, updates = model.apply(
                variables,
                x,
                train=True,
                mutable=mutable,
                rngs={QUANT: quant_key, "dropout": dropout_key},
            )
            logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
            if stage.loss is None:
                task = jnp.mean(cross_entropy(logits, batch["label"]))
            else:
                task = stage.loss(logits, batch["label"], soft)
            extra = jnp.float32(0.0)
            if stage.penalty is not None:
                extra = stage.penalty(trained[QUANT], costs, state.controls, progress)
            return task + extra, (task, logits, updates)

        trained = {"params": state.params, QUANT: state.quant}
        (loss, (task, logits, updates)), grads = jax.value_and_grad(loss_of, has_aux=True)(trained)
        hits = jnp.mean(jnp.argmax(logits, -1) == batch["label"])
        return (loss, task, hits), updates, grads

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        device = jax.lax.axis_index(axis_name) if axis_name else None
        when = state.offset + state.step
        if accumulate == 1:
            found = differentiate(state, batch, step_keys(state.key, when, device))
        else:

            def one(part, examples):
                keys = step_keys(state.key, when, device, part)
                return differentiate(state, examples, keys)

            found = _mean_over_parts(one, batch, accumulate)
        (loss, task, hits), updates, grads = found
        if axis_name:
            with jax.named_scope("merge_metrics"):
                loss, task, hits = jax.lax.pmean((loss, task, hits), axis_name)
            for name, tree in grads.items():
                with jax.named_scope(f"merge_gradients_{name}"):
                    grads[name] = jax.lax.pmean(tree, axis_name)
            # Batch normalisations and quantizers have merged theirs.
            own = {n: t for n, t in updates.items() if n not in (STATS, "batch_stats")}
            updates = {**updates, **_pmean_floats(own, axis_name)}
        trained = {"params": state.params, QUANT: state.quant}
        # What no optimizer moves needs no gradient: the compiler drops what would have made it.
        moves = moving(stage, trained)
        grads = jax.tree.map(lambda g, moved: g if moved else jnp.zeros_like(g), grads, moves)

        deltas, opt_state = tx.update(grads, state.opt_state, trained)
        trained: dict[str, Any] = optax.apply_updates(trained, deltas)  # pyrefly: ignore
        variables = {**variables_of(state), **trained, **updates}
        controls = state.controls
        if stage.after_step is not None:
            variables, controls = stage.after_step(variables, controls, costs, state.step + 1)
        new = with_variables(
            state._replace(opt_state=opt_state, controls=controls, step=state.step + 1), variables
        )
        # A step may overflow where its gradient does not.
        finite = is_finite((loss, grads, variables))
        good = finite & (state.bad_step < 0)
        # A conditional, not a select per leaf: XLA would fuse the whole test into each of them, and
        # compile four times as long.
        new = jax.lax.cond(good, lambda new, old: new, lambda new, old: old, new, state)
        bad = jnp.where(finite | (state.bad_step >= 0), state.bad_step, state.step)
        metrics = {"loss": loss, "task_loss": task, "accuracy": hits}
        if state.quant:
            metrics["bits"] = average_bits(bits_of(new.quant), costs)
        return new._replace(bad_step=bad), metrics

    return step


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


def _pmean_floats(tree: Any, axis_name: str) -> Any:
    return jax.tree.map(lambda x: jax.lax.pmean(x, axis_name) if _is_float(x) else x, tree)


def _is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def make_eval_step(
    model: Any, preprocess: Preprocess, *, axis_name: str | None = None
) -> Callable[[Any, dict[str, jax.Array]], Metrics]:
    """Builds `step(variables, batch) -> sums` over the examples whose mask is 1.

    Args:
      model: `Quantized` or plain.
      preprocess: as in `make_train_step`; called without a key.
      axis_name: of the devices that share the batch.

    Returns:
      The step; its sums are `loss` (nats), `correct` and `count`, float32 scalars.
    """

    def step(variables: Any, batch: dict[str, jax.Array]) -> Metrics:
        logits = model.apply(variables, preprocess(None, batch["image"]))
        mask = batch["mask"]
        hit = jnp.argmax(logits, -1) == batch["label"]
        # Filling is black images: their loss is finite, and the mask removes it.
        sums = {
            "loss": jnp.sum(cross_entropy(logits, batch["label"]) * mask),
            "correct": jnp.sum(hit * mask),
            "count": jnp.sum(mask),
        }
        return jax.lax.psum(sums, axis_name) if axis_name else sums

    return step
