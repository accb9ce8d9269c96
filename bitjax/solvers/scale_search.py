"""Finds the best scale of a uniform quantizer of |x| for every number of bits.

Plane selection is to be compared with this: rounding at the lowest kept plane and saturating at the
highest loses less than dropping planes of a finer code.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitjax.checks import ARRAY, SWITCH, checked, integer, number
from bitjax.solvers.base import Solution
from bitjax.solvers.checks import checked_sample
from bitjax.solvers.plane_selection import gram_of_codes, levels_increase, select_planes

MAX_BITS = 8
_COARSE = 400  # scales over four decades, 2.3 % apart
_FINE = 41
_ZOOMS = 3
_TABLE = {
    "values_M": ARRAY,
    "weights_M": ARRAY,
    "max_bits": integer(1, MAX_BITS),
    "refit": SWITCH,
}


class Scales(NamedTuple):
    """The best quantizer at each number of bits; row b - 1 is for b bits.

    Attributes:
        scale: distance of neighbouring levels before refitting, in units of x, [max_bits].
        coefs: the coefficient of each plane of the code, lowest first, in units of x; 0 past the
            bits, [max_bits, max_bits].
    """

    scale: NDArray[np.float64]
    coefs: NDArray[np.float64]


@checked(unit=number(0, above=True), **_TABLE)
def window_scales(
    values_M: ArrayLike,
    weights_M: ArrayLike,
    unit: float,
    *,
    max_bits: int = MAX_BITS,
    refit: bool = False,
) -> Solution:
    """Rounds and saturates a fine code to each number of bits, at the best power-of-two scale.

    q = clip(round(u / 2^j), 0, 2^k - 1) for u = |x| / unit, with the shift j in [0, 8] of least
    squared error for each k: the window of the planes j to j + k - 1.

    Args:
        values_M: values of |x|, rising, [M].
        weights_M: their shares of the elements, [M].
        unit: one step of the fine code, in units of x.
        max_bits: the largest k, at most 8.
        refit: whether the code's planes get least squares coefficients in place of powers of two;
            each shift is judged by them.

    Returns:
        `value`: `Scales`. `objective`: the squared error of the sample, [max_bits]. `stats`:
        `shifts`, int [max_bits]; `increasing`, whether a larger code has a larger level, bool
        [max_bits].

    Raises:
        ValueError: values do not rise, shapes differ, or an argument is out of its range.

    Example:
        >>> solution = window_scales(np.arange(16.0), np.full(16, 1 / 16), 1.0, max_bits=4)
        >>> solution.stats["shifts"].tolist(), float(solution.objective[3])
        ([3, 2, 1, 0], 0.0)
    """
    sums = _prefix_sums(values_M, weights_M, max_bits)
    scales = unit * 2.0 ** np.arange(MAX_BITS + 1)
    found = [_best(sums, scales, bits, refit) for bits in range(1, max_bits + 1)]
    solution = _solution(found, max_bits)
    shifts = np.round(np.log2(solution.value.scale / unit)).astype(np.int64)
    return solution._replace(stats={"shifts": shifts, **solution.stats})


@checked(**_TABLE)
def free_scales(
    values_M: ArrayLike, weights_M: ArrayLike, *, max_bits: int = MAX_BITS, refit: bool = False
) -> Solution:
    """The scale, any positive number, at which a uniform quantizer has the least squared error.

    The search tries 400 scales over four decades, then 41 scales about the best in three narrower
    rounds. The error has many shallow valleys over the scale; the one found is within 0.01 dB of
    the best.

    Args:
        values_M: values of |x|, rising, [M].
        weights_M: their shares of the elements, [M].
        max_bits: the largest number of bits, at most 8.
        refit: whether to replace powers of two by least squares coefficients afterwards, at the
            best of 41 scales near the one found.

    Returns:
        `value`: `Scales`. `objective`: the squared error of the sample, [max_bits]. `stats`:
        `increasing`, whether a larger code has a larger level, bool [max_bits].

    Raises:
        ValueError: values do not rise, shapes differ, or an argument is out of its range.

    Example:
        Three levels above zero, evenly spaced: two bits hold them without error.

        >>> solution = free_scales([0.0, 0.3, 0.6, 0.9], [0.25] * 4, max_bits=2)
        >>> round(float(solution.value.scale[1]), 3), float(solution.objective[1]) < 1e-8
        (0.3, True)
    """
    sums = _prefix_sums(values_M, weights_M, max_bits)
    found = []
    for bits in range(1, max_bits + 1):
        top = max(float(sums.values[-1]), np.finfo(np.float64).tiny)
        # From twice the scale that just holds the largest value, down.
        scales = 2 * top / (2**bits - 1) * np.geomspace(1, 1e-4, _COARSE)
        ratio = scales[0] / scales[1]
        best = _best(sums, scales, bits, False)
        for _ in range(_ZOOMS):
            scales = best[0] * np.geomspace(1 / ratio, ratio, _FINE)
            best = _best(sums, np.append(best[0], scales), bits, False)
            ratio **= 0.1
        if refit:
            best = _best(sums, best[0] * np.geomspace(0.8, 1.25, _FINE), bits, True)
        found.append(best)
    return _solution(found, max_bits)


class _Sums(NamedTuple):
    values: NDArray[np.float64]  # [M]
    mass: NDArray[np.float64]  # [M + 1]: of the first 0, 1, ... M values
    first: NDArray[np.float64]  # [M + 1]
    energy: float


def _prefix_sums(values_M, weights_M, max_bits):
    values, weights = checked_sample(values_M, weights_M)
    mass, first = (np.append(0.0, np.cumsum(w)) for w in (weights, weights * values))
    return _Sums(values, mass, first, float(weights @ values**2))


def _best(sums, scales_S, bits, refit):
    """`(scale, coefs [bits], error)` of the scale with the least error; the first of equals."""
    levels = np.arange(2**bits)
    # A code q holds the values from (q - 1/2) scale to (q + 1/2) scale, the last one all above.
    cuts = np.searchsorted(sums.values, scales_S[:, None] * (levels[1:] - 0.5))
    ends = np.pad(cuts, ((0, 0), (1, 1)), constant_values=(0, sums.values.size))
    mass, first = np.diff(sums.mass[ends]), np.diff(sums.first[ends])
    if not refit:
        error = (
            sums.energy - 2 * scales_S * (first @ levels) + scales_S**2 * (mass @ levels**2)
        )  # E u^2 - 2 E u u_hat + E u_hat^2
        s = int(error.argmin())
        return float(scales_S[s]), scales_S[s] * 2.0 ** np.arange(bits), max(float(error[s]), 0.0)
    grams, crosses = zip(*map(gram_of_codes, mass, first), strict=True)
    energies = np.full(len(scales_S), sums.energy)
    fitted = select_planes(np.stack(grams), np.stack(crosses), energies)
    s = int(fitted.objective[:, bits].argmin())
    return float(scales_S[s]), fitted.value.coefs[s, bits], float(fitted.objective[s, bits])


def _solution(found, max_bits):
    scale, coefs, error = zip(*found, strict=True)
    rows = np.stack([np.pad(row, (0, max_bits - len(row))) for row in coefs])
    stats = {"increasing": levels_increase(rows)}
    return Solution(Scales(np.array(scale), rows), np.array(error), stats)
