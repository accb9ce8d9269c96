"""How the values of a site are spread: a histogram of |x| that batches are added to, one by one.

It stands in for the data wherever only |x| counts: any uniform quantizer, any choice of bit-planes
and any set of levels is judged from it afterwards (`measures.py`), without another pass.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from bitjax.bottleneck.counts import BIN_BITS, BINS, LOWEST, PARTS, Counts, count


class Histogram(NamedTuple):
    """256 bins of |x| between 0 and a full scale that is a power of two.

    A bin holds its lower edge but not its upper one; the last holds the full scale too. Sums are
    of places inside the bin, in units of x. They are whole multiples of 1/256 of the narrowest bin
    ever used, and of its square, so that adding them in float64 is exact: up to 2**53 of those.

    Attributes:
      exponent: the full scale is 2**exponent.
      counts: elements, int64 [256].
      offsets: the sum of |x| - lower edge, float64 [256].
      squares: the sum of its square, float64 [256].
      zeros: how many elements are 0; they are in the first bin too.
      full: how many are at the full scale; they are in the last bin too, until it grows.
      negatives: how many are below 0.
      low: the least element, sign included; inf before the first.
      high: the greatest; -inf before the first.
    """

    exponent: int
    counts: NDArray[np.int64]
    offsets: NDArray[np.float64]
    squares: NDArray[np.float64]
    zeros: int
    full: int
    negatives: int
    low: float
    high: float

    @property
    def full_scale(self) -> float:
        """The upper edge of the last bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def width(self) -> float:
        """Of a bin."""
        return math.ldexp(1.0, self.exponent - BIN_BITS)

    @property
    def total(self) -> int:
        """Elements in all."""
        return int(self.counts.sum())

    @property
    def signed(self) -> bool:
        """Whether any element is below 0."""
        return self.negatives > 0

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
    """The histogram of what the device counted.

    Raises:
      ValueError: the batch held NaN or inf.

    Example:
      >>> gather(count(jnp.array([0.0, 0.5, 1.0]))).full_scale
      1.0
    """
    low, high = float(counts.low), float(counts.high)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"`x` must be finite, got values from {low} to {high}: bitjax.linen.finite."
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
    """A histogram of nothing, which changes no other that it is merged with.

    Example:
      >>> empty().total
      0
    """
    nothing = np.zeros(BINS)
    return Histogram(
        LOWEST, np.zeros(BINS, np.int64), nothing, nothing, 0, 0, 0, math.inf, -math.inf
    )


def observe(histogram: Histogram, x: jax.Array, *, stride: int = 1) -> Histogram:
    """The histogram with a batch added; its full scale doubles as often as the batch asks for.

    Args:
      histogram: so far; `empty()` at first.
      x: any shape, at least one element.
      stride: as for `count`.

    Raises:
      ValueError: x has no element, or holds NaN or inf.

    Example:
      >>> seen = observe(empty(), jnp.array([-1.0, 0.5]))
      >>> seen = observe(seen, jnp.array([3.0]))
      >>> seen.full_scale, seen.total, seen.low, seen.high
      (4.0, 3, -1.0, 3.0)
    """
    if jnp.size(x) == 0:
        raise ValueError(f"`x` must have an element, got shape {jnp.shape(x)}.")
    if stride < 1:
        raise ValueError(f"`stride` must be at least 1, got {stride}.")
    return merge(histogram, gather(count(x, histogram.exponent, stride=stride)))


def merge(one: Histogram, other: Histogram) -> Histogram:
    """The histogram of all that two have seen, at the larger full scale; exact, in any order.

    Example:
      >>> one, other = (observe(empty(), jnp.array([value])) for value in (1.0, 8.0))
      >>> merge(one, other).counts.nonzero()[0].tolist()
      [32, 255]
    """
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
    # What was at the full scale has a bin of its own: there it is at the lower edge, as it would be
    # had the full scale been larger from the start.
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
