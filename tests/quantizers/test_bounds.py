"""Bounds against known decibels, and against quantizers, which must not beat them."""

import math

import numpy as np
import pytest

from bitjax.quantizers import bounds


def decibel(ratio):
    return 10 * np.log10(ratio)


RATES = np.arange(2, 7)


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (bounds.gaussian_bound, 6.0206 * RATES),
        (bounds.laplacian_bound, 6.0206 * RATES + 0.629),
        # The last column of the table in tests/test_bottleneck_targets.py.
        (bounds.half_normal_bound, [18.06, 24.08, 30.10, 36.12, 42.14]),
        (bounds.exponential_bound, [18.69, 24.71, 30.73, 36.75, 42.77]),
    ],
)
def test_bounds_are_the_decibels_of_the_table(bound, expected):
    np.testing.assert_allclose(decibel(1 / bound(RATES)), expected, atol=0.006)
    assert bound(3.0, 7.0) == pytest.approx(7 * bound(3.0))


@pytest.mark.parametrize(
    ("bound", "density", "low"),
    [
        (bounds.gaussian_bound, lambda x: np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), -40),
        (bounds.laplacian_bound, lambda x: np.exp(-np.abs(x)) / 2, -40),
        (bounds.half_normal_bound, lambda x: np.exp(-(x**2) / 2) * math.sqrt(2 / math.pi), 0),
        (bounds.exponential_bound, lambda x: np.exp(-x), 0),
    ],
)
def test_each_is_shannons_bound_of_its_entropy(bound, density, low):
    """The entropy and the energy by numerical integration of the density."""
    x, width = np.linspace(low, 40, 1_000_001, retstep=True)
    x = x[:-1] + width / 2
    p = density(x)
    entropy = -np.sum(p * np.log2(p + 1e-300)) * width
    energy = np.sum(p * x**2) * width
    assert bound(2.5, energy) == pytest.approx(bounds.shannon_bound(2.5, entropy), rel=1e-6)


def least_rate(levels, weights, slope, rounds=400):
    """Blahut and Arimoto: a point `(rate, distortion)` of R(D) of a discrete source."""
    error = (levels[:, None] - levels) ** 2
    kernel = np.exp2(-slope * error)
    q = weights.copy()
    for _ in range(rounds):
        q = q * ((weights / (kernel @ q)) @ kernel)
    joint = weights[:, None] * kernel * q / (kernel @ q)[:, None]
    marginal = joint.sum(axis=0)
    product = weights[:, None] * marginal
    some = joint > 1e-300
    rate = np.sum(joint[some] * np.log2(joint[some] / product[some]))
    return rate, np.sum(joint * error)


def test_a_rate_found_by_blahut_and_arimotos_iteration_is_just_above_the_bound():
    """Specification, 5.8: 17.78 and 23.95 dB for a half-normal at 2 and 3 bits."""
    x = (np.arange(600) + 0.5) * 0.01
    weights = np.exp(-(x**2) / 2)
    weights /= weights.sum()
    energy = weights @ x**2
    for slope, bits, expected in ((42.0, 2, 17.78), (175.0, 3, 23.95)):
        rate, error = least_rate(x, weights, slope)
        assert rate == pytest.approx(bits, abs=0.05)
        gap = decibel(error / bounds.half_normal_bound(rate, energy))
        assert gap == pytest.approx(6.0206 * (bits + 1) - expected, abs=0.03)


def test_a_half_of_zeros_needs_a_bit_and_gives_its_own():
    """At p0 = 1/2 one bit says which are 0; the others have the rest, 2 (R - 1) bits each."""
    entropy = 0.5 * math.log2(math.pi * math.e / 2)
    for rate in (2.0, 3.0, 4.0):
        expected = 0.5 * bounds.half_normal_bound(2 * (rate - 1))
        assert bounds.mixed_limit(rate, 0.5, entropy) == pytest.approx(expected)
    assert bounds.mixed_limit(2.0, 0.0, entropy) == pytest.approx(bounds.half_normal_bound(2.0))


def test_a_mixed_source_does_better_than_its_limit_at_low_rates_and_tends_to_it():
    """Specification, 5.8: 21.0 and 31.5 dB at 2 and 3 bits by Blahut and Arimoto's iteration."""
    entropy = 0.5 * math.log2(math.pi * math.e / 2)
    found = [decibel(0.5 / bounds.mixed_limit(rate, 0.5, entropy)) for rate in (2.0, 3.0)]
    gaps = np.array([21.0, 31.5]) - found
    assert 3 > gaps[0] > gaps[1] > 0


def test_a_source_that_is_always_zero_is_an_error():
    with pytest.raises(ValueError, match=r"`zeros` must be in \[0, 1\), got 1"):
        bounds.mixed_limit(1.0, 1.0, 0.0)
