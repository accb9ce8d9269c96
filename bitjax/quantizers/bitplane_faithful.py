"""The bitwise bottleneck as its authors' program computes it, each of its defects behind a flag.

Zhou et al., arXiv 2006.05210, and bitwise_information_bottleneck.py of the authors.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bitjax.quantizers.base import Codes, Quantizer
from bitjax.quantizers.grid import inverse, widen
from bitjax.quantizers.plane_grid import PlaneGrid, kept_of, level, pack, plane_grid, unpack


def _code(x: jax.Array, to: PlaneGrid, truncate: bool, wrap: bool, dither) -> jax.Array:
    """The signed code of widened x, as the reference makes it as far as the flags ask."""
    at = x * inverse(to.scale)
    if dither is not None:
        at = at + dither
    magnitude = jnp.where((at > 0) | (to.first < 0), jnp.abs(at), 0.0)
    if truncate:
        code = jnp.floor(jnp.rint(magnitude) / to.weight)
    else:
        code = jnp.rint(magnitude / to.weight)
    size = to.last + 1.0
    code = code - size * jnp.floor(code / size) if wrap else jnp.minimum(code, to.last)
    return jnp.where(at < 0, -code, code).astype(to.step.dtype)


def faithful(
    start: Callable,
    *,
    depth: int,
    signed: bool,
    truncate: bool = False,
    wrap: bool = False,
    dither: bool = False,
    **fields: Any,
) -> Quantizer:
    """The quantizer `bitplane(mode="faithful")`, where its arguments are explained.

    Each example has a scale of its own, max|x| / 2^depth, kept in its codes' `side`.
    """

    def init(x, axes):
        return start(x, axes), {}

    def code_of(params, x, noise=None):
        kept = kept_of(params)
        largest = jnp.max(jnp.abs(x), axis=tuple(range(x.ndim > 1, x.ndim)), keepdims=True)
        to = plane_grid(largest / 2.0**depth, kept, depth, signed, x.shape)
        return _code(x, to, truncate, wrap, noise), to, kept

    def apply(params, stats, x, *, train=False, key=None):
        del stats
        noise = None
        if dither and train:
            if key is None:
                raise ValueError(
                    "dither=True draws noise in training: pass `key`, or rngs={'quant': key} to "
                    "the model's apply; an NNX model draws from its attribute rngs, nnx.Rngs(0)."
                )
            noise = jax.random.uniform(key, x.shape, minval=-0.5, maxval=0.5)
        code, to, kept = code_of(params, jax.lax.stop_gradient(widen(x)), noise)
        x_hat = level(code, to, kept.coefficients).astype(x.dtype)
        return _pass_on(x, x_hat, signed)

    def encode(params, stats, x):
        del stats
        code, to, _ = code_of(params, widen(x))
        return Codes(pack(code, to), {"scale": to.scale})

    def decode(params, stats, codes):
        del stats
        kept = kept_of(params)
        to = plane_grid(codes.side["scale"], kept, depth, signed, codes.codes.shape)
        return level(unpack(codes.codes, to), to, kept.coefficients)

    return Quantizer(init, apply, encode, decode, name="bitplane/faithful", **fields)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pass_on(x, x_hat, signed):
    """x_hat, whose surrogate gradient to x is 1, or 0 where x is cut at 0."""
    del x, signed
    return x_hat


_pass_on.defvjp(
    lambda x, x_hat, signed: (x_hat, None if signed else x >= 0),
    lambda signed, kept, g: (g if signed else jnp.where(kept, g, 0.0).astype(g.dtype), None),
)
