"""Codes and scales of filters against enumeration, theory and symmetry."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bitjax.quantizers import Axes
from bitjax.quantizers.weight_codes import (
    KERNEL,
    MATRIX,
    binary_codes,
    otwn_codes,
    rounded_codes,
    twn_codes,
)

FUNCTIONS = {
    "twn": lambda w, axes: twn_codes(w, axes),
    "otwn": otwn_codes,
    "binary": binary_codes,
    "rounded2": lambda w, axes: rounded_codes(w, 2, axes),
    "rounded4": lambda w, axes: rounded_codes(w, 4, axes),
}
EVERY = {name: jax.jit(function, static_argnums=1) for name, function in FUNCTIONS.items()}
every = pytest.mark.parametrize("name", EVERY)

# The quantiles of N(0, 1): a Gaussian without chance.
GAUSSIAN = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)[None, :].astype(np.float32)


def normal(shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def error(w, codes, scale):
    return np.sum(np.square(w - np.asarray(codes) * np.asarray(scale)), axis=1)


@pytest.mark.parametrize("inputs", [1, 2, 5, 9])
def test_otwn_is_the_least_error_of_all_ternary_codes(inputs):
    w = normal((12, inputs), seed=inputs, dtype="float64")
    every_code = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=inputs)))
    energy = np.maximum(np.sum(every_code**2, axis=1), 1)
    gain = np.maximum(w @ every_code.T, 0) ** 2 / energy
    with jax.enable_x64(True):
        codes, scale = (np.asarray(a) for a in EVERY["otwn"](w, MATRIX))
    assert scale.dtype == np.float64 and codes.dtype == np.int32
    least = np.sum(w**2, axis=1) - gain.max(axis=1)
    np.testing.assert_allclose(error(w, codes, scale), least, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(codes, every_code[gain.argmax(axis=1)])


def test_of_two_ternary_supports_with_one_error_the_larger_is_taken():
    # S_r^2 / r is 81, 72, 75, 81.
    codes, _ = EVERY["otwn"](jnp.array([[9.0, 3.0, 3.0, 3.0]]), MATRIX)
    assert codes.tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize("inputs", [2, 17, 144])
def test_otwn_is_a_fixed_point_that_no_change_of_one_code_improves(inputs):
    w = normal((6, inputs), seed=3, dtype="float64")
    with jax.enable_x64(True):
        codes, scale = (np.asarray(a) for a in EVERY["otwn"](w, MATRIX))
    np.testing.assert_array_equal(codes, np.clip(np.rint(w / scale), -1, 1))
    np.testing.assert_allclose(scale[:, 0], np.sum(codes * w, 1) / np.sum(codes**2, 1), rtol=1e-12)
    least = error(w, codes, scale)
    for place, value in itertools.product(range(inputs), (-1, 0, 1)):
        other = codes.copy()
        other[:, place] = value
        energy = np.maximum(np.sum(other**2, axis=1), 1)
        best_scale = np.sum(other * w, axis=1) / energy
        assert (error(w, other, best_scale[:, None]) >= least - 1e-12).all()


def test_otwn_of_thousands_of_inputs_is_a_fixed_point_in_float32_too():
    w = normal((200, 4608), seed=5)
    codes, scale = EVERY["otwn"](w, MATRIX)
    np.testing.assert_array_equal(codes, np.clip(np.rint(w / np.asarray(scale)), -1, 1))


def test_twn_on_a_gaussian_has_the_error_of_theory_and_otwn_the_least():
    """Relative errors .1916 at .7 mean|w|, .1902 at the optimum: threshold .612, 46 % zeros."""
    energy = np.sum(GAUSSIAN**2)

    def relative(codes, scale):
        return float(error(GAUSSIAN, codes, scale)[0] / energy)

    assert relative(*twn_codes(GAUSSIAN, MATRIX)) == pytest.approx(0.1916, abs=1e-4)
    codes, scale = EVERY["otwn"](GAUSSIAN, MATRIX)
    assert relative(codes, scale) == pytest.approx(0.1902, abs=1e-4)
    assert np.mean(np.asarray(codes) == 0) == pytest.approx(0.46, abs=0.005)
    assert float(scale[0, 0]) / 2 == pytest.approx(0.612, abs=1e-3)
    best = relative(*twn_codes(GAUSSIAN, MATRIX, factor=0.767))
    assert best == pytest.approx(relative(codes, scale), abs=1e-5)


def test_binary_codes_are_signs_with_the_mean_size():
    w = np.float32([[0.0, -0.0, -3.0, 1.0], [2.0, 2.0, 2.0, -6.0]])
    codes, scale = binary_codes(w, MATRIX)
    assert codes.tolist() == [[1, 1, -1, 1], [1, 1, 1, -1]]
    assert scale.tolist() == [[1.0], [3.0]]


@pytest.mark.parametrize(("bits", "excess"), [(2, 0.001), (3, 0.005), (4, 0.01), (6, 0.08)])
def test_alternate_rounding_ends_near_the_best_of_a_dense_search(bits, excess):
    w, last = normal((100, 144), seed=1), 2 ** (bits - 1) - 1
    program = jax.jit(rounded_codes, static_argnums=(1, 2))
    codes, scale = (np.asarray(a) for a in program(w, bits, MATRIX))
    assert np.abs(codes).max() <= last
    np.testing.assert_array_equal(codes, np.clip(np.rint(w / scale), -last, last))
    full = np.abs(w).max(axis=1, keepdims=True) / last
    shares = np.linspace(0.02, 1.2, 400)
    least = [error(w, np.clip(np.rint(w / (s * full)), -last, last), s * full) for s in shares]
    assert np.mean(error(w, codes, scale) / np.min(least, axis=0)) < 1 + excess
    moved = np.sum(codes * w, axis=1) / np.sum(codes**2, axis=1)
    np.testing.assert_allclose(scale[:, 0], moved, rtol=1e-5)


def test_rounding_takes_bits_that_are_not_known_when_it_is_compiled():
    w = normal((4, 32))
    compiled = jax.jit(lambda w, bits: rounded_codes(w, bits, MATRIX))
    for bits in (2, 5):
        np.testing.assert_array_equal(compiled(w, bits)[0], rounded_codes(w, bits, MATRIX)[0])
    assert compiled._cache_size() == 1


@every
def test_a_filter_of_zeros_has_the_scale_zero_and_no_nan(name):
    w = np.concatenate([np.zeros((1, 6), np.float32), normal((1, 6))])
    codes, scale = EVERY[name](w, MATRIX)
    assert float(scale[0, 0]) == 0 < float(scale[1, 0])
    assert codes[0].tolist() == [int(name == "binary")] * 6
    assert np.isfinite(scale).all()


@every
@given(factor=st.floats(1e-6, 1e6), seed=st.integers(0, 99))
def test_scaling_a_filter_scales_only_its_scale(name, factor, seed):
    # A power of two, under which floats are as they were.
    factor = np.float32(2.0 ** np.round(np.log2(factor)))
    w = normal((3, 8), seed)
    codes, scale = EVERY[name](w, MATRIX)
    factors = np.float32([[1.0], [factor], [1.0]])
    again, wider = EVERY[name](w * factors, MATRIX)
    np.testing.assert_array_equal(again, codes)
    np.testing.assert_array_equal(wider, scale * factors)


@every
def test_filters_are_solved_each_on_its_own(name):
    w, order = normal((5, 20)), [3, 1, 4, 0, 2]
    codes, scale = EVERY[name](w, MATRIX)
    again, permuted = EVERY[name](w[order], MATRIX)
    np.testing.assert_array_equal(again, np.asarray(codes)[order])
    np.testing.assert_allclose(permuted, np.asarray(scale)[order], rtol=1e-6)


@every
def test_a_kernel_and_its_matrix_of_filters_have_the_same_codes(name):
    kernel = normal((3, 3, 4, 6))
    codes, scale = EVERY[name](kernel, KERNEL)
    assert codes.shape == kernel.shape and scale.shape == (1, 1, 1, 6)
    rows, of_rows = EVERY[name](kernel.reshape(-1, 6).T, MATRIX)
    np.testing.assert_array_equal(np.asarray(codes).reshape(-1, 6).T, rows)
    np.testing.assert_allclose(np.asarray(scale).ravel(), np.asarray(of_rows).ravel(), rtol=1e-6)
    several, scales = EVERY[name](kernel, Axes((-2, -1)))
    assert several.shape == kernel.shape and scales.shape == (1, 1, 4, 6)


@every
def test_an_empty_kernel_is_an_error_that_says_so(name):
    with pytest.raises(ValueError, match=r"at least one element.*\(0, 4\)"):
        EVERY[name](jnp.zeros((0, 4)), KERNEL)
