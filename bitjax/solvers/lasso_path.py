"""Chooses planes by a non-negative LASSO, as the paper does; kept for comparison.

Zhou et al., "Neural Network Activation Quantization with Bitwise Information Bottlenecks" (arXiv
2006.05210). `plane_selection.py` finds better planes, always.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitjax.checks import ARRAY, NONE, checked, either, integer, number
from bitjax.solvers.base import Solution
from bitjax.solvers.checks import check_finite
from bitjax.solvers.plane_selection import Planes

_DEAD = 1e-7
_STRENGTHS = 400  # 3 % apart
_REFINED = 50


@checked(
    gram_DxD=ARRAY,
    cross_D=ARRAY,
    strengths_L=ARRAY,
    tolerance=number(0, above=True),
    max_sweeps=integer(1),
)
def lasso(
    gram_DxD: ArrayLike,
    cross_D: ArrayLike,
    strengths_L: ArrayLike,
    *,
    tolerance: float = 1e-12,
    max_sweeps: int = 20_000,
) -> NDArray[np.float64]:
    r"""Non-negative LASSO by coordinate descent, for many strengths of the penalty at once.

    $$\min_{\alpha \ge 0} \tfrac{1}{2} E\,(u - \sum_i \alpha_i b_i)^2 + \lambda \sum_i \alpha_i$$

    alpha_i <- max(0, (c_i - sum_{j != i} G_ij alpha_j - lambda) / G_ii), over and over.

    Args:
        gram_DxD: E b_i b_j, or covariances for a fit with an intercept.
        cross_D: E b_i u, or covariances.
        strengths_L: the lambdas, >= 0, [L].
        tolerance: sweeps end when no coefficient moves by more than this share of the largest.
        max_sweeps: largest number of sweeps.

    Returns:
        The coefficients, float64 [L, D].

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> lasso([[1.0, 0.0], [0.0, 1.0]], [3.0, 1.0], [0.0, 2.0]).tolist()
        [[3.0, 1.0], [1.0, 0.0]]

    Source: scikit-learn's `Lasso(positive=True)`, which the authors call; the same minimum.
    """
    gram, cross = _checked(gram_DxD, cross_D)
    strengths = np.asarray(strengths_L, np.float64)
    if strengths.ndim != 1:
        raise ValueError(f"`strengths_L` must have shape [L], got {strengths.shape}.")
    check_finite(strengths_L=strengths)
    alive = np.flatnonzero(np.diagonal(gram) >= _DEAD)
    # Planes first, so that a coordinate's row is contiguous.
    alpha = np.zeros((cross.size, strengths.size))
    for _ in range(max_sweeps):
        moved = 0.0
        for i in alive:
            rest = cross[i] - gram[i] @ alpha + gram[i, i] * alpha[i]
            new = np.maximum(0.0, (rest - strengths) / gram[i, i])
            moved = max(moved, np.abs(new - alpha[i]).max(initial=0.0))
            alpha[i] = new
        if moved <= tolerance * alpha.max(initial=0.0):
            break
    return alpha.T


@checked(gram_DxD=ARRAY, cross_D=ARRAY, energy=number(0), mean=either(NONE, number()))
def lasso_path(
    gram_DxD: ArrayLike,
    cross_D: ArrayLike,
    energy: float,
    *,
    mean: float | None = None,
) -> Solution:
    """The paper's planes and coefficients at every rate: the weakest penalty that keeps k planes.

    From the strength that keeps none, lambda falls until a (k + 1)-th plane comes in; the last fit
    before is taken, shrunk coefficients and all.

    Args:
        gram_DxD: E b_i b_j, [D, D]; its diagonal is E b_i, because planes are 0 or 1.
        cross_D: E b_i u, [D].
        energy: E u^2.
        mean: E u, for a fit with an intercept that is dropped when u is reconstructed, as in the
            authors' code; None for a fit without one.

    Returns:
        `value`: `Planes`; if two planes come in at once, or the path ends, a row repeats the rate
        below. `objective`: the squared error, intercept dropped, float64 [D + 1]. `stats`:
        `strengths`, the lambdas, [D + 1]; inf for no plane.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> solution = lasso_path([[1.0, 0.0], [0.0, 1.0]], [3.0, 1.0], 10.0)
        >>> solution.value.coefs[1].round(1).tolist(), solution.objective.round(2).tolist()
        ([2.0, 0.0], [10.0, 2.01, 0.0])

    Source: the authors' `calculate_alpha_coefficient.py`, which steps lambda by 0.1, 0.01 and 0.001
        for one rate; here it falls geometrically to 1e-5 of its largest, for all rates.
    """
    gram, cross = _checked(gram_DxD, cross_D)
    D = cross.size
    fit_gram, fit_cross = gram, cross
    if mean is not None:
        means = np.diagonal(gram)
        fit_gram, fit_cross = gram - np.outer(means, means), cross - means * mean
    top = max(float(fit_cross.max()), np.finfo(np.float64).tiny)
    strengths = top * np.geomspace(1.0, 1e-5, _STRENGTHS)
    alpha = lasso(fit_gram, fit_cross, strengths)

    coefs, found = np.zeros((D + 1, D)), np.full(D + 1, np.inf)
    for k in range(1, D + 1):
        last = _last(alpha, k)
        coefs[k], found[k] = alpha[last], strengths[last]
        if last + 1 < len(strengths):
            # Between the last strength that keeps k planes and the first that keeps more.
            between = np.geomspace(strengths[last], strengths[last + 1], _REFINED)
            fits = lasso(fit_gram, fit_cross, between)
            last = _last(fits, k)
            coefs[k], found[k] = fits[last], between[last]
    errors = energy - 2 * coefs @ cross + np.einsum("ki,ij,kj->k", coefs, gram, coefs)
    return Solution(Planes(coefs > 0, coefs), np.maximum(errors, 0.0), {"strengths": found})


def _checked(gram_DxD: ArrayLike, cross_D: ArrayLike) -> tuple[NDArray, NDArray]:
    gram, cross = np.asarray(gram_DxD, np.float64), np.asarray(cross_D, np.float64)
    if cross.ndim != 1 or cross.size == 0 or gram.shape != (cross.size, cross.size):
        raise ValueError(
            "`gram_DxD` and `cross_D` must have shapes [D, D] and [D], D at least 1, got "
            f"{gram.shape} and {cross.shape}."
        )
    check_finite(gram_DxD=gram, cross_D=cross)
    return gram, cross


def _last(alpha_LxD, k):
    """The last fit before the first one that keeps more than k planes."""
    over = np.flatnonzero((alpha_LxD > 0).sum(axis=1) > k)
    return max(0, int(over[0]) - 1) if over.size else len(alpha_LxD) - 1
