"""One affine grid: codes, levels, and fake quantization with an analytic backward.

A grid has 2^bits levels over a range that starts at `lo` and is `width` wide. Two forms:
  endpoints (BitPruning, arXiv 2002.03090): level = lo + width * c / (2^bits - 1); both ends of the
    range are levels, 0.0 in general is not.
  zero: level = width * (c - z) / (2^bits - 1) with the integer z = round(-lo / scale); 0.0 is the
    code z exactly, which zero padding and integer arithmetic need. The range moves by at most half
    a step; a symmetric one, which lies in the middle, always moves down, to the codes of two's
    complement.
Levels are computed as width * (codes / steps), never scale * codes, so that the end of a range, and
hence a constant tensor, comes out exactly.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bitjax.quantizers import blocks


class Grid(NamedTuple):
    """A range in units of x, per block: `lo` its start, `width` its length, both float."""

    lo: jax.Array
    width: jax.Array


def from_range(clip_min: jax.Array, clip_max: jax.Array, zero: bool) -> Grid:
    """The grid over [clip_min, clip_max]; in zero form the range is widened to hold 0.0.

    Example:
      >>> grid = from_range(jnp.float32(1.0), jnp.float32(3.0), zero=True)
      >>> float(grid.lo), float(grid.width)
      (0.0, 3.0)
    """
    if zero:
        clip_min, clip_max = jnp.minimum(clip_min, 0.0), jnp.maximum(clip_max, 0.0)
    return Grid(clip_min, clip_max - clip_min)


def steps(bits: jax.Array) -> jax.Array:
    """2^bits - 1 for integer-valued bits, exactly (exp2 is not exact on every backend).

    Example:
      >>> float(steps(jnp.float32(4.0)))
      15.0
    """
    return (jnp.left_shift(1, bits.astype(jnp.int32)) - 1).astype(bits.dtype)


def _inverse_scale(width, count):
    # A range too narrow to divide by holds one level; the product then is 0, never NaN.
    usable = width > jnp.finfo(width.dtype).tiny * 2.0**20
    return jnp.where(usable, count / jnp.where(usable, width, 1.0), 0.0)


def _position(x, grid, count, zero):
    """x in units of codes, neither rounded nor limited, and the zero point of the form."""
    inverse = _inverse_scale(grid.width, count)
    if zero:
        # A symmetric range lies half a step off; the 0.01 keeps rounding errors from deciding it.
        zero_point = jnp.floor(-grid.lo * inverse + 0.51)
        return x * inverse + zero_point, zero_point
    return (x - grid.lo) * inverse, jnp.zeros_like(inverse)


def _ratio(codes, zero_point, count):
    """The level of a code as a fraction of the range's width, 0 where there are no bits."""
    return (codes - zero_point) / jnp.maximum(count, 1.0)


def level_above(lo: jax.Array, width: jax.Array, ratio: jax.Array) -> jax.Array:
    """`lo + width * ratio`, rounded twice in every program: equal levels are equal bits.

    A compiler may join a product and a sum into one rounding in one program and not in another.
    The limit, which no ratio passes, lies between the two.

    Example:
      >>> float(level_above(jnp.float32(1.0), jnp.float32(4.0), jnp.float32(0.25)))
      2.0
    """
    return lo + jnp.minimum(width * ratio, width)


def _level(ratio, grid, count, zero):
    level = grid.width * ratio if zero else level_above(grid.lo, grid.width, ratio)
    return jnp.where(count > 0, level, 0.0)  # no bits: the tensor is pruned


def widen(x: jax.Array) -> jax.Array:
    """x in the dtype that codes are computed in: float32, or float64 where x is."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _spread(grid, count, shape):
    lo, width, count = (blocks.spread(a, shape) for a in (grid.lo, grid.width, count))
    return Grid(lo, width), count


def encode(x: jax.Array, grid: Grid, bits: jax.Array, zero: bool) -> jax.Array:
    """The int32 codes of x on the grid, in [0, 2^bits - 1]. `bits` is integer-valued.

    Example:
      >>> grid = Grid(jnp.float32(-1.0), jnp.float32(2.0))
      >>> encode(jnp.array([-2.0, -1.0, 0.1, 1.0]), grid, jnp.float32(2.0), False).tolist()
      [0, 0, 2, 3]
    """
    x = widen(x)
    grid, count = _spread(grid, steps(bits), x.shape)
    position, _ = _position(x, grid, count, zero)
    return jnp.clip(jnp.rint(position), 0.0, count).astype(jnp.int32)


def decode(codes: jax.Array, grid: Grid, bits: jax.Array, zero: bool) -> jax.Array:
    """The levels that codes stand for, in the grid's dtype.

    Example:
      >>> grid = Grid(jnp.float32(-1.0), jnp.float32(2.0))
      >>> decode(jnp.array([0, 3]), grid, jnp.float32(2.0), False).tolist()
      [-1.0, 1.0]
    """
    grid, count = _spread(grid, steps(bits), codes.shape)
    _, zero_point = _position(jnp.zeros_like(grid.lo), grid, count, zero)
    return _level(_ratio(codes.astype(count.dtype), zero_point, count), grid, count, zero)


def nearest(x: jax.Array, grid: Grid, count: jax.Array, zero: bool) -> tuple[jax.Array, jax.Array]:
    """The level nearest to widened x as a fraction of the width, and the zero point.

    The grid is already spread to x's shape.
    """
    position, zero_point = _position(x, grid, count, zero)
    # In the grid's dtype, as `decode` has it, also where x is float64.
    codes = jnp.clip(jnp.rint(position), 0.0, count).astype(count.dtype)
    return _ratio(codes, zero_point, count), zero_point


def fraction(x: jax.Array, grid: Grid, zero: bool) -> jax.Array:
    """Widened x in the unit of `nearest`: the same number whatever the bits."""
    inverse = _inverse_scale(grid.width, 1.0)
    return x * inverse if zero else (x - grid.lo) * inverse


def is_inside(position: jax.Array, zero_point: jax.Array, count: jax.Array) -> jax.Array:
    """Whether the `fraction` of x lies between the first and the last level.

    With a relative slack of 1e-6 for the rounding of the fraction itself: the ends of a min-max
    range are inside.
    """
    start = -zero_point / jnp.maximum(count, 1.0)
    return (position >= start - 1e-6) & (position <= start + (1.0 + 1e-6))


class Pieces(NamedTuple):
    """What the backward pass needs: the level's ratio, x's ratio, and who is inside."""

    ratio: jax.Array
    position: jax.Array
    inside: jax.Array


def pieces(x: jax.Array, grid: Grid, count: jax.Array, zero: bool) -> Pieces:
    """`nearest`, `fraction` and `is_inside` of widened x on a grid already spread to its shape."""
    ratio, zero_point = nearest(x, grid, count, zero)
    position = fraction(x, grid, zero)
    return Pieces(ratio, position, is_inside(position, zero_point, count))


def range_cotangents(g, ratio, position, inside, zero, clipped_only):
    """Element-wise cotangents of (lo, width) for a level at `ratio`; see the module's formulas.

    Inside, d level / d width = ratio - position (LSQ's round(v) - v); outside it is the ratio at
    which the grid ends. `clipped_only` drops the inside part, as PACT does. In zero form the zero
    point is held, so that `lo` receives nothing.
    """
    d_width = g * jnp.where(inside, 0.0 if clipped_only else ratio - position, ratio)
    d_lo = jnp.zeros_like(g) if zero else g * jnp.where(inside, 0.0, 1.0)
    return d_lo, d_width


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def fake_quant(
    x: jax.Array, grid: Grid, bits: jax.Array, zero: bool, clipped_only: bool = False
) -> jax.Array:
    """x on the nearest level of a grid of round(bits) bits, differentiable in x, grid and bits.

    x_hat = decode(encode(x)). Surrogates: to x, 1 inside the range and 0 outside; to the range,
    `range_cotangents`; to bits, -ln2 * 2^n / (2^n - 1) * (x_hat - clip(x)), the derivative of a
    step that halves with each bit (DQ, Uhlich et al. 2020, parametrisation U2). The backward
    pass keeps x in its own dtype and recomputes the rest.

    Args:
      x: any shape, float.
      grid: the range; leaves `[]` or blocks of x.
      bits: `[]` or blocks of x, in [0, 16]; 0 gives 0.0 everywhere.
      zero: static, the grid's form.
      clipped_only: static, ranges learn from clipped elements only.

    Returns:
      x's shape and dtype.

    Example:
      >>> grid = Grid(jnp.float32(0.0), jnp.float32(3.0))
      >>> fake_quant(jnp.array([0.4, 1.6, 9.0]), grid, jnp.float32(2.0), True).tolist()
      [0.0, 2.0, 3.0]
    """
    n = jnp.rint(bits)
    return decode(encode(x, grid, n, zero), grid, n, zero).astype(x.dtype)


def _fake_quant_fwd(x, grid, bits, zero, clipped_only):
    return fake_quant(x, grid, bits, zero, clipped_only), (x, grid, bits)


def _fake_quant_bwd(zero, clipped_only, residual, g):
    x, grid, bits = residual
    g, x_wide = widen(g), widen(x)
    wide, count = _spread(grid, steps(jnp.rint(bits)), x.shape)
    ratio, position, inside = pieces(x_wide, wide, count, zero)
    alive = count > 0
    d_x = jnp.where(inside & alive, g, 0.0)
    d_lo, d_width = range_cotangents(g * alive, ratio, position, inside, zero, clipped_only)
    error = jnp.where(inside & alive, wide.width * (ratio - position), 0.0)
    growth = jnp.log(2.0) * (1.0 + 1.0 / jnp.maximum(count, 1.0))
    d_bits = -growth * g * error
    return (
        d_x.astype(x.dtype),
        Grid(blocks.fold(d_lo, grid.lo), blocks.fold(d_width, grid.width)),
        blocks.fold(d_bits, bits),
    )


fake_quant.defvjp(_fake_quant_fwd, _fake_quant_bwd)
