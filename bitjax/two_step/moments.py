"""Second moments of patches and targets: all that a layer's linear fit reads of its data.

The linear step of Two-Step Quantization (Wang et al., CVPR 2018).
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

HELD = 5  # one patch of so many is held out where starts are judged


class Sums(NamedTuple):
    """Sums over patches x and targets z: N inputs and M filters in each of G groups."""

    count: Any  # patches
    x_GxN: Any  # sum of x
    z_GxM: Any  # sum of z
    xx_GxNxN: Any  # sum of x x^T
    zx_GxMxN: Any  # sum of z x^T
    zz_GxM: Any  # sum of z^2


class PatchMoments(NamedTuple):
    """Means over a group's patches, centred where there is an intercept; solvers read them."""

    gram_NxN: NDArray[np.float64]
    cross_MxN: NDArray[np.float64]
    energy_M: NDArray[np.float64]
    mean_N: NDArray[np.float64] | None
    target_mean_M: NDArray[np.float64] | None


@jax.jit
def sums_of(x_GxTxN: jax.Array, z_GxTxM: jax.Array, weight_T: jax.Array | None = None) -> Sums:
    """The sums of one batch, float32; psum merges them over devices."""
    # At full precision: centring subtracts large moments, and TF32 would leave only rounding.
    x, z = x_GxTxN.astype(jnp.float32), z_GxTxM.astype(jnp.float32)
    product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    count, own, target = jnp.float32(x.shape[1]), x, z
    if weight_T is not None:
        # A place that does not count may hold anything, NaN among it.
        counts = weight_T[:, None] != 0
        x, z = jnp.where(counts, x, 0), jnp.where(counts, z, 0)
        count, own, target = weight_T.sum(), x * weight_T[:, None], z * weight_T[:, None]
    return Sums(
        count,
        own.sum(1),
        target.sum(1),
        product("gtn,gtk->gnk", own, x),
        product("gtm,gtn->gmn", target, x),
        (target * z).sum(1),
    )


def merge(one: Sums | None, other: Sums) -> Sums:
    """The sums of all batches so far and of one more, float64 on the host."""
    # In float64, so that adding thousands of batches adds no rounding.
    wide = Sums(*(np.asarray(leaf, np.float64) for leaf in other))
    return wide if one is None else Sums(*(a + b for a, b in zip(one, wide, strict=True)))


def part_of(sums: Sums, filters: slice) -> Sums:
    """The sums of some of the filters."""
    z, zx, zz = (leaf[:, filters] for leaf in (sums.z_GxM, sums.zx_GxMxN, sums.zz_GxM))
    return sums._replace(z_GxM=z, zx_GxMxN=zx, zz_GxM=zz)


class Collected(NamedTuple):
    """The patches and targets of all batches, or their sums."""

    count: int  # patches
    sums: Sums | None  # over all patches; None where they are fewer than the layer's inputs
    held: Sums | None  # those of the patches that starts are judged by; None without any
    x_GxTxN: Any  # all patches, where they are wanted or too few for sums; else None
    z_GxTxM: Any  # the patches' targets, where the patches are kept; else None


def collect(
    batches: Iterable[tuple], *, resident: bool, judged: bool = False, summed: bool = False
) -> Collected:
    """Sums over batches of (patches, targets, weights or None), and the patches if `resident`."""
    # A Gram matrix is made once there are as many patches as inputs. Before that the patches are
    # smaller than it would be, and a descent takes them as they are: `waiting` holds them. Weights
    # are known to sums alone, and GPTQ and AdaRound read nothing else: `summed`. The last patches
    # of a batch are held out where starts are `judged`.
    seen, held = None, None
    count, kept, waiting = 0, [], []
    for batch in batches:
        x, _, weight = batch
        count += x.shape[1] if weight is None else int(np.count_nonzero(weight))
        waiting.append(batch)
        if resident:
            kept.append(batch)
        if count >= x.shape[2] or weight is not None or summed:
            for one in waiting:
                first, last = _divided(one, judged)
                seen = merge(seen, sums_of(*first))
                held = held if last is None else merge(held, sums_of(*last))
            waiting = []
    if held is not None and not held.count > 0:
        held = None
    sums = seen if seen is None or held is None else merge(seen, held)
    if sums is not None and not sums.count > 0:
        raise ValueError("`weights` leave no patch: they must be at least 0 and not all 0.")
    kept = kept or waiting
    if not kept:
        return Collected(count, sums, held, None, None)
    x, z = (jnp.concatenate(leaves, axis=1) for leaves in list(zip(*kept, strict=True))[:2])
    return Collected(count, sums, held, x, z)


def _divided(batch, judged):
    """A batch in two: the patches that a start is solved from, and those that judge it."""
    x, z, weight = batch
    cut = x.shape[1] - x.shape[1] // HELD * judged
    if cut == x.shape[1]:
        return batch, None
    ends = slice(None, cut), slice(cut, None)
    return [(x[:, at], z[:, at], None if weight is None else weight[at]) for at in ends]


def less(sums: Sums, held: Sums) -> Sums:
    """The sums without those that are held out."""
    return Sums(*(a - b for a, b in zip(sums, held, strict=True)))


def errors_of(sums: Sums, group: int, codes_MxN: Any, scale_M: Any, intercept_M: Any) -> NDArray:
    """E (z - v)^2 of every filter of a group, over the patches of these sums."""
    moments = moments_of(sums, group, intercept=False)
    w = np.asarray(scale_M)[:, None] * np.asarray(codes_MxN)
    b, n = np.asarray(intercept_M), sums.count
    x, z = sums.x_GxN[group] / n, sums.z_GxM[group] / n
    square = ((w @ moments.gram_NxN) * w).sum(1) + 2 * b * (w @ x) + b**2
    return moments.energy_M - 2 * ((w * moments.cross_MxN).sum(1) + b * z) + square


def moments_of(sums: Sums, group: int, *, intercept: bool) -> PatchMoments:
    """Means of a group's sums, centred where there is an intercept."""
    n = sums.count
    x, z = sums.x_GxN[group] / n, sums.z_GxM[group] / n
    gram, cross, energy = (a[group] / n for a in (sums.xx_GxNxN, sums.zx_GxMxN, sums.zz_GxM))
    # An intercept that is free makes the centred moments all that a solver needs.
    if not intercept:
        return PatchMoments(gram, cross, energy, None, None)
    return PatchMoments(gram - np.outer(x, x), cross - np.outer(z, x), energy - z**2, x, z)
