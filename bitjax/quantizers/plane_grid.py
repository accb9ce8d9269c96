"""One grid of bit planes: codes, levels, and fake quantization with an analytic backward.

A code q counts kept planes: x is rounded at the lowest one and saturated at the highest one before
planes are extracted, so that dropping a plane never wraps (the program of arXiv 2006.05210 does
both the other way: see `bitplane_faithful`).
  power of two:  level = scale * 2^shift * q
  free:          level = scale * sum_i coefficients[i] * (bit i of 2^shift q), from a table
A signed code is sign and magnitude: its top plane is the sign.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bitjax.quantizers import blocks
from bitjax.quantizers.base import Params
from bitjax.quantizers.grid import inverse, steps, widen
from bitjax.quantizers.planes import kept_window, level_table
from bitjax.quantizers.ste import clip_ste


class PlaneGrid(NamedTuple):
    """The kept planes, as what one element needs: numbers made once per call."""

    scale: jax.Array  # the scale of the code's plane 0, in units of x, spread over x
    low: jax.Array  # the lowest kept plane, int32
    weight: jax.Array  # 2^low
    count: jax.Array  # magnitude planes, int32
    step: jax.Array  # scale * weight
    rate: jax.Array  # codes per unit of x, 1 / step; 0 where the scale is too small to divide by
    first: jax.Array  # the lowest code, -last if signed, else 0
    last: jax.Array  # the highest code, 2^count - 1


class Kept(NamedTuple):
    """Which planes are kept, and their coefficients."""

    bits: jax.Array  # planes stored, the sign's among them, `[]`
    shift: jax.Array  # the lowest kept plane, `[]`
    # `[depth]`, or None for powers of two, where nothing is looked up
    coefficients: jax.Array | None = None


def kept_of(params: Params) -> Kept:
    """The planes that a quantizer's parameters keep; coefficients are at least 0."""
    found = params.get("coefficients")
    # Below 0 a plane would count downwards; at 0 it is dropped.
    found = None if found is None else clip_ste(found, 0.0, jnp.inf)
    bits, shift = jax.lax.stop_gradient((params["bits"], params["shift"]))
    return Kept(bits, shift, found)


def plane_grid(
    scale: jax.Array, kept: Kept, depth: int, signed: bool, shape: tuple[int, ...]
) -> PlaneGrid:
    """The numbers of a grid whose scales broadcast to `shape`."""
    scale = blocks.spread(scale, shape)
    low, count = kept_window(kept.bits - signed, kept.shift, depth, kept.coefficients)
    weight = jnp.left_shift(1, low).astype(scale.dtype)
    last = steps(count).astype(scale.dtype)
    step = scale * weight
    first = -last if signed else jnp.zeros_like(last)
    return PlaneGrid(scale, low, weight, count, step, inverse(step), first, last)


def nearest(x: jax.Array, to: PlaneGrid) -> jax.Array:
    """The signed code of widened x, as float: rounded, then saturated."""
    # In the grid's dtype, as `decode` has it, also where x is float64.
    return jnp.clip(jnp.rint(x * to.rate), to.first, to.last).astype(to.step.dtype)


def pack(code: jax.Array, to: PlaneGrid) -> jax.Array:
    """Signed float codes as int32 planes: the magnitude's, and above them the sign's."""
    sign = jnp.where(code < 0, jnp.left_shift(1, to.count), 0)
    return jnp.abs(code).astype(jnp.int32) + sign


def unpack(codes: jax.Array, to: PlaneGrid) -> jax.Array:
    """The inverse of `pack`."""
    magnitude = (codes & (jnp.left_shift(1, to.count) - 1)).astype(to.step.dtype)
    negative = (codes >> to.count) & 1 == 1
    return jnp.where(negative & (to.first < 0), -magnitude, magnitude)


def lookup(code: jax.Array, to: PlaneGrid, coefficients: jax.Array) -> jax.Array:
    """The level of a signed float code in units of the scale, from the table of all levels."""
    place = jnp.left_shift(jnp.abs(code).astype(jnp.int32), to.low)
    found = level_table(coefficients).at[place].get(mode="clip")
    # NaN has no place in a table, and is not to be hidden.
    return jnp.where(jnp.isnan(code), code, jnp.where(code < 0, -found, found))


def level(code: jax.Array, to: PlaneGrid, coefficients: jax.Array | None) -> jax.Array:
    """What a signed float code stands for, rounded once."""
    if coefficients is None:
        return to.step * code
    return to.scale * lookup(code, to, coefficients)


# Compiled as one function, so that layers of one shape share its trace.
@functools.partial(jax.jit, static_argnums=(3, 4))
def plane_quant(
    x: jax.Array, scale: jax.Array, kept: Kept, depth: int, signed: bool = False
) -> jax.Array:
    """x on the nearest code of the kept planes, differentiable in x, scale and coefficients.

    q = clip(round(x / (scale 2^shift)), first, last); x_hat as in the module's docstring.
    Gradients: to x, 1 inside the saturation range and 0 outside; to scale, x_hat/scale - x/scale
    inside and x_hat/scale outside (LSQ); to coefficient i, scale * sum_n g_n sign_n b_ni, which is
    exact, x_hat being linear in the coefficients; none to bits and shift. The backward pass keeps x
    in its own dtype and a few numbers, and recomputes the rest.

    Source: arXiv 2006.05210. Departures: rounds and saturates, the reference truncates and wraps;
      the reference passes the identity to x everywhere and nothing to coefficients.
    """
    return _plane_quant(x, scale, kept, depth, signed)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _plane_quant(x, scale, kept, depth, signed):
    return _plane_quant_fwd(x, scale, kept, depth, signed)[0]


def _plane_quant_fwd(x, scale, kept, depth, signed):
    to = plane_grid(scale, kept, depth, signed, x.shape)
    x_hat = level(nearest(widen(x), to), to, kept.coefficients).astype(x.dtype)
    return x_hat, (x, scale, kept, to)


def _plane_quant_bwd(depth, signed, residual, g):
    x, scale, kept, to = residual
    g, wide = widen(g), widen(x)
    code, at = nearest(wide, to), wide * to.rate
    # The slack is for the rounding of `at`: the largest element of a tensor under its own range is
    # inside.
    slack = 1e-6 * to.last
    inside = (at >= to.first - slack) & (at <= to.last + slack)
    alive = to.rate > 0
    if kept.coefficients is None:
        d_scale = g * to.weight * jnp.where(inside, code - at, code)
        d_coefficients = None
    else:
        found = lookup(code, to, kept.coefficients)
        d_scale = g * (found - jnp.where(inside, at * to.weight, 0.0))
        d_coefficients = _fold_planes(g * to.scale * jnp.sign(code), code, to, kept)
    return (
        jnp.where(inside, g, 0.0).astype(x.dtype),
        blocks.fold(d_scale, scale, alive),
        Kept(jnp.zeros_like(kept.bits), jnp.zeros_like(kept.shift), d_coefficients),
    )


def _fold_planes(x, code, to, kept):
    """Sums x over each plane of a code: one sum per coefficient."""
    place = jnp.left_shift(jnp.abs(code).astype(jnp.int32), to.low)
    # On the CPU one pass with a sum per code is 10 times as fast as a pass per plane; elsewhere
    # writes to the same few places wait for each other.
    return jax.lax.platform_dependent(
        x, place, kept.coefficients, cpu=_sums_by_code, default=_sums_by_plane
    )


def _sums_by_plane(x, place, like):
    one = like[0]
    return jnp.stack([blocks.fold(x, one, place >> i & 1 == 1) for i in range(like.shape[0])])


def _sums_by_code(x, place, like):
    codes = 2 ** like.shape[0]
    per_code = jnp.zeros(codes, x.dtype).at[place.reshape(-1)].add(x.reshape(-1))
    return _sums_by_plane(per_code, jnp.arange(codes), like)


_plane_quant.defvjp(_plane_quant_fwd, _plane_quant_bwd)
