"""Training steps of Linen networks as Flax's examples write them."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks.step_time import KeptResNet
from bitjax.models import resnet20

Batch = dict[str, jax.Array]
Family = dict[str, tuple[Callable[[Any, Batch], tuple[Any, Any]], Any]]  # name: (step, state)


def within(step: Callable, context: Callable[[], AbstractContextManager]) -> Callable:
    """The step, traced in a context."""

    def traced(state: Any, batch: Batch) -> Any:
        with context():
            return step(state, batch)

    return traced


def linen_step(
    batch: Batch,
    net: nn.Module | None = None,
    context: Callable[[], AbstractContextManager] = nullcontext,
) -> tuple[Callable, Any]:
    """`(step, state)` of a Linen network, as Flax's examples write a step by SGD with momentum."""
    net = net or resnet20()
    tx = optax.sgd(0.01, momentum=0.9)
    with context():
        init = jax.jit(functools.partial(net.init, train=True))  # ranges are of normalised inputs
        variables = init(jax.random.key(0), batch["image"][:8])
    params = variables.pop("params")

    def step(state: Any, batch: Batch) -> Any:
        params, rest, moments = state

        def loss_of(params):
            logits, updates = net.apply(
                {"params": params, **rest}, batch["image"], train=True, mutable=list(rest)
            )
            return jnp.mean(cross_entropy(logits, batch["label"])), (logits, updates)

        (loss, (logits, rest)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        deltas, moments = tx.update(grads, moments, params)
        metrics = {"loss": loss, "accuracy": accuracy(logits, batch["label"])}
        return (optax.apply_updates(params, deltas), rest, moments), metrics

    return within(step, context), (params, variables, tx.init(params))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Of each example."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The share of examples whose greatest logit is their label's."""
    return jnp.mean(jnp.argmax(logits, -1) == labels)


def linen_floats(batch: Batch) -> Family:
    """The float steps that a family of Linen networks begins with."""
    return {"float": linen_step(batch), "float, kept": linen_step(batch, KeptResNet())}
