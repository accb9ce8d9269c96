r"""Moves a layer's targets before its activation: the element-wise step of non-linear fitting.

Step (c) of Two-Step Quantization (Wang et al., CVPR 2018): each target z moves from v towards the
value that has the wanted output, as far as that lowers the penalised error.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bitjax.checks import ARRAY, NONE, checked, either, integer, number


@checked(
    v=ARRAY,
    y=ARRAY,
    step=number(0, above=True),
    threshold=number(),
    levels=either(NONE, integer(1)),
    strength=ARRAY,
)
def z_step(
    v: ArrayLike,
    y: ArrayLike,
    step: float,
    threshold: float,
    levels: int | None,
    strength: ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    r"""The targets at which the penalised error is least, and the outputs that they stand for.

    $$\min_z (y - Q(z))^2 + \lambda (z - v)^2$$

    For each code k the nearest z that has it is clip(v, t_k, t_{k+1}), and the best of them is
    taken. Q's intervals are open below, so at z = t_k Q gives k - 1 where k was meant. Therefore
    the codes are returned beside z, as if the intervals were closed. Where Q(v) is y, z is v.

    Args:
        v: the outputs of the filters, in units of z.
        y: wanted codes, 0 to `levels`; wanted floats if `levels` is None.
        step: distance of Q's levels.
        threshold: t_1; t_k = max(threshold, (k - 1/2) step).
        levels: number of Q's levels above 0. None for Q(z) = max(z, 0) and float y.
        strength: lambda > 0.

    Returns:
        `(z, output)`: the targets, and their codes as floats; or max(z, 0) if `levels` is None.

    Raises:
        ValueError: `levels`, `step` or `threshold` is out of its range.

    Example:
        v = 0.2 has code 0 where 1 is wanted. At z = 0.5 it has code 1, at a cost of 0.09, not 1.

        >>> z, codes = z_step(jnp.array(0.2), 1, step=1.0, threshold=0.5, levels=3, strength=1.0)
        >>> float(z), float(codes)
        (0.5, 1.0)

    Source: the paper's second step, as far as it is known.
    """
    check_quantizer(step, threshold, levels)
    v = jnp.asarray(v)
    if levels is None:
        # The best z at most 0 and the best z at least 0.
        below, above = jnp.minimum(v, 0), jnp.maximum((y + strength * v) / (1 + strength), 0)
        cost_below = y**2 + strength * (below - v) ** 2
        cost_above = (y - above) ** 2 + strength * (above - v) ** 2
        z = jnp.where(cost_above < cost_below, above, below)
        return z, jnp.maximum(z, 0)
    edges = [-math.inf, *_edges(step, threshold, levels), math.inf]
    # A code whose cost is that of a lower one is not taken.
    z, codes, least = v, jnp.zeros_like(v), jnp.full_like(v, jnp.inf)
    for k, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        z_k = jnp.clip(v, low, high)
        cost = ((y - k) * step) ** 2 + strength * (z_k - v) ** 2
        better = cost < least
        z, codes = jnp.where(better, z_k, z), jnp.where(better, k, codes)
        least = jnp.minimum(cost, least)
    return z, codes


def output_of(v: ArrayLike, step: float, threshold: float, levels: int | None) -> jax.Array:
    """Q(v) in codes, as floats: 0 if v <= threshold, k if t_k < v <= t_{k+1}; or max(v, 0)."""
    v = jnp.asarray(v)
    if levels is None:
        return jnp.maximum(v, 0)
    codes = jnp.zeros_like(v)
    for edge in _edges(step, threshold, levels):
        codes += v > edge
    return codes


def check_quantizer(step: float, threshold: float, levels: int | None) -> None:
    """Raises a ValueError unless Q can reach all its levels."""
    if levels is not None and levels > 1 and not threshold < 1.5 * step:
        raise ValueError(
            f"`threshold` must be below 1.5 `step` = {1.5 * step}, or level 1 is never reached, "
            f"got {threshold}."
        )


def _edges(step, threshold, levels):
    """t_1 to t_levels."""
    return [threshold, *(max(threshold, (k - 0.5) * step) for k in range(2, levels + 1))]
