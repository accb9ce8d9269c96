"""One affine grid: codes, levels, and fake quantization with an analytic backward.

A grid has 2^bits levels over a range that starts at `lo` and is `width` wide. Two forms:
  endpoints (BitPruning, arXiv 2002.03090): level = lo + width * c / (2^bits - 1); both ends of the
    range are levels, 0.0 in general is not.
  zero: level = width * (c - z) / (2^bits - 1) with the integer z = round(-lo / scale); 0.0 is the
    code z exactly, which zero padding and integer arithmetic need. The range moves by at most half
    a step; a symmetric one, which lies in the middle, always moves down, to the codes of two's
    complement.
  rounded, narrow: a zero form whose scale is a power of two, or whose codes have opposites; see
    `forms`.
Levels are computed as width * (codes / steps), never scale * codes, so that the end of a range, and
hence a constant tensor, comes out exactly.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bitjax.quantizers import blocks
from bitjax.quantizers.base import Numbers
from bitjax.quantizers.forms import Form, power_of_two


class Grid(NamedTuple):
    """A range in units of x, per block: `lo` its start, `width` its length, both float."""

    lo: jax.Array
    width: jax.Array


def from_range(clip_min: jax.Array, clip_max: jax.Array, form: Form) -> Grid:
    """The grid over [clip_min, clip_max]; in zero form the range is widened to hold 0.0."""
    if form.symmetric or form.narrow:  # the range of a constant is not
        clip_max = jnp.maximum(-clip_min, clip_max)
        clip_min = -clip_max
    if form.zero:
        clip_min, clip_max = jnp.minimum(clip_min, 0.0), jnp.maximum(clip_max, 0.0)
    return Grid(clip_min, clip_max - clip_min)


def snapped(grid: Grid, bits: jax.Array, form: Form) -> Grid:
    """The range whose own scale is the power of two that a fit of this form was measured with."""
    scale = grid.width / jnp.maximum(steps_of(bits, form), 1.0)
    power, _ = power_of_two(scale, "up")
    ratio = jnp.where(scale > 0, power / jnp.where(scale > 0, scale, 1.0), 1.0)
    return Grid(grid.lo * ratio, grid.width * ratio)


def steps(bits: jax.Array) -> jax.Array:
    """2^bits - 1 for integer-valued bits, exactly (exp2 is not exact on every backend)."""
    return (jnp.left_shift(1, bits.astype(jnp.int32)) - 1).astype(bits.dtype)


def steps_of(bits: jax.Array, form: Form) -> jax.Array:
    """The steps between a form's first and last level."""
    count = steps(bits)
    return jnp.maximum(count - 1.0, 0.0) if form.narrow else count


def widen(x: jax.Array) -> jax.Array:
    """x in the dtype that codes are computed in: float32, or float64 where x is."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Levels(NamedTuple):
    """A grid at whole bits, as what one element needs: numbers per block, made once per call."""

    # With u = x - start, the nearest level is  base + width * ratio,
    # ratio = clip(round(u * rate), first, last) * unit.
    start: jax.Array  # start of the range, or 0 in zero form
    # start of the range, or 0 where there are no bits: the block is pruned; None in zero form
    base: jax.Array | None
    width: jax.Array  # length of the range
    rate: jax.Array  # codes per unit of x; 0 for a degenerate range: one level instead of NaN
    first: jax.Array  # code of the first level, counted from `base`
    last: jax.Array  # code of the last level, counted from `base`
    unit: jax.Array  # share of the width that a step has; 0 where there are no bits
    lowest: jax.Array  # start of the inside of the range, in widths from `start`
    # end of the inside, in widths from `start`; below `lowest` where there are no bits
    highest: jax.Array


def levels(grid: Grid, bits: jax.Array, form: Form, shape: Sequence[int] | None) -> Levels:
    """The levels of a grid at integer-valued bits, spread to where they broadcast to `shape`."""
    lo, width = grid
    if shape is not None:  # else one number per block
        lo, width, bits = (blocks.spread(a, shape) for a in (lo, width, bits))
    count = steps_of(bits, form)
    alive = count > 0
    if form.rounded:
        return _rounded(lo, width, bits, count, form)
    rate = count * inverse(width)
    # A product with it, not a quotient: n * (1 / n) is 1 for every n = 2^bits - 1, so that the ends
    # are exact.
    unit = _one_or_none(alive, count.dtype) / jnp.maximum(count, 1.0)
    if form.zero:
        # A symmetric range lies half a step off; the 0.01 keeps rounding errors from deciding it.
        first = -0.5 * count if form.narrow else -jnp.floor(-lo * rate + 0.51)
        # Subtracted all the same: without it XLA rounds the sums behind in another order.
        start, base = jnp.zeros_like(lo), None
    else:
        first = jnp.zeros_like(lo)
        start, base = lo, jnp.where(alive, lo, 0.0)
    # The slack is for the rounding of `position`: the ends of a min-max range are inside.
    lowest = jnp.where(alive, first * unit - 1e-6, jnp.inf)
    highest = first * unit + (1.0 + 1e-6)
    return Levels(start, base, width, rate, first, first + count, unit, lowest, highest)


def _rounded(lo, width, bits, count, form) -> Levels:
    """The levels of a scale that is a power of two, where nothing but x is rounded."""
    alive, none = count > 0, jnp.zeros_like(lo)
    scale, rate = power_of_two(width / jnp.maximum(count, 1.0), form.rounded)
    rate = jnp.where(alive, rate, 0.0)
    # The width is one of 2^bits steps, so that the share of a step is a power of two as well.
    whole = jnp.left_shift(1, bits.astype(jnp.int32)).astype(count.dtype)
    unit = jnp.where(alive, power_of_two(whole, "nearest")[1], 0.0)
    symmetric = form.symmetric or form.narrow
    first = -jnp.floor(0.5 * (count + 1.0) if symmetric else -lo * rate + 0.51)
    last = first + count
    lowest = jnp.where(alive, first * unit - 1e-6, jnp.inf)
    return Levels(none, None, scale * whole, rate, first, last, unit, lowest, last * unit + 1e-6)


def slope(to: Levels) -> jax.Array:
    """d to.width / d grid.width of a rounded scale, with the rounding passed by."""
    return inverse(to.unit * (to.last - to.first))


def _growth(to: Levels, form: Form) -> jax.Array:
    """By how much a step shrinks with a bit, as a share of it: -d log(step) / d bits."""
    if form.plain:
        return jnp.log(2.0) * (1.0 + to.unit)
    # Of 2^n - 1 steps, or 2^n - 2.
    return jnp.log(2.0) * (1.0 + (1.0 + form.narrow) / jnp.maximum(to.last - to.first, 1.0))


def inverse(width: jax.Array) -> jax.Array:
    """1 / width, or 0 where the width is too small for that."""
    usable = width > jnp.finfo(width.dtype).tiny * 2.0**20
    return _one_or_none(usable, width.dtype) / jnp.where(usable, width, 1.0)


def _one_or_none(where: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """1 / n or 0 as one quotient: a compiler repeats what follows a division in every loop."""
    return jnp.where(where, jnp.ones((), dtype), jnp.zeros((), dtype))


def _code(x: jax.Array, to: Levels) -> jax.Array:
    """The code of widened x, as a float that counts from `base`."""
    return jnp.clip(jnp.rint((x - to.start) * to.rate), to.first, to.last)


def nearest(x: jax.Array, to: Levels) -> jax.Array:
    """The level nearest to widened x, in widths above `base`."""
    # In the grid's dtype, as `decode` has it, also where x is float64.
    return _code(x, to).astype(to.unit.dtype) * to.unit


def position(x: jax.Array, to: Levels) -> jax.Array:
    """Widened x in the unit of `nearest`: the same number whatever the bits."""
    return (x - to.start) * inverse(to.width)


def is_inside(position: jax.Array, to: Levels) -> jax.Array:
    """Whether a `position` lies between the first and the last level, both counted in."""
    return (position >= to.lowest) & (position <= to.highest)


def level(ratio: jax.Array, to: Levels) -> jax.Array:
    """`base + width * ratio`, rounded twice in every program: equal levels are equal bits."""
    if to.base is None:
        return to.width * ratio
    # A compiler may join a product and a sum into one rounding in one program and not in another.
    # The limit, which no ratio passes, lies between the two.
    return to.base + jnp.minimum(to.width * ratio, to.width)


def once(x_hat: jax.Array, x: jax.Array) -> jax.Array:
    """x_hat, which a compiler works out once: for the product, and not again for its gradient."""
    # NaN is NaN anyway. XLA's CPU library repeats a chain that ends in an operation on one array in
    # each loop that reads it, and keeps the result of an operation on two.
    return jnp.where(x == x, x_hat, x)


def encode(x: jax.Array, grid: Grid, bits: jax.Array, form: Form) -> jax.Array:
    """The int32 codes of x on the grid, in [0, 2^bits - 1]. `bits` is integer-valued."""
    x = widen(x)
    to = levels(grid, bits, form, x.shape)
    return (_code(x, to) - to.first).astype(jnp.int32)


# Compiled as one function each, so that layers of one shape share their trace.
@functools.partial(jax.jit, static_argnums=2)
def numbers(grid: Grid, bits: jax.Array, form: Form) -> Numbers:
    """What a grid in zero form is to integer arithmetic, per block."""
    to = levels(grid, bits, form, None)
    return Numbers(to.width * to.unit, to.rate, to.first, to.last)


@functools.partial(jax.jit, static_argnums=3)
def integers(x: jax.Array, grid: Grid, bits: jax.Array, form: Form) -> jax.Array:
    """The integers of x on a grid in zero form, as the grid's floats."""
    to = levels(grid, bits, form, x.shape)
    return jnp.clip(jnp.rint(widen(x) * to.rate), to.first, to.last).astype(to.unit.dtype)


def decode(codes: jax.Array, grid: Grid, bits: jax.Array, form: Form) -> jax.Array:
    """The levels that codes stand for, in the grid's dtype."""
    to = levels(grid, bits, form, codes.shape)
    return level((codes.astype(to.unit.dtype) + to.first) * to.unit, to)


# Compiled as one function, so that layers of one shape share its trace.
@functools.partial(jax.jit, static_argnums=(3, 4))
def fake_quant(
    x: jax.Array, grid: Grid, bits: jax.Array, form: Form, clipped_only: bool = False
) -> jax.Array:
    """x on the nearest level of a grid of round(bits) bits, differentiable in x, grid and bits.

    x_hat = decode(encode(x)). Surrogates: to x, 1 inside the range and 0 outside; to the range's
    width, in widths, the residual of rounding inside and the end outside; to its start, 1 outside;
    to bits, -ln2 * 2^n / (2^n - 1) * (x_hat - clip(x)), the derivative of a step that halves with
    each bit (DQ, Uhlich et al. 2020, parametrisation U2). The backward pass keeps x in its own
    dtype and a few numbers per block, and recomputes the rest.
    """
    return _fake_quant(x, grid, bits, form, clipped_only)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _fake_quant(x, grid, bits, form, clipped_only):
    return _fake_quant_fwd(x, grid, bits, form, clipped_only)[0]


def _fake_quant_fwd(x, grid, bits, form, clipped_only):
    del clipped_only  # of the backward pass
    to = levels(grid, jnp.rint(bits), form, x.shape)
    x_hat = level(nearest(widen(x), to), to).astype(x.dtype)
    return once(x_hat, x), (x, grid, bits, to)


def _fake_quant_bwd(form, clipped_only, residual, g):
    x, grid, bits, to = residual
    g, x = widen(g), widen(x)
    ratio, at = nearest(x, to), position(x, to)
    inside, alive = is_inside(at, to), to.unit > 0
    # Inside, d level / d width = ratio - position (LSQ's round(v) - v); outside it is the ratio at
    # which the grid ends. PACT drops the inside part. In zero form the zero point is held, so that
    # `lo` receives nothing.
    d_width = jnp.where(inside, 0.0 if clipped_only else ratio - at, ratio)
    d_width = d_width * slope(to) if form.rounded else d_width
    d_lo = jnp.zeros_like(grid.lo) if form.zero else blocks.fold(g, grid.lo, alive & ~inside)
    growth = _growth(to, form)
    return (
        jnp.where(inside, g, 0.0).astype(residual[0].dtype),
        Grid(d_lo, blocks.fold(g * d_width, grid.width, alive)),
        blocks.fold(-growth * to.width * (ratio - at) * g, bits, inside),
    )


_fake_quant.defvjp(_fake_quant_fwd, _fake_quant_bwd)
