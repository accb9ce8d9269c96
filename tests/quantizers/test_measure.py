"""Distortion, SQNR, rate and entropy against numbers known beforehand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.quantizers import Axes, bitlength, distortion, entropy, rate, sqnr, uniform


def test_each_bit_of_a_uniform_signal_is_worth_six_decibel():
    x = jnp.linspace(0.0, 1.0, 100_001)
    params, stats = (q := uniform(8)).init(x, Axes())
    for bits in (4.0, 6.0, 8.0):
        x_hat = q.apply({**params, "bits": jnp.float32(bits)}, stats, x)
        # Signal 1/3, noise step^2 / 12.
        expected = 10 * np.log10((1 / 3) / ((2**bits - 1) ** -2 / 12))
        assert float(sqnr(x, x_hat)) == pytest.approx(expected, abs=0.1)


def test_no_error_is_an_infinite_ratio_and_all_error_is_zero_decibel():
    assert float(sqnr(jnp.zeros(3), jnp.zeros(3))) == np.inf
    assert float(sqnr(jnp.ones(3), jnp.zeros(3))) == 0.0


def test_bfloat16_is_measured_in_float32():
    x = jnp.full(10_000, 1.0, jnp.bfloat16)
    assert float(distortion(x, jnp.zeros_like(x))) == 1.0


def test_entropy_of_even_codes_is_their_bits_and_of_one_code_nothing():
    measure = jax.jit(entropy, static_argnums=1)
    assert float(measure(np.arange(64) % 16, 16)) == pytest.approx(4.0)
    assert float(measure(np.zeros(64, int), 16)) == 0.0
    p = np.array([0.5, 0.25, 0.25])
    uneven = np.repeat([0, 1, 2], [32, 16, 16])
    assert float(measure(uneven, 16)) == pytest.approx(-np.sum(p * np.log2(p)))


def test_rate_counts_side_information():
    assert float(rate(jnp.full((1, 1, 1, 8), 3.0), 64, side_bits=8 * 4)) == 3.5


@pytest.mark.parametrize(("bits", "expected"), [(1, 15.6), (2, 0.954), (3, 0.151), (4, 0.033)])
def test_min_max_of_a_million_gaussians_is_worse_than_zero_below_three_bits(bits, expected):
    """Measured numbers; the extremes of a sample vary, and the error with their square."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=1_000_000), jnp.float32)
    params, stats = (q := bitlength(float(bits))).init(x, Axes())
    assert float(distortion(x, q.apply(params, stats, x))) == pytest.approx(expected, rel=0.15)
