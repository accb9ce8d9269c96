"""The step and the threshold of a half-wave quantizer, by the least squared error of x > 0.

Lloyd's iteration with evenly spaced levels, on N(0, 1) or on a tensor. HWGQ, Cai et al., CVPR 2017,
and TSQ, Wang et al., CVPR 2018.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.checks import checked, number
from bitjax.quantizers import ranges
from bitjax.quantizers.base import BITS
from bitjax.quantizers.grid import inverse, steps, widen
from bitjax.quantizers.halfwave_grid import level, levels, nearest

_LLOYD = 16


@checked(bits=BITS)
def gaussian_levels(bits: int) -> tuple[float, float]:
    """The step and the threshold of least squared error for x > 0 of N(0, 1); in float64.

    Returns:
      (step, step / 2): rounding to the nearest level, 0 among them.

    Example:
      >>> [round(gaussian_levels(bits)[0], 4) for bits in (1, 2, 3, 4)]
      [1.224, 0.6508, 0.3534, 0.1933]
    """
    step = _gaussian_step(int(bits), None)
    return step, step / 2


@checked(bits=BITS, threshold=number(0))
def gaussian_step(bits: int, threshold: float = 0.0) -> float:
    r"""The step of least squared error for x > threshold of N(0, 1); in float64.

    The fixed point of Lloyd's iteration with uniform levels,

    $$D \leftarrow \sum_k k m_{1k} / \sum_k k^2 m_{0k},$$

    with m0 and m1 the mass and the first moment of (t_k, t_{k+1}]: the root of the difference of
    the two sides, found by bisection beside the best of 64 steps. The iteration itself crawls at
    many bits, and has several fixed points at thresholds near 1.5 steps.

    Args:
      bits: 1 to 16; 16 take 2 seconds.
      threshold: the largest x that becomes 0, 0 or more.

    Example:
      >>> round(gaussian_step(2), 4), round(gaussian_step(3), 4), round(gaussian_step(4), 4)
      (0.5388, 0.3217, 0.1842)

    Source: HWGQ (threshold 0) and TSQ; HWGQ's program has 0.538 at 2 bits, TSQ's 0.6487 at 0.32.
    """
    return _gaussian_step(int(bits), float(threshold))


@functools.cache
def _gaussian_step(bits: int, threshold: float | None) -> float:
    code = np.arange(1.0, 2.0**bits)
    tail = np.vectorize(lambda t: 0.5 * math.erfc(t / math.sqrt(2)))  # 1 - Phi, without cancelling

    def sums(step):
        start = step / 2 if threshold is None else threshold
        edge = np.maximum(start, (code - 0.5) * step)
        edge[0] = start
        above = np.append(tail(edge), 0.0)
        density = np.append(np.exp(-0.5 * edge**2) / math.sqrt(2 * math.pi), 0.0)
        m0, m1 = above[:-1] - above[1:], density[:-1] - density[1:]
        return float(code @ m1), float(code**2 @ m0)

    def error(step):  # less E[x^2], which no step changes
        first, second = sums(step)
        return step**2 * second - 2 * step * first

    tried = np.geomspace(0.5 / code[-1], 3.0 + (threshold or 0.0), 64)
    best = int(np.argmin([error(step) for step in tried]))
    low, high = float(tried[max(best - 1, 0)]), float(tried[min(best + 1, 63)])
    for _ in range(50):
        middle = 0.5 * (low + high)
        first, second = sums(middle)
        low, high = (middle, high) if first > middle * second else (low, middle)
    return low


def measured_step(x: jax.Array, bits: jax.Array, half: bool) -> jax.Array:
    """The step of least squared error for the elements of x above 0, by Lloyd's iteration."""
    # It starts from the best of 80 steps and looks at a sample, see `ranges.thin`.
    x = jax.lax.stop_gradient(widen(x))
    last = steps(bits)

    def grid(step):
        return levels(step, 0.5 * step if half else jnp.zeros_like(step), bits)

    def quantize(x, low, high):
        del low
        to = grid(high / last)
        return level(nearest(x, to), to)

    # In units of the largest element, so that no square leaves the range of float32.
    x = jnp.maximum(x, 0.0)
    peak = jnp.max(x)
    unit = ranges.thin((x * inverse(peak)).reshape(1, -1))[0]
    _, high = ranges.calibrate(unit, (), "mse", signed=False, quantize=quantize)

    def lloyd(_, step):
        code = nearest(unit, grid(step))
        energy = jnp.mean(code * code)
        return jnp.where(energy > 0, jnp.mean(code * unit) / energy, step).astype(step.dtype)

    step = jax.lax.fori_loop(0, _LLOYD, lloyd, high / last) * peak
    return jnp.where(step > 0, step, 1.0).astype(jnp.float32)
