"""Finds the best levels for |x|, 0 among them: the yardstick of quantizers with as many levels."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitjax.checks import ARRAY, checked, integer
from bitjax.solvers.base import Solution
from bitjax.solvers.checks import checked_sample

MAX_LEVELS = 256


@checked(values_M=ARRAY, weights_M=ARRAY, num_levels=integer(1, MAX_LEVELS))
def lloyd_max(values_M: ArrayLike, weights_M: ArrayLike, num_levels: int) -> Solution:
    r"""The levels, 0 and at most `num_levels - 1` others, that make the squared error least.

    $$\min_{0 = l_0 < l_1 < \ldots} \sum_m w_m \min_j (v_m - l_j)^2$$

    The cells of the best levels are runs of neighbouring values, so the last cell of the best
    quantizer of n levels leaves the best one of n - 1 to the values below it: dynamic programming,
    O(num_levels M^2), finds the global minimum. 64 levels take 4 ms for 257 values and 0.4 s for
    2049.

    Args:
        values_M: values of |x|, rising, [M].
        weights_M: their shares of the elements, [M].
        num_levels: number of levels, in [1, 256].

    Returns:
        `value`: the levels, rising, float64 [at most num_levels]. `objective`: the squared error of
        the sample. `stats`: `by_levels`, the least error with 1, 2, ... levels, float64
        [num_levels].

    Raises:
        ValueError: values do not rise, shapes differ, or `num_levels` is out of its range.

    Example:
        >>> solution = lloyd_max([0.1, 1.0, 2.0, 7.0], [0.25] * 4, 3)
        >>> solution.value.tolist()
        [0.0, 1.5, 7.0]

    Source: J. Max, "Quantizing for minimum distortion", IRE Trans. IT 6(1), 1960, and S. P. Lloyd,
        IEEE Trans. IT 28(2), 1982, whose iterations may stop at a local minimum; J. D. Bruce, MIT
        RLE report 429, 1965, for the programme. Here the lowest level is held at 0, so that zero
        stays zero.
    """
    values, weights = checked_sample(values_M, weights_M)
    some = weights > 0
    values, weights = values[some], weights[some]
    mass, first, second = (
        np.append(0.0, np.cumsum(w)) for w in (weights, weights * values, weights * values**2)
    )
    cost_MxM = _cell_costs(mass, first, second)
    least = second.copy()  # of the first m values, with the level 0 alone
    by_levels, starts = [least[-1]], []
    for _ in range(1, num_levels):
        # A last cell may be empty: more levels are never worse. Rows are its end, so that the
        # minimum runs along memory.
        total = least + cost_MxM
        start = total.argmin(axis=1)
        least = np.take_along_axis(total, start[:, None], axis=1)[:, 0]
        starts.append(start)
        by_levels.append(least[-1])

    levels, end = [], values.size
    for start in reversed(starts):
        begin = int(start[end])
        if begin < end:
            levels.append((first[end] - first[begin]) / (mass[end] - mass[begin]))
        end = begin
    value = np.array([0.0, *(level for level in reversed(levels) if level > 0)])
    return Solution(value, float(by_levels[-1]), {"by_levels": np.array(by_levels)})


def _cell_costs(mass, first, second) -> NDArray[np.float64]:
    """The squared error of values begin..end about their mean, [end, begin]; inf if reversed."""
    weight = mass[:, None] - mass
    moment, energy = first[:, None] - first, second[:, None] - second
    cost = energy - moment**2 / np.where(weight > 0, weight, 1.0)
    return np.where(weight >= 0, np.maximum(cost, 0.0), np.inf)
