"""A kernel as small integers times a scale per filter: w = a c, by each filter's squared error.

Ternary: Li and Liu, "Ternary Weight Networks" (TWN), arXiv 1605.04711, and the exact minimum that
Wang et al. start "Two-Step Quantization for Low-bit Neural Networks", CVPR 2018, from (OTWN).
Binary: Rastegari et al., "XNOR-Net", arXiv 1603.05279.

All functions take a kernel of any shape and its `Axes`, of which the channel axes tell filters
apart: the default, `KERNEL`, is that of Flax layers, `MATRIX` that of a matrix [filters, inputs].
They give int32 codes of the kernel's shape, and a scale per filter of the kernel's rank, so that
`codes * scale` is the kernel's approximation. A filter of zeros has the scale 0. No gradients.
"""

import functools

import jax
import jax.numpy as jnp

from bitjax.checks import ARRAY, SWITCH, check_one, checked, instance, number
from bitjax.quantizers import blocks
from bitjax.quantizers.base import BITS, Axes
from bitjax.quantizers.grid import inverse, steps, widen

KERNEL = Axes()
MATRIX = Axes((0,), -1)
_TABLE = {"kernel": ARRAY, "axes": instance(Axes)}
_STARTS = 16
_ROUNDS = 50


@checked(factor=number(0), **_TABLE)
def twn_codes(
    kernel: jax.Array, axes: Axes = KERNEL, *, factor: float = 0.7
) -> tuple[jax.Array, jax.Array]:
    """Ternary codes by a threshold: sign(w) where |w| > factor mean|w|, else 0.

    The scale is the mean of |w| above the threshold. For a Gaussian the factor 0.7 has a relative
    error of 0.1916, the best one, 0.767, of 0.1902.

    Args:
      kernel: any shape, float.
      axes: which axes of the kernel are the filters, as its channel axes.
      factor: the threshold in units of mean|w|.

    Returns:
      (codes in {-1, 0, 1}, scale).

    Example:
      >>> codes, scale = twn_codes(jnp.array([[0.1, -1.0, 3.0]]), MATRIX)
      >>> codes.tolist(), scale.tolist()
      ([[0, -1, 1]], [[2.0]])

    Source: arXiv 1605.04711 (the authors' later program has 0.75).
    """
    w, _ = _filters(kernel, axes)
    codes = _ternary(w, jnp.abs(w) > twn_threshold(kernel, axes, factor=factor))
    return codes, _mean_size(w, codes, axes)


def twn_threshold(kernel: jax.Array, axes: Axes = KERNEL, *, factor: float = 0.7) -> jax.Array:
    """The threshold of `twn_codes`, per filter."""
    w, block = _filters(kernel, axes)
    cut, inner = blocks.split(jnp.abs(w), block)
    return factor * jnp.mean(cut, axis=inner).reshape(block)


@checked(**_TABLE)
def otwn_codes(kernel: jax.Array, axes: Axes = KERNEL) -> tuple[jax.Array, jax.Array]:
    """The best ternary codes: the exact minimum of ||w - a c||^2 over a > 0 and c in {-1, 0, 1}.

    Of r codes that are not 0, the best are at the largest |w|; with S_r the sum of these,

      a = S_r / r,   ||w - a c||^2 = ||w||^2 - S_r^2 / r,

    so that one sort and its prefix sums give the best r: O(n log n). Of equal r the largest is
    taken. At the minimum the codes are those nearest to w / a.

    Args:
      kernel: any shape, float.
      axes: which axes of the kernel are the filters, as its channel axes.

    Returns:
      (codes in {-1, 0, 1}, scale).

    Example:
      >>> codes, scale = otwn_codes(jnp.array([[0.1, -1.0, 3.0]]), MATRIX)
      >>> codes.tolist(), scale.tolist()
      ([[0, 0, 1]], [[3.0]])

    Source: the public OTWN program of the authors of TSQ.
    """
    w, block = _filters(kernel, axes)
    size = -jnp.sort(-jnp.abs(blocks.flatten(w, block)), axis=1)
    inputs = size.shape[1]
    gain = jnp.square(jnp.cumsum(size, axis=1)) / jnp.arange(1, inputs + 1)
    last = inputs - 1 - jnp.argmax(gain[:, ::-1], axis=1, keepdims=True)
    smallest = jnp.take_along_axis(size, last, axis=1).reshape(block)
    codes = _ternary(w, jnp.abs(w) >= smallest)
    # In float32 the gains of neighbouring r are equal to rounding where there are thousands of
    # inputs. The codes nearest to w / a settle it: at the minimum no |w| is within a / 8r of a / 2.
    for _ in range(2):
        codes = _ternary(w, jnp.abs(w) > 0.5 * _mean_size(w, codes, axes))
    return codes, _mean_size(w, codes, axes)


@checked(**_TABLE)
def binary_codes(kernel: jax.Array, axes: Axes = KERNEL) -> tuple[jax.Array, jax.Array]:
    """The best binary codes: the sign, that of 0 being +1; the scale is mean|w|.

    Args:
      kernel: any shape, float.
      axes: which axes of the kernel are the filters, as its channel axes.

    Returns:
      (codes in {-1, 1}, scale).

    Example:
      >>> codes, scale = binary_codes(jnp.array([[0.0, -1.0, 5.0]]), MATRIX)
      >>> codes.tolist(), scale.tolist()
      ([[1, -1, 1]], [[2.0]])

    Source: arXiv 1603.05279.
    """
    w, block = _filters(kernel, axes)
    cut, inner = blocks.split(jnp.abs(w), block)
    scale = jnp.mean(cut, axis=inner).reshape(block)
    return jnp.where(w >= 0, 1, -1).astype(jnp.int32), scale


@checked(bits=ARRAY, narrow=SWITCH, **_TABLE)
def rounded_codes(
    kernel: jax.Array, bits: jax.Array | int, axes: Axes = KERNEL, *, narrow: bool = True
) -> tuple[jax.Array, jax.Array]:
    """Codes in {-M .. M}, M = 2^(bits-1) - 1, by alternate rounding, from the best of 16 scales.

      c <- clip(round(w / a), -M, M),   a <- <w, c> / <c, c>,   until nothing changes.

    Without `narrow` the lower end is -M - 1.

    Neither step raises the error, but where it ends depends on the start: from max|w| / M alone it
    is 8 % above the least at 4 bits and 144 Gaussian weights, from the best of 16, 0.3 %.

    Args:
      kernel: any shape, float.
      bits: 2 to 16, an array at will; 2 are ternary, which `otwn_codes` finds exactly.
      axes: which axes of the kernel are the filters, as its channel axes.
      narrow: whether the code -M - 1 is left out.

    Returns:
      (codes, scale).

    Example:
      >>> codes, scale = rounded_codes(jnp.array([[0.1, -1.0, 3.0]]), 3, MATRIX)
      >>> codes.tolist(), scale.tolist()
      ([[0, -1, 3]], [[1.0]])
    """
    if not isinstance(bits, jax.core.Tracer):
        check_one("bits", BITS._replace(low=2), bits)
    w, block = _filters(kernel, axes)
    last = steps(jnp.rint(jnp.asarray(bits, w.dtype)) - 1)
    return _alternated(w, -last if narrow else -last - 1, last, block)


# Compiled as one function, so that kernels of one shape share its trace.
@functools.partial(jax.jit, static_argnums=3)
def _alternated(w, first, last, block):
    """Codes from `first` to `last`, and the scales at which rounding changes nothing."""
    cut, inner = blocks.split(jnp.abs(w), block)
    full = jnp.max(cut, axis=inner).reshape(block) / jnp.maximum(last, 1)

    def nearest(scale):
        return jnp.clip(jnp.rint(w * inverse(scale)), first, last)

    def error(share):
        return blocks.fold(jnp.square(w - share * full * nearest(share * full)), full, w != 0)

    shares = jnp.arange(1, _STARTS + 1, dtype=w.dtype) / _STARTS
    start = full * shares[jnp.argmin(jax.lax.map(error, shares), axis=0)]

    def least_squares(scale):
        code = nearest(scale)
        energy = blocks.fold(code * code, scale, code != 0)
        product = blocks.fold(code * w, scale, code != 0)
        return jnp.where(energy > 0, product / jnp.maximum(energy, 1), scale)

    def go_on(state):
        scale, before, count = state
        return jnp.any(scale != before) & (count < _ROUNDS)

    def body(state):
        scale, _, count = state
        return least_squares(scale), scale, count + 1

    scale, *_ = jax.lax.while_loop(go_on, body, (least_squares(start), start, 0))
    return nearest(scale).astype(jnp.int32), scale


def _filters(kernel, axes):
    """The widened kernel without its history, and the shape of a number per filter."""
    kernel = jnp.asarray(kernel)
    block = blocks.block_shape(kernel.shape, axes, "per_channel")
    return jax.lax.stop_gradient(widen(kernel)), block


def _ternary(w, chosen):
    return jnp.where(chosen, jnp.sign(w), 0).astype(jnp.int32)


def _mean_size(w, codes, axes):
    """The mean of |w| where the codes are not 0: the best scale of ternary codes."""
    zero = jnp.zeros(blocks.block_shape(w.shape, axes, "per_channel"), w.dtype)
    count = blocks.fold(jnp.ones_like(w), zero, codes != 0)
    return blocks.fold(jnp.abs(w), zero, codes != 0) / jnp.maximum(count, 1)
