"""Signed integer codes of ternary, binary and low-bit kernels; level = scale * code.

`SYMMETRIC` rounds x / scale to -M .. M, M = 2^(bits-1) - 1, on the grid of bit planes with a sign;
`THRESHOLDED` has the same codes at 2 bits, by a threshold of its own (TWN, arXiv 1605.04711);
`TWO_SIDED` has one code more below 0, -M - 1; `SIGNS` are -1 and 1 (XNOR-Net, arXiv 1603.05279).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bitjax.quantizers import blocks, plane_grid
from bitjax.quantizers.base import Stats
from bitjax.quantizers.grid import inverse, steps, widen
from bitjax.quantizers.plane_grid import Kept, plane_quant

_DEPTH = 15  # magnitude planes; all are kept, so that a code is a signed integer


class Alphabet(NamedTuple):
    """Pure functions between a tensor, signed codes and stored codes."""

    # (x, fitted, bits) -> signed float codes of widened x; `fitted` holds what a fit found per
    # filter: `scale`, and `threshold` where there is one.
    nearest: Callable[[jax.Array, Stats, jax.Array], jax.Array]
    # (signed float codes, bits) -> int32 in [0, 2^bits - 1], and the inverse
    pack: Callable[[jax.Array, jax.Array], jax.Array]
    unpack: Callable[[jax.Array, jax.Array], jax.Array]
    # (x, scale, bits) -> x_hat, with LSQ's gradients
    learned: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    # bits -> the greatest signed code
    last: Callable[[jax.Array], jax.Array] = lambda bits: steps(jnp.rint(bits) - 1.0)
    below: float = 0.0  # codes below -last
    coding: str = "sign_magnitude"  # as `Traits.coding`


def _planes(scale, bits, shape=()):
    return plane_grid.plane_grid(scale, Kept(bits, jnp.zeros_like(bits)), _DEPTH, True, shape)


def _by_threshold(x, fitted, bits):
    del bits  # two
    code = jnp.where(jnp.abs(x) <= fitted["threshold"], 0.0, jnp.sign(x))
    return code.astype(fitted["scale"].dtype)


def _sign(x, scale):
    # NaN is neither, and not hidden.
    code = jnp.where(x >= 0, 1.0, jnp.where(x < 0, -1.0, x))
    return code.astype(scale.dtype)


# Compiled as one function, so that layers of one shape share its trace.
@jax.jit
def _learned_sign(x: jax.Array, scale: jax.Array) -> jax.Array:
    """scale * sign(x), sign(0) = 1, differentiable in x and scale as LSQ's with two levels.

    Gradients: to x, 1 for |x| <= scale and 0 outside; to scale, sign(v) - v inside, v = x / scale,
    and sign(v) outside. The backward pass keeps x in its own dtype.
    """
    return _sign_quant(x, scale)


@jax.custom_vjp
def _sign_quant(x, scale):
    return (blocks.spread(scale, x.shape) * _sign(widen(x), scale)).astype(x.dtype)


def _sign_quant_bwd(residual, g):
    x, scale = residual
    wide, g = widen(x), widen(g)
    rate = inverse(blocks.spread(scale, x.shape))
    at = wide * rate
    inside = jnp.abs(at) <= 1.0 + 1e-6  # the slack is for the rounding of `at`
    slope = _sign(wide, scale) - jnp.where(inside, at, 0.0)
    d_scale = blocks.fold(g * slope, scale, rate > 0)
    return jnp.where(inside, g, 0.0).astype(x.dtype), d_scale


_sign_quant.defvjp(lambda x, scale: (_sign_quant(x, scale), (x, scale)), _sign_quant_bwd)


# Compiled as one function, so that layers of one shape share its trace.
@jax.jit
def _learned_whole(x: jax.Array, scale: jax.Array, bits: jax.Array) -> jax.Array:
    """scale * clip(round(x / scale), -M - 1, M), differentiable in x and scale.

    Gradients are LSQ's: to x, 1 inside the range and 0 outside; to scale, round(v) - v inside, v =
    x / scale, and the end outside. The backward pass keeps x in its own dtype.
    """
    return _whole_quant(x, scale, bits)


@jax.custom_vjp
def _whole_quant(x, scale, bits):
    code = _whole(widen(x), {"scale": scale}, bits)
    return (blocks.spread(scale, x.shape) * code).astype(x.dtype)


def _whole_quant_bwd(residual, g):
    x, scale, bits = residual
    wide, g = widen(x), widen(g)
    rate = inverse(blocks.spread(scale, x.shape))
    at, code = wide * rate, _whole(wide, {"scale": scale}, bits)
    # Inside, nothing is clipped; the slack is for the rounding of `at`.
    last = steps(jnp.rint(bits) - 1.0)
    inside = (at >= -(last + 1.0) * (1 + 1e-6)) & (at <= last * (1 + 1e-6))
    d_scale = blocks.fold(g * (code - jnp.where(inside, at, 0.0)), scale, rate > 0)
    return jnp.where(inside, g, 0.0).astype(x.dtype), d_scale, jnp.zeros_like(bits)


def _whole(x, fitted, bits):
    scale, last = fitted["scale"], steps(jnp.rint(bits) - 1.0)
    code = jnp.rint(x * inverse(blocks.spread(scale, x.shape)))
    return jnp.clip(code, -last - 1.0, last).astype(scale.dtype)


_whole_quant.defvjp(
    lambda x, scale, bits: (_whole_quant(x, scale, bits), (x, scale, bits)), _whole_quant_bwd
)


def _half(bits):
    return steps(jnp.rint(bits) - 1.0) + 1.0


SYMMETRIC = Alphabet(
    lambda x, fitted, bits: plane_grid.nearest(x, _planes(fitted["scale"], bits, x.shape)),
    lambda code, bits: plane_grid.pack(code, _planes(jnp.ones_like(bits), bits)),
    lambda codes, bits: plane_grid.unpack(codes, _planes(jnp.ones_like(bits), bits)),
    lambda x, scale, bits: plane_quant(x, scale, Kept(bits, jnp.zeros_like(bits)), _DEPTH, True),
)
THRESHOLDED = SYMMETRIC._replace(nearest=_by_threshold)
TWO_SIDED = Alphabet(
    _whole,
    lambda code, bits: (code + _half(bits)).astype(jnp.int32),
    lambda codes, bits: codes.astype(jnp.float32) - _half(bits),
    _learned_whole,
    below=1.0,
    coding="offset",
)
SIGNS = Alphabet(
    lambda x, fitted, bits: _sign(x, fitted["scale"]),
    lambda code, bits: (code > 0).astype(jnp.int32),
    lambda codes, bits: 2.0 * codes.astype(jnp.float32) - 1.0,
    lambda x, scale, bits: _learned_sign(x, scale),
    jnp.ones_like,
    coding="signs",
)
