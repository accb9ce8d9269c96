"""What a histogram of |x| tells without the data: moments, any quantizer's error and entropy."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitjax.bottleneck.counts import BINS
from bitjax.bottleneck.histogram import Histogram
from bitjax.solvers.plane_selection import gram_of_codes


class Sample(NamedTuple):
    """A weighted sample that has a histogram's count, sum and sum of squares in every bin.

    Attributes:
      values: of |x|, rising, float64 [points].
      weights: their shares, float64 [points]; they sum to 1.
      within: E (|x| - value)^2, the error of saying `values`. What a quantizer does to the sample
        is short by this, whatever the quantizer: its levels are elsewhere but its cells the same.
    """

    values: NDArray[np.float64]
    weights: NDArray[np.float64]
    within: float


class Moments(NamedTuple):
    """Of |x|: the mean, the mean square, and the share of elements that are 0 and below 0."""

    mean: float
    energy: float
    zeros: float
    negatives: float


class Gram(NamedTuple):
    """Of the planes of a code, in units of the code's step, the lowest plane first.

    Attributes:
      gram_DxD: E b_i b_j; its diagonal says how often a plane is 1.
      cross_D: E b_i u.
      energy: E u^2.
      mean: E u.
      step: one unit, in units of x.
    """

    gram_DxD: NDArray[np.float64]
    cross_D: NDArray[np.float64]
    energy: float
    mean: float
    step: float


def moments(histogram: Histogram) -> Moments:
    """The first two moments of |x|, and how much of it is 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from bitjax.bottleneck.histogram import empty, observe
      >>> moments(observe(empty(), jnp.array([0.0, -4.0, 2.0, 2.0])))
      Moments(mean=2.0, energy=6.0, zeros=0.25, negatives=0.25)
    """
    total = _total(histogram)
    return Moments(
        float(histogram.sums.sum() / total),
        float(histogram.energies.sum() / total),
        histogram.zeros / total,
        histogram.negatives / total,
    )


def sample(histogram: Histogram, per_bin: int = 8) -> Sample:
    """A sample that stands in for the data: exact zeros, then `per_bin` points to a bin.

    The points of a bin spread evenly, as widely as its variance asks and its edges allow. Moments
    are exact, so a quantizer's error is too, but for what lies in the same bin as a threshold: a
    point is taken to lie on one side of it. It is exact where thresholds are edges of bins.

    Args:
      histogram: of at least one element.
      per_bin: 1 puts a bin at its mean, in one piece.

    Example:
      >>> import jax.numpy as jnp
      >>> from bitjax.bottleneck.histogram import empty, observe
      >>> values, weights, within = sample(observe(empty(), jnp.array([0.0, 1.0, 3.0, 3.0])))
      >>> np.unique(values[weights > 0]).tolist(), within
      ([0.0, 1.0, 3.0], 0.0)
    """
    if per_bin < 1:
        raise ValueError(f"`per_bin` must be at least 1, got {per_bin}.")
    total = _total(histogram)
    counts = histogram.counts.astype(np.float64)
    counts[0] -= histogram.zeros
    some = counts > 0
    counts, edges = counts[some], histogram.edges[some]
    offset = histogram.offsets[some] / counts
    variance = np.maximum(histogram.squares[some] / counts - offset**2, 0.0)
    # A uniform variable of half-width h has variance h^2 / 3, P points in its midst (1 - P^-2) of
    # that. Inside its bin a point keeps its code, and the sample its order.
    narrower = 1 - per_bin**-2
    half = np.minimum(np.sqrt(3 * variance), np.minimum(offset, histogram.width - offset))
    within = counts @ (variance - narrower * half**2 / 3) / total
    places = (2 * np.arange(per_bin) + 1 - per_bin) / per_bin
    values = (edges + offset)[:, None] + half[:, None] * places
    weights = np.repeat(counts / (total * per_bin), per_bin)
    return Sample(
        np.append(0.0, values.ravel()),
        np.append(histogram.zeros / total, weights),
        max(float(within), 0.0),
    )


def distortion(histogram: Histogram, scale: float, bits: int) -> float:
    """Mean squared error of the uniform quantizer scale * clip(round(|x| / scale), 0, 2^bits - 1).

    The sign is kept apart. Exact where thresholds, odd multiples of scale / 2, are edges of bins or
    above all elements; for others see `sample`.

    Args:
      histogram: of at least one element.
      scale: > 0, in units of x.
      bits: of the magnitude's code, at least 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from bitjax.bottleneck.histogram import empty, observe
      >>> distortion(observe(empty(), jnp.array([0.0, 1.0, 3.0, 6.0])), 2.0, 2)
      0.5
    """
    values, weights, within = sample(histogram)
    error = values - scale * _codes(values, scale, bits)
    return float(weights @ error**2) + within


def entropy(histogram: Histogram, scale: float, bits: int) -> float:
    """Entropy of the same quantizer's codes, in bits per element, signs not counted.

    Example:
      >>> import jax.numpy as jnp
      >>> from bitjax.bottleneck.histogram import empty, observe
      >>> entropy(observe(empty(), jnp.array([0.0, 1.0, 2.0, 3.0])), 1.0, 2)
      2.0
    """
    values, weights, _ = sample(histogram)
    p = np.bincount(_codes(values, scale, bits).astype(np.int64), weights)
    p = p[p > 0]
    return float(max(0.0, -(p @ np.log2(p))))


def gram(histogram: Histogram, planes: int = 8, *, rounded: bool = False) -> Gram:
    """The statistic of which plane selection is a function: Gram matrix of a code's binary planes.

    The code is floor(|x| / step), clipped to 2^planes - 1, or the nearest with `rounded`; step is
    the full scale over 2^planes. Everything is in units of it.

    Args:
      histogram: of at least one element.
      planes: in [1, 8].
      rounded: the nearest code, whose thresholds are in the midst of bins where `planes` is 8 (see
        `sample`); else everything is exact.

    Example:
      >>> import jax.numpy as jnp
      >>> from bitjax.bottleneck.histogram import empty, observe
      >>> found = gram(observe(empty(), jnp.array([0.0, 1.0, 2.0, 4.0])), 2)
      >>> found.gram_DxD.tolist(), found.energy
      ([[0.5, 0.25], [0.25, 0.5]], 5.25)
    """
    if not 1 <= planes <= 8:
        raise ValueError(f"`planes` must be in [1, 8], got {planes}.")
    total = _total(histogram)
    step = histogram.full_scale / 2**planes
    if rounded:
        values, weights, _ = sample(histogram)
        codes, first = _codes(values, step, planes).astype(np.int64), weights * values / step
    else:
        codes = np.arange(BINS) >> (8 - planes)
        weights, first = histogram.counts / total, histogram.sums / (step * total)
    gram_DxD, cross_D = gram_of_codes(
        np.bincount(codes, weights, minlength=2**planes),
        np.bincount(codes, first, minlength=2**planes),
    )
    mean, energy, _, _ = moments(histogram)
    return Gram(gram_DxD, cross_D, energy / step**2, mean / step, step)


def _codes(values, scale, bits):
    if not (scale > 0 and np.isfinite(scale)):
        raise ValueError(f"`scale` must be a finite number > 0, got {scale}.")
    if bits < 1:
        raise ValueError(f"`bits` must be at least 1, got {bits}.")
    return np.minimum(np.round(values / scale), 2**bits - 1)


def _total(histogram):
    if histogram.total == 0:
        raise ValueError("`histogram` must have seen an element, got an empty one.")
    return histogram.total
