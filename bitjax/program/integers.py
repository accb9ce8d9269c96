"""A product of two quantized tensors on their integers, as it is evaluated.

  product(x, w) = product(integers of x, integers of w) * (scale of x * scale of w)

The sum of products is exact, so that every program that adds integers gives the same, whatever its
order. Floats hold them while no partial sum can pass 2^24. Where one can, int32 takes over; past
2^31 the sum of floats stays, which is rounded as that of levels is.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bitjax.program.body import Op
from bitjax.program.macs import dimension_numbers
from bitjax.program.values import Operand
from bitjax.quantizers import blocks
from bitjax.quantizers.base import Params, Quantizer, Stats

Moved = Callable[[jax.Array], jax.Array]

_FLOAT, _INT = 2.0**24, 2.0**31  # whole numbers below have a float32, or an int32


class Whole(NamedTuple):
    """An operand as integers: float32 whole numbers, and the scale of each output's filter."""

    integers: jax.Array
    scale: jax.Array  # `[]`, or of the operand's shape
    largest: jax.Array  # no integer is greater, nor less than minus it


def whole(
    operand: Operand, moved: Moved, quantizer: Quantizer, params: Params, stats: Stats, x: jax.Array
) -> Whole | None:
    """The operand of a product as integers; None where its levels do not allow it.

    `moved` gives what the product reads of an array that is put in the operand's place.
    """
    if quantizer.numbers is None or quantizer.integers is None or len(operand.origins) != 1:
        return None
    scale, _, first, last = quantizer.numbers(params, stats)
    if not outside_the_sum(operand, scale.shape):
        return None
    integers = moved(quantizer.integers(params, stats, x))
    if scale.size == 1:
        scale = scale.reshape(())
    else:
        scale = moved(jnp.broadcast_to(blocks.spread(scale, x.shape), x.shape))
    return Whole(integers, scale, jnp.maximum(jnp.max(-first), jnp.max(last)))


def outside_the_sum(operand, shape):
    """Whether all elements that are summed share a scale, which then stands in front of the sum."""
    filters = operand.site.axes.channel if operand.role == "kernel" else ()
    free = {axis % len(shape) for axis in filters} if shape else set()
    return all(size == 1 or axis in free for axis, size in enumerate(shape))


def product_of_integers(op: Op, read: Sequence[jax.Array], left: Whole, right: Whole) -> jax.Array:
    """The result of a product of integers; its derivatives are those of the product of levels."""
    scale = at_output(op, 0, left.scale) * at_output(op, 1, right.scale)

    @jax.custom_jvp
    def run(read, left, right, largest, scale):
        del read
        return (sum_of_integers(op, left, right, largest) * scale).astype(
            op.eqn.outvars[0].aval.dtype
        )

    @run.defjvp
    def _(primals, tangents):
        return run(*primals), jax.jvp(lambda *read: op(read)[0], primals[0], tangents[0])[1]

    return run(tuple(read), left.integers, right.integers, left.largest, scale)


def sum_of_integers(op, left, right, largest):
    """The exact sum of products, in float32; `largest` bounds the left integers."""
    out = _bind(op, left, right, jnp.float32)
    # No partial sum is larger than the sum of sizes.
    most = largest * jnp.max(jnp.sum(jnp.abs(right), axis=summed(op, 1)))

    def in_int32(state):
        del state
        exact = _bind(op, left.astype(jnp.int32), right.astype(jnp.int32), jnp.int32)
        return exact.astype(jnp.float32), jnp.array(False)

    # A loop and no branch: under vmap both sides of a branch are computed.
    passes = (most >= _FLOAT) & (most < _INT)
    return lax.while_loop(lambda state: state[1], in_int32, (out, passes))[0]


def _bind(op, left, right, dtype):
    params = {**op.eqn.params, "preferred_element_type": jnp.dtype(dtype)}
    if dtype == jnp.float32:
        params["precision"] = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
    with jax.named_scope(op.scope):
        return op.eqn.primitive.bind(left, right, **params)


def summed(op, position):
    """The axes of an operand that the product sums over; of a convolution all but the filters."""
    if op.name == "dot_general":
        return tuple(dimension_numbers(op.eqn)[0][position])
    spec = op.eqn.params["dimension_numbers"]
    kept = (spec.lhs_spec if position == 0 else spec.rhs_spec)[0]
    return tuple(i for i in range(op.eqn.invars[position].aval.ndim) if i != kept)


def at_output(op, position, scale):
    """The scales of an operand's filters where they broadcast against the result."""
    if scale.ndim == 0:
        return scale
    ndim = op.eqn.outvars[0].aval.ndim
    # They are equal along the summed axes, but for zeros of padding.
    if op.name == "conv_general_dilated":
        place = op.eqn.params["dimension_numbers"].out_spec[position]
        kept = jnp.max(scale, axis=summed(op, position))
        return kept.reshape([-1 if i == place else 1 for i in range(ndim)])
    gone, batch = (both[position] for both in dimension_numbers(op.eqn))
    free = [i for i in range(scale.ndim) if i not in (*gone, *batch)]
    kept = jnp.max(scale.transpose(*batch, *free, *gone), axis=tuple(range(-len(gone), 0)))
    others = ndim - kept.ndim
    before = len(batch) + (others if position else 0)
    return kept.reshape(
        *kept.shape[: len(batch)],
        *(1,) * (before - len(batch)),
        *kept.shape[len(batch) :],
        *(1,) * (0 if position else others),
    )
