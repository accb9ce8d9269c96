"""Measures from a histogram of |x| alone: moments, any quantizer's error and entropy."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitjax.bottleneck.counts import BINS
from bitjax.bottleneck.histogram import Histogram
from bitjax.solvers.plane_selection import gram_of_codes


class Sample(NamedTuple):
    """A weighted sample with a histogram's count, sum and sum of squares in every bin."""

    values: NDArray[np.float64]  # values of |x|, rising, float64 [points]
    weights: NDArray[np.float64]  # their shares, float64 [points]; they sum to 1
    # E (|x| - value)^2; the amount by which a quantizer's error on x exceeds that on the sample
    within: float


class Moments(NamedTuple):
    """The first two moments of |x|, and the shares of elements that are 0 and below 0."""

    mean: float
    energy: float
    zeros: float
    negatives: float


class Gram(NamedTuple):
    """The Gram matrix of a code's planes, lowest first, in units of the code's step."""

    gram_DxD: NDArray[np.float64]  # E b_i b_j; its diagonal says how often a plane is 1
    cross_D: NDArray[np.float64]  # E b_i u
    energy: float  # E u^2
    mean: float  # E u
    step: float  # one unit, in units of x


def moments(histogram: Histogram) -> Moments:
    """The first two moments of |x|, and the shares of elements that are 0 and below 0."""
    total = _total(histogram)
    return Moments(
        float(histogram.sums.sum() / total),
        float(histogram.energies.sum() / total),
        histogram.zeros / total,
        histogram.negatives / total,
    )


def sample(histogram: Histogram, per_bin: int = 8) -> Sample:
    """A sample that stands in for the data: exact zeros, then `per_bin` points to a bin."""
    # The points of a bin spread evenly, as widely as its variance asks and its edges allow. Moments
    # are exact, so a quantizer's error is too, except for points in the same bin as a threshold:
    # all of a point lies on one side of it. It is exact where thresholds are edges of bins.
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


def grid_distortion(histogram: Histogram, scale: float, bits: int) -> float:
    """Mean squared error of scale * clip(round(|x| / scale), 0, 2^bits - 1), signs kept apart."""
    values, weights, within = sample(histogram)
    error = values - scale * _codes(values, scale, bits)
    return float(weights @ error**2) + within


def grid_entropy(histogram: Histogram, scale: float, bits: int) -> float:
    """Entropy of the codes of `grid_distortion`'s quantizer, in bits per element without signs."""
    values, weights, _ = sample(histogram)
    p = np.bincount(_codes(values, scale, bits).astype(np.int64), weights)
    p = p[p > 0]
    return float(max(0.0, -(p @ np.log2(p))))


def gram(histogram: Histogram, planes: int = 8, *, rounded: bool = False) -> Gram:
    """The Gram matrix of a code's binary planes, all that plane selection reads."""
    # The code is floor(|x| / step), clipped to 2^planes - 1, for which everything is exact. With
    # `rounded` it is the nearest code, whose thresholds are in the middle of bins where `planes` is
    # 8, see `sample`.
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
