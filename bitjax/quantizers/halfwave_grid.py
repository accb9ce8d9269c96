"""One half-wave grid: codes, levels, and fake quantization with an analytic backward.

  Q(x) = 0 if x <= threshold,   k step if t_k < x <= t_{k+1}, k = 1 .. M = 2^bits - 1,
  t_1 = threshold,   t_k = max(threshold, (k - 1/2) step),   t_{M+1} = inf.

Cai et al., "Deep Learning with Low Precision by Half-wave Gaussian Quantization", CVPR 2017, where
the threshold is 0; Wang et al., "Two-Step Quantization for Low-bit Neural Networks", CVPR 2018.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bitjax.quantizers import blocks
from bitjax.quantizers.grid import inverse, steps, widen


class HalfWave(NamedTuple):
    """The levels, as numbers made once per call."""

    step: jax.Array  # distance between levels, in units of x, at least 0
    threshold: jax.Array  # the largest x that becomes 0
    rate: jax.Array  # codes per unit of x, 1 / step; 0 where the step is too small to divide by
    last: jax.Array  # the highest code, M = 2^bits - 1


def levels(step: jax.Array, threshold: jax.Array, bits: jax.Array) -> HalfWave:
    """The levels of a step and a threshold at round(bits) bits, all `[]`."""
    return HalfWave(step, threshold, inverse(step), steps(jnp.rint(bits)).astype(step.dtype))


def nearest(x: jax.Array, to: HalfWave) -> jax.Array:
    """The code of widened x, as float: k for t_k < x <= t_{k+1}.

    Edges are products that x is compared with: the upper edge of an interval belongs to it in every
    program, where a rounded quotient would fall on either side.
    """
    code = jnp.clip(jnp.rint(x * to.rate), 0.0, to.last)
    code = jnp.where(x <= (code - 0.5) * to.step, code - 1.0, code)
    code = jnp.where(x > (code + 0.5) * to.step, code + 1.0, code)
    # NaN compares as false, and is not hidden.
    code = jnp.where(x <= to.threshold, 0.0, jnp.clip(code, 1.0, to.last))
    return code.astype(to.step.dtype)


def level(code: jax.Array, to: HalfWave) -> jax.Array:
    """What a float code stands for, rounded once."""
    return to.step * code


# Compiled as one function, so that layers of one shape share its trace.
@functools.partial(jax.jit, static_argnums=(4,))
def half_wave_quant(
    x: jax.Array,
    step: jax.Array,
    threshold: jax.Array,
    bits: jax.Array,
    learn_step: bool = False,
) -> jax.Array:
    """x on the levels of a half-wave, differentiable in x and perhaps in the step.

    Gradients: to x, 1[0 < x < M step], which begins at 0 and not at the threshold; to the step,
    where it is asked for, Q/step - x/step inside that range and M above it (LSQ); none to threshold
    and bits. The backward pass keeps one array of x's size: a mask, or x where the step learns.

    Source: the public AlexNet of TSQ: thresholds, levels and mask.
    """
    return _half_wave_quant(x, step, threshold, bits, learn_step)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _half_wave_quant(x, step, threshold, bits, learn_step):
    return _half_wave_quant_fwd(x, step, threshold, bits, learn_step)[0]


def _half_wave_quant_fwd(x, step, threshold, bits, learn_step):
    to, wide = levels(step, threshold, bits), widen(x)
    x_hat = level(nearest(wide, to), to).astype(x.dtype)
    return x_hat, (x if learn_step else _is_inside(wide, to), to, bits)


def _half_wave_quant_bwd(learn_step, residual, g):
    kept, to, bits = residual
    none = jnp.zeros_like(to.threshold), jnp.zeros_like(bits)
    if not learn_step:
        return jnp.where(kept, g, 0.0).astype(g.dtype), jnp.zeros_like(to.step), *none
    x, wide_g = widen(kept), widen(g)
    code, inside = nearest(x, to), _is_inside(x, to)
    slope = jnp.where(inside, code - x * to.rate, code)
    d_step = blocks.fold(wide_g * slope, to.step, (x > 0) & (to.rate > 0))
    return jnp.where(inside, wide_g, 0.0).astype(kept.dtype), d_step, *none


def _is_inside(x, to: HalfWave):
    return (x > 0) & (x < to.last * to.step)


_half_wave_quant.defvjp(_half_wave_quant_fwd, _half_wave_quant_bwd)
