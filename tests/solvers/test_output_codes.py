"""Filters fitted through the activation quantizer: what must hold of every iterate kept."""

import jax
import numpy as np
import pytest

from bitjax.solvers import Fit, fit_codes, fit_output_codes

TERNARY = [-1.0, 0.0, 1.0]
Q = {"step": 0.65, "threshold": 0.32, "levels": 3}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def quantized(v):
    """Q(v) in codes, from its definition."""
    return np.searchsorted([0.32, 1.5 * 0.65, 2.5 * 0.65], v, side="left")


def layer(count=600, inputs=24, filters=5, seed=0):
    """`(x, z, y, start)`: codes, float pre-activations, their codes and the linear fit."""
    rng = np.random.default_rng(seed)
    x = np.clip(np.round(1.5 * rng.standard_normal((count, inputs))), 0, 3).astype(np.uint8)
    w = rng.standard_normal((filters, inputs))
    z = x @ w.T
    z = (z - z.mean(0)) / z.std(0)
    half = slice(0, count // 2)
    xc, zc = x[half] - x[half].mean(0), z[half] - z[half].mean(0)
    n = len(xc)
    start = fit_codes(
        xc.T @ xc / n,
        zc.T @ xc / n,
        (zc**2).mean(0),
        TERNARY,
        np.sign(w) * (np.abs(w) > 0.6),
        mean_N=x[half].mean(0),
        target_mean_M=z[half].mean(0),
    )
    return x, z, quantized(z), start.value


def true_loss(fit, x, y):
    v = fit.scale_M * (x @ np.asarray(fit.codes_MxN).T) + fit.intercept_M
    return 0.65**2 * ((y - quantized(v)) ** 2).mean(0)


def test_each_filter_has_its_best_iterate_and_none_is_worse_than_its_start():
    x, _, y, start = layer()
    solution = fit_output_codes(
        x[:300], y[:300], start, TERNARY, **Q, held_out=(x[300:], y[300:]), strengths=(0.1, 1.0)
    )
    stats = solution.stats
    np.testing.assert_allclose(
        solution.objective, true_loss(solution.value, x[300:], y[300:]), rtol=1e-12
    )
    at_start = true_loss(start, x[300:], y[300:])
    assert (solution.objective <= at_start + 1e-12).all()
    np.testing.assert_allclose(stats["held out"][0], at_start.mean(), rtol=1e-12)
    np.testing.assert_allclose(stats["train"][0], true_loss(start, x[:300], y[:300]).mean())
    v = start.scale_M * (x[300:] @ np.asarray(start.codes_MxN).T) + start.intercept_M
    np.testing.assert_allclose(stats["mismatch"][0], (quantized(v) != y[300:]).mean())
    assert stats["held out"].shape == (21,)
    assert np.mean(solution.objective) <= stats["held out"].min() + 1e-12
    unmoved = stats["kept"] == 0
    np.testing.assert_array_equal(
        solution.value.codes_MxN[unmoved], np.asarray(start.codes_MxN)[unmoved]
    )


def test_what_is_alternated_on_never_rises():
    """P2: F after (c), over iterations of (b'), (a) and (c) at one strength."""
    x, _, y, start = layer()
    for strength in (0.01, 1.0):
        stats = fit_output_codes(
            x, y, start, TERNARY, **Q, strengths=(strength,), held_out=0.0
        ).stats
        assert (np.diff(stats["penalised"]) <= 1e-12).all()
        assert stats["penalised"][-1] < stats["penalised"][0]
        np.testing.assert_array_equal(stats["train"], stats["held out"])


def test_training_loss_falls_where_patches_are_those_judged_by():
    x, _, y, start = layer()
    solution = fit_output_codes(x, y, start, TERNARY, **Q, strengths=(0.1, 1.0, 10.0), held_out=0.0)
    gain = true_loss(start, x, y) - solution.objective
    assert (gain > 1e-12).sum() >= 2
    np.testing.assert_array_equal(gain > 1e-12, solution.stats["kept"] > 0)


def test_chunks_do_not_show():
    x, _, y, start = layer(count=100)
    fits = [
        fit_output_codes(x, y, start, TERNARY, **Q, iterations=3, chunk=chunk) for chunk in (33, 99)
    ]
    for a, b in zip(jax.tree.leaves(fits[0]), jax.tree.leaves(fits[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_share_held_out_is_the_last_patches():
    x, _, y, start = layer(count=100)
    share = fit_output_codes(x, y, start, TERNARY, **Q, iterations=2, held_out=0.25)
    given = fit_output_codes(
        x[:75], y[:75], start, TERNARY, **Q, iterations=2, held_out=(x[75:], y[75:])
    )
    np.testing.assert_array_equal(share.objective, given.objective)


def test_float_outputs_of_a_last_layer_and_no_intercept():
    x, z, _, start = layer()
    start = start._replace(intercept_M=0 * start.intercept_M)
    y = np.maximum(z, 0)
    solution = fit_output_codes(
        x, y, start, TERNARY, levels=None, held_out=0.0, intercept=False, ridge=0.01, float_MxN=None
    )
    v = solution.value.scale_M * (x @ np.asarray(solution.value.codes_MxN).T)
    assert not np.asarray(solution.value.intercept_M).any()
    np.testing.assert_allclose(solution.objective, ((y - np.maximum(v, 0)) ** 2).mean(0))
    assert np.isnan(solution.stats["mismatch"]).all()
    assert np.mean(solution.objective) < 0.9 * solution.stats["train"][0]


def test_right_codes_are_left_alone():
    x, _, _, start = layer(count=100)
    v = start.scale_M * (x @ np.asarray(start.codes_MxN).T) + start.intercept_M
    solution = fit_output_codes(x, quantized(v), start, TERNARY, **Q, iterations=2)
    np.testing.assert_array_equal(solution.value.codes_MxN, start.codes_MxN)
    assert not np.asarray(solution.objective).any()


START = Fit(np.ones((2, 3)), np.ones(2), np.zeros(2))


@pytest.mark.parametrize(
    "wrong,message",
    [
        ({"x_TxN": np.ones(3)}, r"must have shapes \[patches, inputs\] and \[patches, filters\]"),
        ({"y_TxM": np.ones((5, 2))}, r"`y_TxM` must have shape \(8, 2\) to go with `x_TxN`"),
        ({"start": START._replace(scale_M=np.ones(3))}, r"`start.scale_M` must have shape \(2,\)"),
        ({"threshold": 1.5}, "`threshold` must be below 1.5 `step`"),
        (
            {"strengths": ()},
            "`strengths` must be a list of 1 or more, each a finite number above 0",
        ),
        (
            {"strengths": (0.0,)},
            "`strengths` must be a list of 1 or more, each a finite number above 0",
        ),
        ({"iterations": 0}, "`iterations` must be an integer of 1 or more"),
        ({"ridge": -1.0}, "`ridge` must be a finite number of 0 or more"),
        ({"held_out": 1.0}, r"`held_out` must be in \[0, 1\) or a list .*, got 1.0"),
        ({"held_out": (np.ones((2, 4)), np.ones((2, 2)))}, r"must have shapes \[patches, 3\]"),
        ({"grid_G": [1, 0]}, "`grid_G` must be one axis of codes in rising order"),
    ],
)
def test_what_cannot_be_is_said_at_the_front_door(wrong, message):
    good = {"x_TxN": np.ones((8, 3)), "y_TxM": np.ones((8, 2)), "start": START}
    settings = {"grid_G": TERNARY, "step": 1.0, "threshold": 0.0, "levels": 3, "held_out": 0.0}
    with pytest.raises(ValueError, match=message):
        fit_output_codes(**{**good, **settings, **wrong})
