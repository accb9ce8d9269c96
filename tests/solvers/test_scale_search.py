"""Scales against a slow search over the data."""

import numpy as np
import pytest

from bitjax.solvers import free_scales, select_planes, window_scales


@pytest.fixture(params=["half-normal", "exponential", "relu"])
def data(request):
    rng = np.random.default_rng(0)
    x = rng.exponential(20.0, 2000) if request.param == "exponential" else rng.normal(0, 50, 2000)
    x = np.maximum(x, 0) if request.param == "relu" else np.abs(x)
    return np.sort(x), np.full(x.size, 1 / x.size)


def codes_of(x, scale, bits):
    return np.minimum(np.round(x / scale), 2**bits - 1)


def error_of(x, scale, bits):
    return np.mean((x - scale * codes_of(x, scale, bits)) ** 2)


def refitted_error(x, scale, bits):
    planes = (codes_of(x, scale, bits).astype(int)[:, None] >> np.arange(bits) & 1).astype(float)
    gram, cross = planes.T @ planes / x.size, planes.T @ x / x.size
    return select_planes(gram, cross, np.mean(x**2)).objective[bits]


@pytest.mark.parametrize("refit", [False, True])
def test_the_window_is_the_best_of_all_shifts(data, refit):
    x, weights = data
    solution = window_scales(x, weights, 0.6, refit=refit)
    error = refitted_error if refit else error_of
    for bits in range(1, 9):
        errors = [error(x, 0.6 * 2.0**shift, bits) for shift in range(9)]
        assert solution.objective[bits - 1] == pytest.approx(min(errors), rel=1e-7)
        assert solution.stats["shifts"][bits - 1] == np.argmin(errors)
        assert solution.value.scale[bits - 1] == 0.6 * 2.0 ** np.argmin(errors)


def test_a_free_scale_is_as_good_as_the_best_of_a_fine_search(data):
    x, weights = data
    solution = free_scales(x, weights)
    for bits in (1, 2, 4, 6, 8):
        scales = x.max() / (2**bits - 1) * np.geomspace(0.005, 2, 10_001)
        least = min(error_of(x, scale, bits) for scale in scales)
        # A hundredth of a dB.
        assert solution.objective[bits - 1] <= least * 1.0023


@pytest.mark.parametrize("search", [free_scales, lambda x, w, **k: window_scales(x, w, 1.0, **k)])
def test_coefficients_have_the_error_that_is_promised(data, search):
    x, weights = data
    for refit in (False, True):
        (scale, coefs), objective, stats = search(x, weights, refit=refit)
        for bits in range(1, 9):
            codes = codes_of(x, scale[bits - 1], bits).astype(int)
            x_hat = (codes[:, None] >> np.arange(8) & 1) @ coefs[bits - 1]
            assert objective[bits - 1] == pytest.approx(np.mean((x - x_hat) ** 2), rel=1e-6)
            assert (coefs[bits - 1, bits:] == 0).all()
        assert stats["increasing"].shape == (8,)
        if not refit:
            np.testing.assert_allclose(coefs[7], scale[7] * 2.0 ** np.arange(8))


def test_refitting_and_freedom_never_cost(data):
    x, weights = data
    window, refitted = (window_scales(x, weights, 1.0, refit=r).objective for r in (False, True))
    free, free_refitted = (free_scales(x, weights, refit=r).objective for r in (False, True))
    assert (refitted <= window * (1 + 1e-9)).all()
    assert (free <= window * 1.0023).all()
    assert (free_refitted[1:] < free[1:]).all()
    assert (np.diff(free) < 0).all()


def test_zeros_have_no_error():
    for solution in (free_scales([0.0], [1.0]), window_scales([0.0], [1.0], 1.0)):
        assert solution.objective.tolist() == [0.0] * 8
        assert np.isfinite(solution.value.scale).all()


def test_what_cannot_be_searched_is_an_error():
    with pytest.raises(ValueError, match=r"one shape \[M\], M at least 1"):
        free_scales([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="rising: sort them"):
        free_scales([2.0, 1.0], [0.5, 0.5])
    with pytest.raises(ValueError, match="`weights_M` must be finite and at least 0, got -0.5"):
        free_scales([1.0, 2.0], [1.5, -0.5])
    with pytest.raises(ValueError, match=r"`max_bits` must be an integer in \[1, 8\], got 9"):
        free_scales([1.0], [1.0], max_bits=9)
    with pytest.raises(ValueError, match="`unit` must be a finite number above 0, got 0"):
        window_scales([1.0], [1.0], 0)
