r"""Rounds every weight up or down so that outputs change least, by a soft rounding that hardens.

AdaRound: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020,
arXiv 2004.10568. The patches enter by their Gram matrix: no step reads the data.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from bitjax.checks import ARRAY, NONE, checked, either, integer, number
from bitjax.solvers.base import Solution
from bitjax.solvers.checks import MASK, check_finite, checked_pruned, checked_rounding

_LOW, _HIGH = -0.1, 1.1  # gamma and zeta, between which the sigmoid is stretched
_WARM = 0.2  # share of the steps before the regulariser begins
_SHARP, _FLAT = 20.0, 2.0  # beta, from its beginning to its end
_ON = 1e-5  # what a weight may be off its code by, for rounding, as a share of the gap
_MOMENTS = 0.9, 0.999, 1e-8  # Adam's


@checked(
    gram_NxN=ARRAY,
    filters_MxN=ARRAY,
    grid_G=ARRAY,
    scale_M=ARRAY,
    cross_MxN=either(NONE, ARRAY),
    pruned_MxN=either(NONE, MASK),
    steps=integer(1),
    rate=number(0, above=True),
    strength=number(0),
)
def adaround_codes(
    gram_NxN: ArrayLike,
    filters_MxN: ArrayLike,
    grid_G: ArrayLike,
    scale_M: ArrayLike,
    *,
    cross_MxN: ArrayLike | None = None,
    pruned_MxN: ArrayLike | None = None,
    steps: int = 500,
    rate: float = 0.1,
    strength: float = 0.5,
) -> Solution:
    r"""Codes c next to $w / a$, from below or above, with a small $a^2 c^T A c - 2 a q^T c$.

    $$\min_V \|f\|_A^2 + \lambda \sum (1 - |2 h(V) - 1|^\beta)$$

    f is what the soft codes, the lower code plus a share h of the way to the upper one, lose. h is
    a sigmoid of V stretched to [-0.1, 1.1] and clipped to [0, 1]. After a fifth of the steps the
    second term pushes it to 0 and 1, first the middle ones and then all, as $\beta$ falls from 20
    to 2. Adam moves V. A weight beyond the grid keeps the grid's end, one that is on a code keeps
    it. A filter whose nearest codes lose less than what was found keeps those.

    Args:
        gram_NxN: A, the second moments of the inputs.
        filters_MxN: w, the filters to round.
        grid_G: codes in rising order, two or more.
        scale_M: a, at least 0; a filter whose scale is 0 has the code nearest to 0.
        cross_MxN: q, the moments of the wanted outputs with the inputs; A w by default, which are
            the filters' own outputs.
        pruned_MxN: bool, the codes that stay 0, which must be in the grid; none by default.
        steps: steps of Adam; the paper has 10,000.
        rate: Adam's.
        strength: lambda, in units of a code's square at an input of mean variance.

    Returns:
        `value`: codes [M, N], as float64. `objective`: $a^2 c^T A c - 2 a q^T c$, [M]; the target's
            energy added, it is the squared error. `stats`: `nearest`, the objective of the nearest
            codes, [M]; `moved`, the share of codes that are not the nearest, [M].

    Raises:
        ValueError: shapes do not fit, or a number is not finite.

    Example:
        The second input varies as the first one does, and makes up for its rounding.

        >>> gram = np.array([[1.0, 0.9], [0.9, 1.0]])
        >>> adaround_codes(gram, [[0.45, 0.35]], [-1, 0, 1], [1.0]).value.tolist()
        [[1.0, 0.0]]

    Source: the paper's equations 21 to 24. Departures: there V learns from batches of patches,
      10,000 steps, the layer's ReLU inside the error. From moments a step costs N^2 M
      multiply-adds, and there is no ReLU. The strength has a unit of its own, so that it means the
      same in every layer.
    """
    gram, filters, grid, scale = checked_rounding(gram_NxN, filters_MxN, grid_G, scale_M, 2)
    M, N = filters.shape
    cross = filters @ gram if cross_MxN is None else np.asarray(cross_MxN, np.float64)
    if cross.shape != (M, N):
        raise ValueError(f"`cross_MxN` must have shape {(M, N)}, got {cross.shape}.")
    pruned = checked_pruned(pruned_MxN, (M, N), grid)
    check_finite(cross_MxN=cross)

    alive_M = scale > 0
    wanted = np.where(alive_M[:, None], filters / np.where(alive_M, scale, 1)[:, None], 0)
    if pruned is not None:
        wanted = np.where(pruned, 0, wanted)
    at = np.clip(np.searchsorted(grid, wanted, side="right") - 1, 0, grid.size - 2)
    lower, gap = grid[at], grid[at + 1] - grid[at]
    share = np.clip((wanted - lower) / gap, 0, 1)
    share = np.where(np.abs(share - np.rint(share)) < _ON, np.rint(share), share)
    nearest = share > 0.5
    # In units of a code's square at an input of mean variance, and with the lower code taken out.
    unit = np.diagonal(gram).mean() or 1.0
    rate_M = np.where(alive_M, 1 / np.where(alive_M, scale, 1), 0)
    lacks = (cross * rate_M[:, None] - lower @ gram) / unit
    soft = _softened(
        gram / unit, lacks.T, gap.T, share.T, jnp.float32(rate), jnp.float32(strength), steps=steps
    )
    free = (share > 0) & (share < 1)
    up = np.where(free, np.asarray(soft).T >= 0.5, nearest)

    def loss(codes):
        v = scale[:, None] * codes
        return ((v @ gram - 2 * cross) * v).sum(1)

    rounded, found = lower + gap * nearest, lower + gap * up
    before, after = loss(rounded), loss(found)
    codes = np.where((after < before)[:, None], found, rounded)
    stats = {"nearest": before, "moved": (codes != rounded).mean(1)}
    return Solution(codes, np.minimum(before, after), stats)


@partial(jax.jit, static_argnames=("steps",))
def _softened(gram_NxN, lacks_NxM, gap_NxM, share_NxM, rate, strength, *, steps):
    """h after all steps; filters last, so that vectors over them are contiguous."""
    first, second, least = _MOMENTS
    free = (share_NxM > 0) & (share_NxM < 1)

    def rectified(v):
        return jnp.clip(jax.nn.sigmoid(v) * (_HIGH - _LOW) + _LOW, 0, 1)

    def gradient(v, beta, weight):
        h, back = jax.vjp(rectified, v)
        product = jnp.dot(gram_NxN, gap_NxM * h, precision=lax.Precision.HIGHEST)
        by_error = 2 * gap_NxM * (product - lacks_NxM)
        away = 2 * h - 1  # the regulariser's slope, -2 beta |2 h - 1|^(beta - 1) sign(2 h - 1)
        by_rounding = -2 * beta * jnp.sign(away) * jnp.abs(away) ** (beta - 1)
        (slope,) = back(jnp.where(free, by_error + weight * by_rounding, 0))
        return slope

    def step(i, carry):
        v, mean, square = carry
        done = (i / steps - _WARM) / (1 - _WARM)
        beta = _FLAT + (_SHARP - _FLAT) * (1 - jnp.maximum(done, 0))
        slope = gradient(v, beta, jnp.where(done < 0, 0, strength))
        mean = first * mean + (1 - first) * slope
        square = second * square + (1 - second) * slope**2
        moved = mean / (1 - first ** (i + 1))
        spread = jnp.sqrt(square / (1 - second ** (i + 1)))
        return v - rate * moved / (spread + least), mean, square

    # So that h begins as the share: soft codes are the float weights.
    start = jax.scipy.special.logit((share_NxM - _LOW) / (_HIGH - _LOW))
    none = jnp.zeros_like(start)
    return rectified(lax.fori_loop(0, steps, step, (start, none, none))[0])
