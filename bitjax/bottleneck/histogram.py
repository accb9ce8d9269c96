"""A histogram of |x| at a site, to which batches are added one by one.

It replaces the data wherever only |x| matters: any uniform quantizer, any choice of bit-planes and
any set of levels can be judged from it afterwards (`measures.py`), without another pass.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from bitjax.bottleneck.counts import BIN_BITS, BINS, LOWEST, PARTS, Counts, count


class Histogram(NamedTuple):
    """256 bins of |x| between 0 and a full scale that is a power of two."""

    exponent: int  # the full scale is 2**exponent
    counts: NDArray[np.int64]  # elements, int64 [256]
    offsets: NDArray[np.float64]  # the sum of |x| - lower edge, float64 [256]
    squares: NDArray[np.float64]  # the sum of (|x| - lower edge)^2, float64 [256]
    zeros: int  # elements that are 0; they are in the first bin too
    full: int  # elements at the full scale; they are in the last bin too, until it grows
    negatives: int  # elements below 0
    low: float  # the least element, sign included; inf before the first
    high: float  # the greatest element; -inf before the first

    # A bin holds its lower edge but not its upper one; the last bin holds the full scale too. Sums
    # are of places inside the bin, in units of x. They are whole multiples of 1/256 of the
    # narrowest bin ever used, and of its square, so adding them in float64 is exact up to 2**53.

    @property
    def full_scale(self) -> float:
        """The upper edge of the last bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self.exponent - BIN_BITS)

    @property
    def total(self) -> int:
        """Elements in all."""
        return int(self.counts.sum())

    @property
    def edges(self) -> NDArray[np.float64]:
        """The lower edge of every bin, [256]."""
        return self.width * np.arange(BINS, dtype=np.float64)

    @property
    def sums(self) -> NDArray[np.float64]:
        """The sum of |x| over every bin, [256]."""
        return self.edges * self.counts + self.offsets

    @property
    def energies(self) -> NDArray[np.float64]:
        """The sum of x^2 over every bin, [256]."""
        return self.edges * (self.edges * self.counts + 2 * self.offsets) + self.squares


def gather(counts: Counts) -> Histogram:
    """The histogram of a batch's counts; a ValueError if the batch held NaN or inf."""
    low, high = float(counts.low), float(counts.high)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"`x` must be finite, got values from {low} to {high}: bitjax.frameworks.finite."
            "first_nonfinite names the first tensor of a model that is not."
        )
    exponent = int(counts.exponent)
    parts = np.asarray(counts.parts).astype(np.int64)
    part = np.arange(PARTS + 1)
    sums, squares = ((parts @ power).astype(np.float64) for power in (part, part**2))
    unit = math.ldexp(1.0, exponent - BIN_BITS) / PARTS
    return Histogram(
        exponent,
        parts.sum(axis=1),
        unit * sums,
        unit**2 * squares,
        int(counts.zeros),
        int(counts.full),
        int(counts.negatives),
        low,
        high,
    )


def empty() -> Histogram:
    """A histogram of nothing, which changes no other that it is merged with."""
    nothing = np.zeros(BINS)
    return Histogram(
        LOWEST, np.zeros(BINS, np.int64), nothing, nothing, 0, 0, 0, math.inf, -math.inf
    )


def observe(histogram: Histogram, x: jax.Array, *, stride: int = 1) -> Histogram:
    """The histogram with a batch added; its full scale doubles as often as the batch asks for."""
    if jnp.size(x) == 0:
        raise ValueError(f"`x` must have an element, got shape {jnp.shape(x)}.")
    if stride < 1:
        raise ValueError(f"`stride` must be at least 1, got {stride}.")
    return merge(histogram, gather(count(x, histogram.exponent, stride=stride)))


def merge(one: Histogram, other: Histogram) -> Histogram:
    """The histogram of all that two have seen, at the larger full scale; exact, in any order."""
    exponent = max(one.exponent, other.exponent)
    a, b = _widen(one, exponent), _widen(other, exponent)
    return Histogram(
        exponent,
        a.counts + b.counts,
        a.offsets + b.offsets,
        a.squares + b.squares,
        a.zeros + b.zeros,
        a.full + b.full,
        a.negatives + b.negatives,
        min(a.low, b.low),
        max(a.high, b.high),
    )


def _widen(histogram, exponent):
    """The same at a larger full scale: pairs of bins are added, as often as it doubles."""
    doublings = min(exponent - histogram.exponent, BIN_BITS + 1)
    if doublings == 0:
        return histogram
    # Elements at the full scale move to the lower edge of a further bin, where they would have been
    # counted at a larger full scale.
    bins, last = np.arange(BINS + 1), BINS - 1
    counts, offsets, squares = (
        np.append(values, 0) for values in (histogram.counts, histogram.offsets, histogram.squares)
    )
    counts[last] -= histogram.full
    counts[BINS] = histogram.full
    offsets[last] -= histogram.full * histogram.width
    squares[last] -= histogram.full * histogram.width**2
    wider = bins >> doublings
    # How far the old lower edge is above the new one. (a + o)^2 = a^2 + 2 a o + o^2.
    above = histogram.width * (bins - (wider << doublings))
    squares = squares + above * (2 * offsets + above * counts)
    offsets = offsets + above * counts

    def add(values):
        return np.bincount(wider, values, minlength=BINS)

    return histogram._replace(
        exponent=exponent,
        counts=add(counts).astype(np.int64),  # Exact in float64 up to 2**53.
        offsets=add(offsets),
        squares=add(squares),
        full=0,
    )
