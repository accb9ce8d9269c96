"""The best k of D bit-planes, with real coefficients, for every k: exact, by trying every subset.

It takes the place of the LASSO of Zhou et al., "Neural Network Activation Quantization with Bitwise
Information Bottlenecks" (arXiv 2006.05210), whose path need not visit the best subset.
"""

from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitjax.checks import ARRAY, SWITCH, checked
from bitjax.solvers.base import Solution

MAX_PLANES = 8
_DEAD = 1e-7  # a plane that is 1 less often is not worth a bit
# Relative to the planes' own energies. With it, planes that are equal in all elements (of a
# constant, say) share their coefficient where solving would fail; the error is of the same order.
_RIDGE = 1e-12
_ROUNDING = 1e-13


class Planes(NamedTuple):
    """The planes that are kept at each rate, and their coefficients; axes of sites come first.

    Attributes:
        mask: bool [..., D + 1, D]; row k has at most k planes, the last column is the highest.
        coefs: float64 of the same shape, in the unit of the Gram matrix; 0 where not kept.
    """

    mask: NDArray[np.bool_]
    coefs: NDArray[np.float64]


@checked(gram_DxD=ARRAY, cross_D=ARRAY, energy=ARRAY, increasing=SWITCH)
def select_planes(
    gram_DxD: ArrayLike, cross_D: ArrayLike, energy: ArrayLike, *, increasing: bool = False
) -> Solution:
    r"""Takes the planes, and coefficients >= 0, that make the squared error least, for every rate.

    $$D(k) = \min_{\alpha \ge 0} E\,(u - \sum_i \alpha_i b_i)^2
    \quad\text{subject to}\quad \|\alpha\|_0 \le k$$

    Each subset S of planes is solved by least squares, alpha_S = G_SS^-1 c_S, and left out if a
    coefficient is negative. That is exact for *at most* k planes, because the best non-negative
    coefficients of S are the least squares coefficients of the planes that they do not set to 0.
    Planes that are 1 in fewer than 1e-7 of the elements are left out. All arrays may have leading
    axes for sites; 50 sites of 8 planes take 4 ms.

    Args:
        gram_DxD: E b_i b_j, [..., D, D]; D at most 8.
        cross_D: E b_i u, [..., D].
        energy: E u^2, [...].
        increasing: whether to leave out subsets in which a larger code has a lower level too, see
            `levels_increase`. Without them, encoding u by its planes is encoding it by levels.

    Returns:
        `value`: `Planes`. `objective`: D(k), float64 [..., D + 1], never rising. `stats`:
        `increasing`, whether the levels increase, bool [..., D + 1]; `dead`, bool [..., D].

    Raises:
        ValueError: the shapes do not fit, D is not in [1, 8], or a value is not finite.

    Example:
        u = b_0 + 2 b_1, of which b_0 is always 1 and b_1 every other time. The best single plane
        is b_1 at 3, which leaves an error of 1 every other time.

        >>> gram, cross = np.array([[1.0, 0.5], [0.5, 0.5]]), np.array([2.0, 1.5])
        >>> solution = select_planes(gram, cross, 5.0)
        >>> solution.objective.tolist()
        [5.0, 0.5, 0.0]
        >>> solution.value.coefs[2].tolist()
        [1.0, 2.0]

    Source: equation (LASSO) of the paper with its own constraint on the number of planes in place
        of the penalty.
    """
    gram, cross, energies = _checked(gram_DxD, cross_D, energy)
    sites, D = cross.shape
    probability = np.diagonal(gram, axis1=1, axis2=2)
    dead = probability < _DEAD
    # With planes of unit energy, a rare plane is solved for as accurately as a common one.
    unit = np.where(dead, 1.0, 1 / np.sqrt(np.where(dead, 1.0, probability)))
    gram = gram * unit[:, :, None] * unit[:, None, :]
    cross = cross * unit

    best = np.repeat(energies[:, None], D + 1, axis=1)
    coefs = np.zeros((sites, D + 1, D))
    every = np.arange(sites)
    for k in range(1, D + 1):
        subsets_NxK = np.array(list(combinations(range(D), k)))
        alpha, error = _least_squares(gram, cross, energies, dead, subsets_NxK)
        alpha = alpha * unit[:, subsets_NxK]
        if increasing:
            error = np.where(levels_increase(alpha), error, np.inf)
        n = error.argmin(axis=1)
        # One plane more must be worth more than rounding.
        better = error[every, n] < best[:, k - 1] - _ROUNDING * energies
        best[:, k] = np.where(better, error[every, n], best[:, k - 1])
        spread = np.zeros((sites, D))
        np.put_along_axis(spread, subsets_NxK[n], alpha[every, n], axis=1)
        coefs[:, k] = np.where(better[:, None], spread, coefs[:, k - 1])

    def sites_as_given(values):
        return values.reshape(*np.shape(energy), *values.shape[1:])

    coefs = sites_as_given(coefs)
    stats = {"increasing": levels_increase(coefs), "dead": sites_as_given(dead)}
    return Solution(Planes(coefs > 0, coefs), sites_as_given(best), stats)


def gram_of_codes(mass_C: ArrayLike, first_C: ArrayLike) -> tuple[NDArray, NDArray]:
    """Gram matrix of a code's planes and their products with u, from sums over each code."""
    # G = sum_q mass_q b(q) b(q)^T, c = sum_q first_q b(q), with b_i(q) the bit i of the code q,
    # lowest first. `mass_C` is the share of the elements with each code, `first_C` E u restricted
    # to them.
    mass, first = np.asarray(mass_C, np.float64), np.asarray(first_C, np.float64)
    planes = (mass.size - 1).bit_length()
    if mass.ndim != 1 or mass.size != 2**planes or planes < 1 or first.shape != mass.shape:
        raise ValueError(
            "`mass_C` and `first_C` must have one axis of 2**D codes, got shapes "
            f"{mass.shape} and {first.shape}."
        )
    bits_CxD = ((np.arange(mass.size)[:, None] >> np.arange(planes)) & 1).astype(np.float64)
    return bits_CxD.T @ (mass[:, None] * bits_CxD), bits_CxD.T @ first


@checked(coefs=ARRAY)
def levels_increase(coefs: ArrayLike) -> NDArray[np.bool_]:
    """Whether a larger code always stands for a larger level: super-increasing coefficients.

    Every coefficient that is kept must exceed the sum of the kept ones below it. Where it does not,
    reconstruction is not monotone in x, and x must be encoded to the nearest level instead.

    Args:
        coefs: [..., D], the lowest plane first; 0 where a plane is not kept.

    Returns:
        bool [...].

    Example:
        >>> levels_increase([[1.0, 0.0, 1.5], [1.0, 2.0, 2.5]]).tolist()
        [True, False]
    """
    coefs = np.asarray(coefs, np.float64)
    below = np.cumsum(coefs, axis=-1) - coefs
    return ((coefs > below) | (coefs == 0)).all(axis=-1)


def _least_squares(gram, cross, energies, dead, subsets_NxK):
    """Coefficients [sites, N, K] and errors [sites, N]; inf for a subset that is left out."""
    K = subsets_NxK.shape[1]
    gram_S = gram[:, subsets_NxK[:, :, None], subsets_NxK[:, None, :]]
    cross_S = cross[:, subsets_NxK]
    alive = np.logical_not(dead[:, subsets_NxK].any(axis=2))
    gram_S = np.where(alive[..., None, None], gram_S, np.eye(K))
    alpha = np.linalg.solve(gram_S + _RIDGE * np.eye(K), cross_S[..., None])[..., 0]
    # Not c^T alpha, which is right only at the minimum.
    fitted = np.einsum("sni,snij,snj->sn", alpha, gram_S, alpha)
    error = energies[:, None] - 2 * np.einsum("sni,sni->sn", alpha, cross_S) + fitted
    allowed = alive & (alpha >= 0).all(axis=2)
    return alpha, np.where(allowed, np.maximum(error, 0.0), np.inf)


def _checked(gram_DxD, cross_D, energy):
    """The three with one leading axis, float64."""
    gram, cross, energies = (np.asarray(a, np.float64) for a in (gram_DxD, cross_D, energy))
    if cross.ndim < 1 or gram.shape != (*cross.shape, cross.shape[-1]):
        raise ValueError(
            "`gram_DxD` and `cross_D` must have shapes [..., D, D] and [..., D], got "
            f"{gram.shape} and {cross.shape}."
        )
    if energies.shape != cross.shape[:-1]:
        raise ValueError(
            f"`energy` must have the shape {cross.shape[:-1]} of the sites, got {energies.shape}."
        )
    D = cross.shape[-1]
    if not 1 <= D <= MAX_PLANES:
        raise ValueError(f"`cross_D` must have 1 to {MAX_PLANES} planes, got {D}.")
    if not all(np.isfinite(a).all() for a in (gram, cross, energies)):
        raise ValueError("`gram_DxD`, `cross_D` and `energy` must be finite, got NaN or inf.")
    if not (energies >= 0).all():
        raise ValueError(f"`energy` must be at least 0, got {energies.min()}.")
    return gram.reshape(-1, D, D), cross.reshape(-1, D), energies.reshape(-1)
