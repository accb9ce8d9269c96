"""Optimizers whose learning rate is a leaf of their state."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bitjax.checks import PATTERN, checked, choice, instance, integer, number


class ScheduledState(NamedTuple):
    """The learning rate's peak as a leaf, so that changing it recompiles nothing."""

    learning_rate: jax.Array
    count: jax.Array
    inner: Any


@checked(
    direction=instance(optax.GradientTransformation),
    learning_rate=number(0),
    steps=integer(0),
    warmup=integer(0),
    decay=choice("cosine", "constant"),
    end=number(0, 1),
)
def scheduled(
    direction: optax.GradientTransformation,
    learning_rate: float,
    steps: int,
    *,
    warmup: int = 0,
    decay: str = "cosine",
    end: float = 0.0,
) -> optax.GradientTransformation:
    """Steps of -learning_rate * shape(count) along `direction`, with the rate a leaf of the state.

    Args:
      direction: such as `optax.trace(0.9)` or `optax.scale_by_adam()`.
      learning_rate: the peak.
      steps: steps over which the shape runs; it stays at its end after them.
      warmup: steps in which the rate rises linearly from 0.
      decay: `cosine` falls to `end`, `constant` does not.
      end: share of the peak at the end.

    Raises:
      ValueError: an unknown decay.

    Example:
      >>> tx = scheduled(optax.identity(), 0.5, steps=10, decay="constant")
      >>> updates, state = tx.update({"w": jnp.float32(1.0)}, tx.init({"w": jnp.float32(0.0)}))
      >>> float(updates["w"])
      -0.5
    """

    fall = max(1, int(steps) - int(warmup))  # of JAX's own numbers a step would make tracers

    def shape(count):
        rise = jnp.minimum(1.0, (count + 1.0) / (warmup + 1.0))
        if decay == "constant":
            return rise
        share = jnp.clip((count - warmup) / fall, 0.0, 1.0)
        return rise * (end + (1.0 - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * share)))

    def init(params):
        zero = jnp.zeros((), jnp.int32)
        return ScheduledState(jnp.float32(learning_rate), zero, direction.init(params))

    def update(updates, state, params=None):
        updates, inner = direction.update(updates, state.inner, params)
        rate = state.learning_rate * shape(state.count.astype(jnp.float32))
        updates = jax.tree.map(lambda u: -rate.astype(u.dtype) * u, updates)
        return updates, ScheduledState(state.learning_rate, state.count + 1, inner)

    return optax.GradientTransformation(init, update)


@checked(momentum=number(0, 1, below=True), weight_decay=number(0))
def sgd(momentum: float = 0.9, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """The direction of SGD with momentum, decay added to the gradient as PyTorch does.

    Example:
      >>> direction = sgd(momentum=0.0, weight_decay=0.1)
      >>> state = direction.init({"w": jnp.float32(1.0)})
      >>> updates, _ = direction.update({"w": jnp.float32(1.0)}, state, {"w": jnp.float32(1.0)})
      >>> round(float(updates["w"]), 3)
      1.1
    """
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(momentum))


@checked(momentum=number(0, 1, below=True), weight_decay=number(0))
def adamw(momentum: float = 0.9, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """The direction of Adam with decay apart from the moments, as language models are trained.

    Example:
      >>> direction = adamw(weight_decay=0.1)
      >>> w = {"w": jnp.float32(1.0)}
      >>> updates, _ = direction.update({"w": jnp.float32(0.5)}, direction.init(w), w)
      >>> round(float(updates["w"]), 3)
      1.1

    Source: Loshchilov and Hutter, arXiv 1711.05101.
    """
    return optax.chain(optax.scale_by_adam(momentum), optax.add_decayed_weights(weight_decay))


DIRECTIONS = {"sgd": sgd, "adamw": adamw}  # of weights, by the names that recipes have


def adam() -> optax.GradientTransformation:
    """The direction of Adam, for the many small leaves of quantizers, as one vector.

    A step then compiles a handful of operations instead of twenty for every leaf.

    Example:
      >>> direction = adam()
      >>> updates, _ = direction.update({"n": jnp.ones(())}, direction.init({"n": jnp.ones(())}))
      >>> round(float(updates["n"]), 3)
      1.0
    """
    one, none = optax.flatten(optax.scale_by_adam()), optax.scale_by_adam()

    def choose(tree):
        return one if jax.tree.leaves(tree) else none  # nothing cannot be joined to a vector

    return optax.GradientTransformation(
        lambda params: choose(params).init(params),
        lambda updates, state, params=None: choose(updates).update(updates, state, params),
    )


def relative() -> optax.GradientTransformation:
    """Multiplies each element's direction by its magnitude: rates are then of its logarithm.

    Example:
      >>> updates, _ = relative().update({"s": -1.0}, optax.EmptyState(), {"s": jnp.float32(0.5)})
      >>> float(updates["s"])
      -0.5
    """
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, p: u * jnp.abs(p), updates, params)
    )


@checked(pattern=PATTERN)
def tie(pattern: str = ".*") -> optax.GradientTransformation:
    """Sums the gradient of all `bits` leaves whose site matches, so that they move as one.

    Chained before the optimizer of bits it gives one bitlength per network, or per group of sites;
    they must start equal.

    Args:
      pattern: a regular expression, matched in full against `layer/path/role`.

    Example:
      >>> grads = {"quant": {r: {"bits": jnp.float32(1.0)} for r in ("kernel", "input")}}
      >>> tied, _ = tie().update(grads, tie().init(grads))
      >>> float(tied["quant"]["kernel"]["bits"])
      2.0
    """

    def chosen(path):
        names = [str(p.key) for p in path if hasattr(p, "key")]
        site = "/".join(n for n in names[:-1] if n != "quant")
        return bool(names) and names[-1] == "bits" and re.fullmatch(pattern, site) is not None

    def update(updates, state, params=None):
        del params
        leaves = jax.tree_util.tree_leaves_with_path(updates)
        total = sum((jnp.sum(g) for path, g in leaves if chosen(path)), jnp.float32(0.0))

        def share(path, g):
            return jnp.full_like(g, total) if chosen(path) else g

        return jax.tree_util.tree_map_with_path(share, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
