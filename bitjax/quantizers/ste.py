"""Straight-through estimators: functions whose surrogate gradient is stated by name.

Bengio, Léonard and Courville, "Estimating or Propagating Gradients Through Stochastic Neurons",
arXiv 1308.3432.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


@jax.custom_jvp
def round_ste(x: jax.Array) -> jax.Array:
    """Rounds to the nearest integer, ties to even; surrogate gradient 1 everywhere."""
    return jnp.rint(x)


@round_ste.defjvp
def _round_ste_jvp(primals, tangents):
    return round_ste(*primals), tangents[0]


def clip_ste(x: jax.Array, clip_min: ArrayLike, clip_max: ArrayLike) -> jax.Array:
    """Limits x to [clip_min, clip_max]; surrogate gradient 1 to x everywhere, 0 to the ends."""
    return _clip_ste(x, jnp.asarray(clip_min, x.dtype), jnp.asarray(clip_max, x.dtype))


@jax.custom_jvp
def _clip_ste(x, clip_min, clip_max):
    return jnp.clip(x, clip_min, clip_max)


@_clip_ste.defjvp
def _clip_ste_jvp(primals, tangents):
    return _clip_ste(*primals), tangents[0]


@jax.custom_jvp
def replace_ste(x: jax.Array, x_hat: jax.Array) -> jax.Array:
    """Gives x_hat in place of x; surrogate gradient 1 to x, 0 to x_hat."""
    del x  # Unlike with `x + stop_gradient(x_hat - x)`, what comes out is x_hat exactly.
    return x_hat


@replace_ste.defjvp
def _replace_ste_jvp(primals, tangents):
    return replace_ste(*primals), tangents[0]


def scale_gradient(x: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Gives x unchanged; the gradient is multiplied by `factor`."""
    return _scale_gradient(x, jnp.asarray(factor, jnp.result_type(x)))


@jax.custom_vjp
def _scale_gradient(x, factor):
    del factor
    return x


_scale_gradient.defvjp(
    lambda x, factor: (x, factor),
    lambda factor, g: (g * factor, jnp.zeros_like(factor)),
)
