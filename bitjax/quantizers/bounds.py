"""Limits of rate-distortion theory: the least distortion that any code of a given rate can have.

Shannon, "Coding theorems for a discrete source with a fidelity criterion", 1959; Berger, "Rate
Distortion Theory", 1971. float are bits per element, sources are memoryless, entropies are in bits.
Where a rate is asked for, an array of rates does as well.
A scalar quantizer of fixed length cannot reach them: levels of Lloyd and Max are the nearer aim.
"""

import math

_GAUSS = 2 * math.pi * math.e  # 2^(2 h) of a Gaussian is this times its variance


def shannon_bound(rate: float, entropy: float) -> float:
    """Shannon's lower bound on the mean squared error of any source that has a density.

    D(R) >= 2^(2 (h - R)) / (2 pi e), with equality for a Gaussian, and for all in the limit of high
    rates.
    """
    return 2.0 ** (2 * (entropy - rate)) / _GAUSS


def gaussian_bound(rate: float, variance: float = 1.0) -> float:
    """Gaussian: D(R) = sigma^2 2^(-2 R), the bound itself and not below it."""
    return variance * 2.0 ** (-2 * rate)


def laplacian_bound(rate: float, variance: float = 1.0) -> float:
    """Laplacian: D(R) >= (e / pi) sigma^2 2^(-2 R), of h = log2(2 e b), sigma^2 = 2 b^2."""
    return math.e / math.pi * variance * 2.0 ** (-2 * rate)


def half_normal_bound(rate: float, energy: float = 1.0) -> float:
    """Half-normal, |x| of a Gaussian x: D(R) >= (sigma^2 / 4) 2^(-2 R), a bit less than Gaussian.

    Of h = log2(pi e sigma^2 / 2) / 2. The bit is the sign's.
    """
    return energy / 4 * 2.0 ** (-2 * rate)


def exponential_bound(rate: float, energy: float = 1.0) -> float:
    """Exponential of mean b, |x| of a Laplacian x: D(R) >= (e / 2 pi) b^2 2^(-2 R).

    Of h = log2(e b).
    """
    return math.e / (4 * math.pi) * energy * 2.0 ** (-2 * rate)


def mixed_limit(rate: float, zeros: float, entropy: float) -> float:
    """A source that is 0 with some probability, as behind a ReLU: what D(R) tends to at high rates.

    R = h_b(p0) + (1 - p0) [h - log2(2 pi e D / (1 - p0)) / 2], solved for D: which elements are 0
    is told without error, and the rest of the rate goes to those that are not.

    It is no bound: at low rates it pays not to tell all zeros, and D(R) is less. With a half-normal
    rest and p0 = 1/2 that is 2.9 dB at 2 bits and 1.4 dB at 3.

    Source: H. Rosenthal and J. Binia, "On the epsilon entropy of mixed random variables", IEEE
      Trans. IT 34(5), 1988.
    """
    if not 0 <= zeros < 1:
        raise ValueError(f"`zeros` must be in [0, 1), got {zeros}.")
    rest = 1 - zeros
    told = -sum(p * math.log2(p) for p in (zeros, rest) if p > 0)
    return rest * shannon_bound((rate - told) / rest, entropy)
