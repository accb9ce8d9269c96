"""How far a quantized network's predictions are from the float one's; its bits are data."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.frameworks.call import Model, run
from bitjax.frameworks.compiled import jit_arrays
from bitjax.frameworks.models import float_model
from bitjax.frameworks.shapes import one_key
from bitjax.variables import Inputs, as_call

Distance = Callable[[Any, Any], jax.Array]  # (float outputs, outputs) -> one number a prediction


def logits_of(out: Any) -> jax.Array:
    """The output as logits [..., classes]; a ValueError for another one."""
    if not getattr(out, "ndim", 0) or not jnp.issubdtype(out.dtype, jnp.floating):
        got = f"{out.dtype} {out.shape}" if hasattr(out, "dtype") else f"a {type(out).__name__}"
        raise ValueError(
            f"the model must return logits [..., classes], got {got}: wrap it in a function that "
            "returns them alone."
        )
    return out


def divergence(float_outputs: Any, outputs: Any) -> jax.Array:
    """KL of the float network's classes from the quantized one's, in nats; over the last axis."""
    logits = (jnp.float32(logits_of(out)) for out in (float_outputs, outputs))
    log_p, log_q = (jax.nn.log_softmax(x) for x in logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def weighted(batches: Iterable[Any], weights: Iterable[Any] | None) -> Iterator[tuple[Any, Any]]:
    """Every batch with the weights of its predictions, None where all count 1."""
    rest = None if weights is None else iter(weights)
    for index, batch in enumerate(batches):
        weight = None if rest is None else next(rest, None)
        if rest is not None and weight is None:
            raise ValueError(f"`weights` must have an array for every batch, got {index} of them.")
        yield batch, weight


def as_weights(weights: Any, predictions: jax.Array) -> jax.Array:
    """The weights of a batch's predictions, all 1 where none are given."""
    found = jnp.ones_like(predictions) if weights is None else jnp.float32(weights)
    if found.shape != predictions.shape:
        raise ValueError(
            f"`weights` must have one number a prediction, {predictions.shape}, got {found.shape}."
        )
    return found


class Judged(NamedTuple):
    """A batch, what the float network says of it, and what each prediction counts."""

    inputs: Inputs
    outputs: Any
    weights: Any


class Judge(NamedTuple):
    """The mean distance of a model from its float network, over the predictions of batches."""

    batches: Sequence[Judged]
    sums: Callable[..., jax.Array]  # (variables, batch) -> sums of distances and of weights
    seen: list[int]  # how often it judged

    def __call__(self, variables: Mapping[str, Any]) -> float:
        """The distance at these variables."""
        self.seen[0] += 1
        found = jax.device_get([self.sums(variables, batch) for batch in self.batches])
        distance, weight = (
            sum(float(part) for part in parts) for parts in zip(*found, strict=True)
        )
        if not np.isfinite(distance) or not weight > 0:
            raise ValueError(
                f"the distance from the float network is {distance:g} over weights of {weight:g}: "
                "look for NaN in the outputs and for `weights` of zeros."
            )
        return distance / weight


def judges(
    model: Model,
    floats: Mapping[str, Any],
    parts: Iterable[Sequence[tuple[Any, Any]]],
    kwargs: Mapping[str, Any],
    distance: Distance,
) -> list[Judge]:
    """A judge of each part, a list of batches with weights; one program for all bits."""

    parts = [list(part) for part in parts]
    for part in parts:
        given = [w for _, w in part if w is not None]
        if given and not sum(float(np.sum(w)) for w in given) > 0:
            raise ValueError("`weights` must count a prediction in both parts of the batches.")

    def judged(inputs, weights):
        call = as_call(inputs, kwargs)
        return Judged(
            call, jit_arrays(_outputs, floats, call, static=(float_model(model),)), weights
        )

    def sums(variables, batch):
        return jit_arrays(_sums, variables, batch, static=(model, distance))

    return [Judge([judged(*each) for each in part], sums, [0]) for part in parts]


def _outputs(net, variables, call):
    asked = net.ask(variables, *call, rngs=one_key())
    return run(net, asked, variables).out


def _sums(net, distance, variables, batch: Judged):
    each = jnp.asarray(distance(batch.outputs, _outputs(net, variables, batch.inputs)))
    weights = as_weights(batch.weights, each)
    return jnp.stack([jnp.sum(each * weights), jnp.sum(weights)])
