"""The target step against a dense grid of targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.solvers.targets import output_of, z_step

QUANTIZERS = [(0.65, 0.32, 3), (0.54, 0.0, 3), (1.0, 1.2, 7), (1.2, 0.61, 1), (0.5, 0.7, 3)]
GRID = np.linspace(-5, 9, 28_001)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def pairs(levels, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-3, 7, 200), rng.integers(levels + 1, size=200)


def cost(z, codes, v, y, step, strength):
    return ((y - codes) * step) ** 2 + strength * (z - v) ** 2


@pytest.mark.parametrize("strength", [0.03, 1.0, 30.0])
@pytest.mark.parametrize("step,threshold,levels", QUANTIZERS)
def test_no_target_of_a_dense_grid_costs_less(step, threshold, levels, strength):
    """P1."""
    v, y = pairs(levels)
    z, codes = z_step(v, y, step, threshold, levels, strength)
    ours = cost(z, codes, v, y, step, strength)
    dense = output_of(GRID, step, threshold, levels)
    best = cost(GRID, dense, v[:, None], y[:, None], step, strength).min(1)
    assert (ours <= best + 1e-12).all()
    # The grid's points are 5e-4 apart, and targets move by 10 at most.
    np.testing.assert_allclose(ours, best, atol=strength * 2 * 10 * 5e-4)


@pytest.mark.parametrize("step,threshold,levels", QUANTIZERS)
def test_the_cost_rises_with_the_strength_to_the_true_loss(step, threshold, levels):
    """P3."""
    v, y = pairs(levels)
    true = ((y - output_of(v, step, threshold, levels)) * step) ** 2
    before = np.zeros_like(v)
    for strength in (1e-3, 0.1, 1.0, 10.0, 1e12):
        z, codes = z_step(v, y, step, threshold, levels, strength)
        at = cost(z, codes, v, y, step, strength)
        assert (at >= before - 1e-12).all()
        assert (at <= true + 1e-12).all()
        before = at
    np.testing.assert_allclose(before, true, atol=1e-9)


def test_targets_of_right_codes_stay_and_edges_belong_to_the_level_below():
    step, threshold, levels = QUANTIZERS[0]
    v = np.append(np.random.default_rng(0).uniform(-3, 7, 100), [0.32, 0.975, 1.625])
    y = output_of(v, step, threshold, levels)
    assert y[-3:].tolist() == [0, 1, 2]
    z, codes = z_step(v, y, step, threshold, levels, 0.1)
    np.testing.assert_array_equal(z, v)
    np.testing.assert_array_equal(codes, y)


def test_a_level_of_the_quantizer_has_its_own_code():
    """P10, where the threshold is below the step."""
    for step, threshold, levels in QUANTIZERS[:2]:
        codes = np.arange(levels + 1)
        np.testing.assert_array_equal(output_of(codes * step, step, threshold, levels), codes)
        assert (np.diff(output_of(GRID, step, threshold, levels)) >= 0).all()


@pytest.mark.parametrize("strength", [0.03, 1.0, 30.0])
def test_float_targets_cost_no_more_than_a_dense_grid(strength):
    rng = np.random.default_rng(0)
    v, y = rng.uniform(-3, 5, 200), np.maximum(rng.uniform(-3, 5, 200), 0)
    z, output = z_step(v, y, 1.0, 0.0, None, strength)
    np.testing.assert_array_equal(output, np.maximum(z, 0))
    ours = cost(z, output, v, y, 1.0, strength)
    best = cost(GRID, np.maximum(GRID, 0), v[:, None], y[:, None], 1.0, strength).min(1)
    assert (ours <= best + 1e-12).all()
    np.testing.assert_allclose(ours, best, atol=(1 + strength) * 1e-7)


def test_a_level_that_is_never_reached_is_an_error():
    v = jnp.zeros(3)
    with pytest.raises(ValueError, match=r"`threshold` must be below 1.5 `step` = 1.5.*got 1.5"):
        z_step(v, v, 1.0, 1.5, 3, 1.0)
    with pytest.raises(ValueError, match="`levels` must be None or an integer of 1 or more, got 0"):
        z_step(v, v, 1.0, 0.0, 0, 1.0)
    with pytest.raises(ValueError, match="`step` must be a finite number above 0, got 0"):
        z_step(v, v, 0.0, 0.0, 3, 1.0)
