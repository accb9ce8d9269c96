"""AdaRound against an enumeration, and where its answer is known."""

import itertools

import jax
import numpy as np
import pytest

from bitjax.solvers import adaround_codes

GRID = np.arange(-4.0, 4.0)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def problem(inputs=8, filters=64, seed=0):
    """`(gram, filters, scales)` of correlated inputs; some weights are beyond the grid."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((200, inputs)) @ rng.standard_normal((inputs, inputs))
    w = rng.standard_normal((filters, inputs))
    return x.T @ x / 200, w, np.abs(w).max(1) / 4.5


def loss(gram, cross, v):
    return ((v @ gram - 2 * cross) * v).sum(1)


def neighbours(w, scale):
    """The codes below and above every weight, the grid's end beyond it."""
    u = w / scale[:, None]
    return (np.clip(edge(u), GRID[0], GRID[-1]) for edge in (np.floor, np.ceil))


def best_of_all(gram, cross, w, scale):
    """The least loss of all 2^N ways to round a filter."""
    ways = np.array(list(itertools.product([False, True], repeat=w.shape[1])))
    low, high = neighbours(w, scale)
    return np.array([
        loss(gram, cross[m], scale[m] * np.where(ways, high[m], low[m])).min()
        for m in range(len(w))
    ])  # fmt: skip


@pytest.mark.parametrize("own", [True, False])
def test_most_filters_end_at_the_best_of_all_ways_to_round(own):
    gram, w, scale = problem()
    # The outputs wanted may be others than the filters' own.
    cross = w @ gram if own else (w + 0.1 * scale[:, None]) @ gram
    found = adaround_codes(gram, w, GRID, scale, cross_MxN=None if own else cross)
    v = scale[:, None] * found.value
    np.testing.assert_allclose(found.objective, loss(gram, cross, v), rtol=1e-9)
    low, high = neighbours(w, scale)
    assert ((found.value == low) | (found.value == high)).all()
    best = best_of_all(gram, cross, w, scale)
    assert (found.objective >= best - 1e-9).all()
    assert (found.objective <= found.stats["nearest"]).all()
    assert np.isclose(found.objective, best).mean() > 0.7
    assert (found.objective - best).sum() < 0.06 * (found.stats["nearest"] - best).sum()


def test_it_does_better_than_nearest_codes_where_inputs_vary_together():
    gram, w, scale = problem(inputs=40)
    found = adaround_codes(gram, w, GRID, scale)
    energy = ((w @ gram) * w).sum(1)
    assert (found.objective + energy).sum() < 0.6 * (found.stats["nearest"] + energy).sum()
    assert 0 < found.stats["moved"].mean() < 0.6


@pytest.mark.parametrize("gram", [np.eye(5), np.zeros((5, 5))])
def test_inputs_that_do_not_vary_together_are_rounded(gram):
    w = np.random.default_rng(1).standard_normal((4, 5))
    found = adaround_codes(gram, w, GRID, np.full(4, 0.3)).value
    np.testing.assert_array_equal(found, np.clip(np.rint(w / 0.3), -4, 3))


def test_the_codes_do_not_depend_on_units_or_on_the_filters_order():
    gram, w, scale = problem(filters=6)
    found = adaround_codes(gram, w, GRID, scale)
    turned = adaround_codes(4 * gram, 2 * w[::-1], GRID, 2 * scale[::-1])
    np.testing.assert_array_equal(turned.value[::-1], found.value)
    np.testing.assert_allclose(turned.objective[::-1], 16 * found.objective)


def test_a_singular_gram_matrix_and_a_filter_of_zeros_give_codes():
    x = np.random.default_rng(2).standard_normal((3, 8))  # fewer patches than inputs
    w = np.random.default_rng(3).standard_normal((2, 8)) * [[1.0], [0.0]]
    found = adaround_codes(x.T @ x, w, GRID, np.abs(w).max(1) / 3)
    assert set(np.unique(found.value)) <= set(GRID)
    assert not found.value[1].any()


def test_weights_on_a_code_and_pruned_ones_stay():
    gram, w, scale = problem(inputs=20)
    on_codes = np.round(w / scale[:, None]).clip(-4, 3)
    found = adaround_codes(gram, scale[:, None] * on_codes, GRID, scale, cross_MxN=w @ gram)
    np.testing.assert_array_equal(found.value, on_codes)
    pruned = np.random.default_rng(4).random(w.shape) < 0.5
    found = adaround_codes(gram, w, GRID, scale, pruned_MxN=pruned).value
    assert not found[pruned].any() and found[~pruned].any()


def test_one_filter_of_one_input_and_signs_are_rounded_too():
    assert adaround_codes([[2.0]], [[0.4]], GRID, [1.0]).value.tolist() == [[0.0]]
    signs = adaround_codes(np.eye(2), [[0.4, -3.0]], [-1, 1], [1.0]).value
    assert signs.tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gram_NxN": np.eye(3)}, r"must be \[N, N\], \[M, N\] and \[M\], got \(3, 3\)"),
        ({"grid_G": [1.0]}, "`grid_G` must be one axis of two or more codes in rising order"),
        ({"cross_MxN": np.ones((1, 2))}, r"`cross_MxN` must have shape \(2, 2\), got \(1, 2\)"),
        ({"scale_M": [np.nan, 1.0]}, "`scale_M` must be finite"),
    ],
)
def test_bad_statistics_are_refused_in_one_line(changed, message):
    given = {"gram_NxN": np.eye(2), "filters_MxN": np.eye(2), "grid_G": GRID, "scale_M": np.ones(2)}
    with pytest.raises(ValueError, match=message):
        adaround_codes(**{**given, **changed})
