"""Measures what quantization did to a tensor: distortion, SQNR, rate, entropy."""

import math

import jax
import jax.numpy as jnp

from bitjax.checks import ARRAY, checked, integer, number
from bitjax.quantizers.grid import widen


@checked(x=ARRAY, x_hat=ARRAY)
def distortion(x: jax.Array, x_hat: jax.Array) -> jax.Array:
    """Mean squared error, in units of x squared; scalar float.

    Args:
      x: any shape, float.
      x_hat: x after quantization, its shape.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> float(distortion(jnp.array([0.0, 2.0]), jnp.array([0.0, 1.0])))
      0.5
    """
    if jnp.shape(x) != jnp.shape(x_hat):
        raise ValueError(
            f"`x_hat` must have the shape of `x`, {jnp.shape(x)}, got {jnp.shape(x_hat)}."
        )
    return jnp.mean(jnp.square(widen(jnp.asarray(x)) - widen(jnp.asarray(x_hat))))


@checked(x=ARRAY, x_hat=ARRAY)
def sqnr(x: jax.Array, x_hat: jax.Array) -> jax.Array:
    """Signal to quantization noise ratio, 10 log10(mean x^2 / distortion), in dB.

    Without error it is +inf, also for a signal of zeros.

    Args:
      x: any shape, float.
      x_hat: x after quantization, its shape.

    Example:
      >>> round(float(sqnr(jnp.array([1.0, 1.0]), jnp.array([0.9, 1.1]))), 3)
      20.0
    """
    signal, noise = jnp.mean(jnp.square(widen(jnp.asarray(x)))), distortion(x, x_hat)
    ratio = jnp.where(noise > 0, signal, 1.0) / jnp.where(noise > 0, noise, 1.0)
    return jnp.where(noise > 0, 10.0 * jnp.log10(ratio), jnp.inf)


@checked(bits=ARRAY, elements=integer(1, math.inf), side_bits=number(0))
def rate(bits: jax.Array, elements: int, side_bits: float = 0.0) -> jax.Array:
    """Bits per element: the mean of `bits` over its blocks plus side information shared by all.

    Args:
      bits: bits per element of each block, any shape; blocks are of equal size.
      elements: elements of the tensor.
      side_bits: bits of scales and tables stored once for the tensor.

    Example:
      >>> float(rate(jnp.array([2.0, 4.0]), 64, side_bits=32))
      3.5
    """
    return jnp.mean(jnp.asarray(bits)) + side_bits / elements


@checked(codes=ARRAY, num_codes=integer(1))
def entropy(codes: jax.Array, num_codes: int) -> jax.Array:
    """Entropy of the codes' histogram, -sum p log2 p, in bits per element.

    Args:
      codes: integers in [0, num_codes); others are not counted.
      num_codes: length of the histogram.

    Example:
      >>> float(entropy(jnp.array([0, 1, 2, 3]), 4))
      2.0
    """
    counts = jnp.bincount(jnp.asarray(codes).reshape(-1), length=num_codes)
    p = counts / jnp.maximum(counts.sum(), 1)
    return -jnp.sum(jnp.where(p > 0, p * jnp.log2(jnp.where(p > 0, p, 1.0)), 0.0))
