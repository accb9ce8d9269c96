"""Descent on patches against descent on their Gram matrix."""

import jax
import numpy as np
import pytest

from bitjax.solvers import fit_codes, fit_codes_to_samples

TERNARY = [-1.0, 0.0, 1.0]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def patches(count, inputs, filters, seed=0):
    """Codes 0 to 3, one input dead; targets of a float layer; a ternary start."""
    rng = np.random.default_rng(seed)
    x = np.clip(np.round(rng.standard_normal((count, inputs)) + 0.3), 0, 3)
    x[:, 5] = 2.0
    w = rng.standard_normal((filters, inputs))
    return x, x @ w.T, np.sign(w) * (np.abs(w) > 0.6)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
def test_the_answer_is_that_of_the_gram_matrix(intercept, joint, ridge):
    # 150 inputs are two blocks and a part of a third.
    x, z, start = patches(40, 150, 6)
    means = {"mean_N": x.mean(0), "target_mean_M": z.mean(0)} if intercept else {}
    xc, zc = (x - x.mean(0), z - z.mean(0)) if intercept else (x, z)
    statistics = xc.T @ xc / 40, zc.T @ xc / 40, (zc**2).mean(0)
    how = {"joint": joint, "ridge": ridge, "float_MxN": 0.7 * start + 0.1 if ridge else None}
    if joint and intercept:
        how["pruned_MxN"] = np.random.default_rng(3).random(start.shape) < 0.4
    ours = fit_codes_to_samples(x, z, TERNARY, start, intercept=intercept, **how)
    theirs = fit_codes(*statistics, TERNARY, start, **how, **means)
    np.testing.assert_array_equal(ours.value.codes_MxN, theirs.value.codes_MxN)
    assert not np.asarray(ours.value.codes_MxN)[how.get("pruned_MxN", start < -1)].any()
    for a, b in zip(ours.value[1:], theirs.value[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ours.objective, theirs.objective, rtol=1e-6, atol=1e-10)
    assert ours.stats["sweeps"] == theirs.stats["sweeps"]
    assert ours.stats["converged"]
    np.testing.assert_allclose(ours.stats["per_sweep"], theirs.stats["per_sweep"], atol=1e-9)
    v = ours.value.scale_M * (x @ np.asarray(ours.value.codes_MxN).T) + ours.value.intercept_M
    np.testing.assert_allclose(ours.objective, ((z - v) ** 2).mean(0), rtol=1e-9)


def test_a_target_of_zeros_and_one_patch_leave_no_nan():
    x, z, start = patches(1, 20, 3)
    for targets in (z, 0 * z):
        solution = fit_codes_to_samples(x, targets, TERNARY, start)
        assert all(np.isfinite(a).all() for a in (*solution.value, solution.objective))
        np.testing.assert_allclose(solution.objective, 0, atol=1e-12)


@pytest.mark.parametrize(
    "wrong,message",
    [
        ({"x_TxN": np.ones(4)}, r"must have shapes \[patches, inputs\] and \[patches, filters\]"),
        ({"z_TxM": np.ones((5, 2))}, r"`z_TxM` must have shape \(4, 2\) to go with `x_TxN`"),
        ({"z_TxM": np.full((4, 2), np.nan)}, "`z_TxM` must be finite"),
        ({"start_MxN": np.ones((3, 2))}, r"`start_MxN` must have shape \(2, 3\)"),
        ({"start_MxN": np.full((2, 3), 2.0)}, "`start_MxN` must hold codes of `grid_G`"),
        ({"grid_G": [1, 0]}, "`grid_G` must be one axis of codes in rising order"),
        ({"ridge": -1.0}, "`ridge` must be a finite number of 0 or more"),
        ({"max_sweeps": 0}, "`max_sweeps` must be an integer of 1 or more, got 0"),
    ],
)
def test_what_cannot_be_is_said_at_the_front_door(wrong, message):
    good = {
        "x_TxN": np.ones((4, 3)),
        "z_TxM": np.ones((4, 2)),
        "grid_G": TERNARY,
        "start_MxN": np.ones((2, 3)),
    }
    fit_codes_to_samples(**good)
    with pytest.raises(ValueError, match=message):
        fit_codes_to_samples(**{**good, **wrong})
