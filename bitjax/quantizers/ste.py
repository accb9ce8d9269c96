"""Straight-through estimators: functions whose surrogate gradient is stated by name.

Bengio, Léonard and Courville, "Estimating or Propagating Gradients Through Stochastic Neurons",
arXiv 1308.3432.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def _straight_through(function):
    @jax.custom_jvp
    def wrapped(x: jax.Array) -> jax.Array:
        return function(x)

    @wrapped.defjvp
    def _jvp(primals, tangents):
        return wrapped(*primals), tangents[0]

    return functools.update_wrapper(wrapped, function)


def round_ste(x: jax.Array) -> jax.Array:
    """Rounds to the nearest integer, ties to even; surrogate gradient 1 everywhere.

    Example:
      >>> float(jax.grad(round_ste)(0.3))
      1.0
    """
    return _round(x)


def floor_ste(x: jax.Array) -> jax.Array:
    """Rounds down; surrogate gradient 1 everywhere.

    Example:
      >>> float(floor_ste(jnp.float32(1.7))), float(jax.grad(floor_ste)(1.7))
      (1.0, 1.0)
    """
    return _floor(x)


_round = _straight_through(jnp.rint)
_floor = _straight_through(jnp.floor)


def clip(x: jax.Array, clip_min: jax.Array, clip_max: jax.Array) -> jax.Array:
    """Limits x to [clip_min, clip_max]; gradient 1 to x inside and on the ends, to the end outside.

    `jnp.clip` splits the gradient in halves on the ends; here an end belongs to the inside, so that
    the largest element of a tensor under its own min-max range still learns.

    Example:
      >>> float(jax.grad(clip)(1.0, 0.0, 1.0)), float(jax.grad(clip, argnums=2)(2.0, 0.0, 1.0))
      (1.0, 1.0)
    """
    return jnp.where(x < clip_min, clip_min, jnp.where(x > clip_max, clip_max, x))


def clip_ste(x: jax.Array, clip_min: ArrayLike, clip_max: ArrayLike) -> jax.Array:
    """Limits x to [clip_min, clip_max]; surrogate gradient 1 to x everywhere, 0 to the ends.

    Example:
      >>> float(jax.grad(clip_ste)(jnp.float32(3.0), 0.0, 1.0))
      1.0
    """
    return _clip_ste(x, jnp.asarray(clip_min, x.dtype), jnp.asarray(clip_max, x.dtype))


@jax.custom_jvp
def _clip_ste(x, clip_min, clip_max):
    return jnp.clip(x, clip_min, clip_max)


@_clip_ste.defjvp
def _clip_ste_jvp(primals, tangents):
    return _clip_ste(*primals), tangents[0]


@jax.custom_jvp
def replace_ste(x: jax.Array, x_hat: jax.Array) -> jax.Array:
    """Gives x_hat in place of x; surrogate gradient 1 to x, 0 to x_hat.

    Unlike `x + stop_gradient(x_hat - x)`, what comes out is x_hat exactly.

    Example:
      >>> x_hat = jnp.float32(5.0)
      >>> float(replace_ste(3.0, x_hat)), float(jax.grad(replace_ste)(3.0, x_hat))
      (5.0, 1.0)
    """
    del x
    return x_hat


@replace_ste.defjvp
def _replace_ste_jvp(primals, tangents):
    return replace_ste(*primals), tangents[0]


def scale_gradient(x: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Gives x unchanged; the gradient is multiplied by `factor`.

    Example:
      >>> float(jax.grad(lambda s: scale_gradient(s, 0.25))(3.0))
      0.25
    """
    return _scale_gradient(x, jnp.asarray(factor, jnp.result_type(x)))


@jax.custom_vjp
def _scale_gradient(x, factor):
    del factor
    return x


_scale_gradient.defvjp(
    lambda x, factor: (x, factor),
    lambda factor, g: (g * factor, jnp.zeros_like(factor)),
)
