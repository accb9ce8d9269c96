"""GPTQ against a loop over inputs, and where its answer is known."""

import jax
import numpy as np
import pytest

from bitjax.solvers import gptq_codes

GRID = np.arange(-4.0, 4.0)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def problem(inputs=20, filters=6, seed=0):
    """`(gram, filters, scales)` of correlated inputs of very different variances."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((200, inputs)) @ rng.standard_normal((inputs, inputs))
    w = rng.standard_normal((filters, inputs))
    return x.T @ x / 200, w, np.abs(w).max(1) / 3


def one_by_one(gram, w, scale, damping, order):
    """The paper's algorithm, one input after the other, by an inverse made anew for each."""
    w, codes = w.copy(), np.zeros_like(w)
    damped = gram + damping * np.diagonal(gram).mean() * np.eye(len(gram))
    for place, j in enumerate(order):
        left = order[place:]
        inverse = np.linalg.inv(damped[np.ix_(left, left)])
        codes[:, j] = np.clip(np.rint(w[:, j] / scale), GRID[0], GRID[-1])
        error = (w[:, j] - scale * codes[:, j]) / inverse[0, 0]
        w[:, left] -= error[:, None] * inverse[0]
    return codes


@pytest.mark.parametrize("act_order", [True, False])
def test_codes_are_those_of_one_input_after_the_other(act_order):
    gram, w, scale = problem()
    order = np.argsort(-np.diagonal(gram)) if act_order else np.arange(20)
    found = gptq_codes(gram, w, GRID, scale, act_order=act_order, block=7)
    np.testing.assert_array_equal(found.value, one_by_one(gram, w, scale, 0.01, order))
    np.testing.assert_array_equal(found.stats["order"], order)
    error = w - scale[:, None] * found.value
    np.testing.assert_allclose(found.objective, np.einsum("mi,ij,mj->m", error, gram, error))


def test_it_explains_more_than_rounding_where_inputs_vary_together():
    gram, w, scale = problem()
    error = w - scale[:, None] * np.clip(np.rint(w / scale[:, None]), -4, 3)
    rounded = np.einsum("mi,ij,mj->m", error, gram, error)
    assert gptq_codes(gram, w, GRID, scale).objective.sum() < 0.8 * rounded.sum()


@pytest.mark.parametrize("gram", [np.eye(5), np.zeros((5, 5))])
def test_inputs_that_do_not_vary_together_are_rounded(gram):
    w = np.random.default_rng(1).standard_normal((4, 5))
    found = gptq_codes(gram, w, GRID, np.full(4, 0.3)).value
    np.testing.assert_array_equal(found, np.clip(np.rint(w / 0.3), -4, 3))


def test_a_singular_gram_matrix_and_a_filter_of_zeros_give_finite_codes():
    x = np.random.default_rng(2).standard_normal((3, 8))  # fewer patches than inputs
    w = np.random.default_rng(3).standard_normal((2, 8)) * [[1.0], [0.0]]
    found = gptq_codes(x.T @ x, w, GRID, np.abs(w).max(1) / 3, damping=0.0)
    assert set(np.unique(found.value)) <= set(GRID)
    assert not found.value[1].any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gram_NxN": np.eye(3)}, r"must be \[N, N\], \[M, N\] and \[M\], got \(3, 3\)"),
        ({"grid_G": [1.0, 0.0]}, "`grid_G` must be one axis of codes in rising order"),
        ({"scale_M": [np.nan, 1.0]}, "`scale_M` must be finite"),
    ],
)
def test_bad_statistics_are_refused_in_one_line(changed, message):
    given = {"gram_NxN": np.eye(2), "filters_MxN": np.eye(2), "grid_G": GRID, "scale_M": np.ones(2)}
    with pytest.raises(ValueError, match=message):
        gptq_codes(**{**given, **changed})


def test_a_pruned_weight_stays_0_and_passes_on_what_it_took_over():
    gram, w, scale = problem(inputs=40, filters=20, seed=1)
    pruned = np.random.default_rng(4).random(w.shape) < 0.5
    w = np.where(pruned, 0, w)
    found = gptq_codes(gram, w, GRID, scale, pruned_MxN=pruned)
    assert not found.value[pruned].any() and found.value[~pruned].any()
    # It is worth more than GPTQ's codes with the pruned ones taken out afterwards.
    free = np.where(pruned, 0, gptq_codes(gram, w, GRID, scale).value)
    error = w - scale[:, None] * free
    assert found.objective.sum() < 0.9 * np.einsum("mi,ij,mj->m", error, gram, error).sum()


@pytest.mark.parametrize(
    ("pruned", "grid", "message"),
    [
        (np.zeros((6, 20)), GRID, r"must be bool of shape \(6, 20\), got float64"),
        (np.zeros((6, 19), bool), GRID, "got bool"),
        (np.ones((6, 20), bool), [-1.0, 1.0], "needs 0 in `grid_G`"),
    ],
)
def test_a_mask_that_does_not_go_with_the_filters_is_refused(pruned, grid, message):
    gram, w, scale = problem()
    with pytest.raises(ValueError, match=message):
        gptq_codes(gram, w, grid, scale, pruned_MxN=pruned)
