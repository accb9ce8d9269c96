"""Counts and sums by code, from which the coefficients of planes are solved.

Zhou et al., "Neural Network Activation Quantization with Bitwise Information Bottlenecks",
arXiv 2006.05210. The Gram matrix of a code's planes and their products with u follow from these
sums (`solvers.plane_selection.gram_of_codes`) and are linear in them, so that an average over
batches is the statistic of all their elements.
"""

import jax
import jax.numpy as jnp

from bitjax.quantizers.base import Batch, Stats
from bitjax.quantizers.grid import inverse, widen
from bitjax.quantizers.plane_grid import Kept, nearest, plane_grid
from bitjax.quantizers.ranges import spacing

_SAMPLE = 2**16  # evenly spaced elements that are looked at: a sum over so many is known to 1 %


def init_sums(depth: int) -> Stats:
    """The history before any batch: no code has occurred."""
    zeros = jnp.zeros(2**depth, jnp.float32)
    return {"mass": zeros, "first": zeros, "count": jnp.float32(0.0)}


def code_sums(x: jax.Array, scale: jax.Array, kept: Kept, depth: int, signed: bool) -> Batch:
    """One batch's share of elements at each code, and its part of the mean of |x| / scale."""
    flat = widen(x).reshape(-1)
    flat = flat[:: spacing(flat.size, _SAMPLE)]
    to = plane_grid(scale, kept, depth, signed, flat.shape)
    place = jnp.left_shift(jnp.abs(nearest(flat, to)).astype(jnp.int32), to.low)
    u = (jnp.abs(flat) if signed else jnp.maximum(flat, 0.0)) * inverse(scale)
    zeros, share = jnp.zeros(2**depth, jnp.float32), 1.0 / flat.size
    first = zeros.at[place].add((u * share).astype(jnp.float32))
    return Batch(mean={"mass": zeros.at[place].add(share), "first": first})


def update_sums(stats: Stats, batch: Batch, decay: float) -> Stats:
    """Merges a batch into the history: the first one replaces it, later ones move it."""
    keep = jnp.where(stats["count"] > 0, decay, 0.0)
    moved = {name: keep * stats[name] + (1.0 - keep) * batch.mean[name] for name in batch.mean}
    return {**moved, "count": stats["count"] + 1.0}
