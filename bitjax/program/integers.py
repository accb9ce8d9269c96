"""A product of two quantized tensors on their integers, as it is evaluated.

  product(x, w) = product(integers of x, integers of w) * (scale of x * scale of w)

The sum of products is that of int32, so that every program that adds integers gives the same,
whatever its order. Floats hold it while no partial sum can pass 2^24. Where one can, products of
the operands' digits are added as int32. Past 2^31 the sum of floats stays, which is rounded as that
of levels is.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bitjax.program.body import Op
from bitjax.program.macs import dimension_numbers
from bitjax.program.values import Operand
from bitjax.quantizers import blocks
from bitjax.quantizers.base import Params, Quantizer, Stats

Moved = Callable[[jax.Array], jax.Array]

# Whole numbers below have a float32, or an int32: with room for the rounding of the bound.
_FLOAT, _INT = 2.0**24, 2.0**31 * (1.0 - 2.0**-10)
_DIGITS = 24  # bits of an integer that a float32 holds


class Whole(NamedTuple):
    """An operand as integers: float32 whole numbers, and the scale of each output's filter."""

    integers: jax.Array
    scale: jax.Array  # `[]`, or of the operand's shape
    below: jax.Array  # how far integers go below 0
    above: jax.Array  # and above it


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
        scale = blocks.spread(scale, x.shape)
        if operand.moves:
            scale = moved(jnp.broadcast_to(scale, x.shape))
    below, above = (jnp.maximum(jnp.max(end), 0.0) for end in (-first, last))
    return Whole(integers, scale, below, above)


def outside_the_sum(operand, shape):
    """Whether all elements that are summed share a scale, which then stands in front of the sum."""
    filters = operand.site.axes.channel if operand.role == "kernel" else ()
    free = {axis % len(shape) for axis in filters} if shape else set()
    return all(size == 1 or axis in free for axis, size in enumerate(shape))


def product_of_integers(op: Op, read: Sequence[jax.Array], left: Whole, right: Whole) -> jax.Array:
    """The result of a product of integers; its derivatives are those of the product of levels."""
    scale = at_output(op, 0, left.scale) * at_output(op, 1, right.scale)

    @jax.custom_jvp
    def run(read, left, right, ends, scale):
        del read
        with jax.named_scope(op.scope):
            total, sizes = _sum(_Kind.of(op), left, right, *ends)
            product = total * _in_memory(scale, at_output(op, 1, sizes))
        return product.astype(op.eqn.outvars[0].aval.dtype)

    @run.defjvp
    def _(primals, tangents):
        return run(*primals), jax.jvp(lambda *read: op(read)[0], primals[0], tangents[0])[1]

    return run(tuple(read), left.integers, right.integers, (left.below, left.above), scale)


def _in_memory(scale, sizes):
    """Scales as a number for each filter; `sizes` are numbers of the filters."""
    # A quotient is not worked out again where it is read, and XLA does not know that it is one by
    # 1. In front of padding (as in ResNet's shortcuts) its CPU library else computes the scale for
    # each element, and no element together with its neighbours: 12 ms instead of 4 of 80.
    one = jnp.where(sizes < jnp.inf, 1.0, jnp.nan)
    return jnp.broadcast_to(scale, jnp.broadcast_shapes(scale.shape, one.shape)) / one


def sum_of_integers(op: Op, left: jax.Array, right: jax.Array, largest: jax.Array) -> jax.Array:
    """The exact sum of products, in float32; `largest` bounds the left integers."""
    with jax.named_scope(op.scope):
        return _sum(_Kind.of(op), left, right, largest, largest)[0]


def sum_in_int32(op: Op, left: jax.Array, right: jax.Array) -> jax.Array:
    """The int32 sum of products of whole floats, where int32 holds it."""
    with jax.named_scope(op.scope):
        kind, largest = _Kind.of(op), jnp.max(jnp.abs(left))
        sizes = jnp.max(jnp.sum(jnp.abs(right), axis=kind.summed))
        return _sum_of_digits(kind, left, right, largest, sizes)


class _Kind(NamedTuple):
    """A product without its operands; static."""

    primitive: Any
    params: tuple[tuple[str, Any], ...]
    summed: tuple[int, ...]  # axes of the right operand

    @classmethod
    def of(cls, op: Op) -> "_Kind":
        """The kind of a product, in floats as exact as the device has them."""
        exact = {
            "precision": (lax.Precision.HIGHEST, lax.Precision.HIGHEST),
            "preferred_element_type": np.dtype("float32"),
        }
        params = tuple(sorted({**op.eqn.params, **exact}.items()))
        return cls(op.eqn.primitive, params, summed(op, 1))

    def __call__(self, left: jax.Array, right: jax.Array) -> jax.Array:
        return self.primitive.bind(left, right, **dict(self.params))


# Compiled as one function, so that layers of one shape share its trace.
@functools.partial(jax.jit, static_argnums=0)
def _sum(kind, left, right, below, above):
    """The sum, and that of the sizes of each filter's integers; left ones go so far from 0."""
    # What is added of a filter has an end on each side, which no partial sum passes.
    signs = jnp.maximum(right, 0.0), jnp.maximum(-right, 0.0)
    up, down = lax.reduce(signs, (0.0, 0.0), lambda x, y: (x[0] + y[0], x[1] + y[1]), kind.summed)
    sizes = jnp.expand_dims(up + down, kind.summed)
    most = jnp.max(jnp.maximum(above * up + below * down, below * up + above * down))

    def in_int32(state):
        del state
        largest = jnp.maximum(below, above)
        total = _sum_of_digits(kind, left, right, largest, jnp.max(sizes))
        return total.astype(jnp.float32), jnp.array(False)

    # A loop and no branch: under vmap both sides of a branch are computed.
    passes = (most >= _FLOAT) & (most < _INT)
    total, _ = lax.while_loop(lambda state: state[1], in_int32, (kind(left, right), passes))
    return total, sizes


@functools.partial(jax.jit, static_argnums=0)
def _sum_of_digits(kind, left, right, largest, sizes):
    """The sum of int32 by products of floats, since no GPU's library convolves int32.

    No left integer is larger than `largest`, no filter's sum of sizes than `sizes`.
    """
    # Digits of the left integers alone, if they may have this many bits in products with all of the
    # right ones; else of both, of as many bits as floats have for every sum of so many products.
    bits, few = 23 - _exponent(jnp.maximum(sizes, 1.0)), 3
    terms = math.prod(right.shape[axis] for axis in kind.summed)
    both = max(d for d in range(1, 13) if d == 1 or terms * (2**d - 1) ** 2 <= _FLOAT)
    bits, bits_right = jnp.where(bits < few, both, bits), jnp.where(bits < few, both, _DIGITS)

    def part(x, digit, bits):
        rest = jnp.trunc(x * _power(-bits * digit))
        return rest - _power(bits) * jnp.trunc(rest * _power(-bits))

    def add(state):
        i, j, total = state
        found = kind(part(left, i, bits), part(right, j, bits_right)).astype(jnp.int32)
        total += jnp.left_shift(found, bits * i + bits_right * j)
        last = bits * (i + 1) > _exponent(largest)
        return jnp.where(last, 0, i + 1), jnp.where(last, j + 1, j), total

    out = jax.eval_shape(lambda left, right: kind(left, right), left, right)
    start = jnp.int32(0), jnp.int32(0), jnp.zeros(out.shape, jnp.int32)
    return lax.while_loop(lambda state: bits_right * state[1] < _DIGITS, add, start)[2]


def _exponent(x):
    """The exponent of a power of two that is at most x, at least 1, and more than its half."""
    return (lax.bitcast_convert_type(jnp.float32(x), jnp.int32) >> 23) - 127


def _power(exponent):
    """2^exponent, exactly; of whole exponents from -126 on."""
    return lax.bitcast_convert_type((127 + exponent) << 23, jnp.float32)


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
