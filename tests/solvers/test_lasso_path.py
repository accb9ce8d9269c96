"""The LASSO on a Gram matrix against scikit-learn's on the data."""

import numpy as np
import pytest
from sklearn.linear_model import Lasso

from bitjax.solvers import lasso, lasso_path


def problem(seed, elements=3000):
    """`(bits [elements, 8], u)`, a code of 8 planes and what it is of."""
    u = np.random.default_rng(seed).exponential(30.0, elements)
    codes = np.minimum(np.round(u), 255).astype(int)
    return (codes[:, None] >> np.arange(8) & 1).astype(float), u


def statistics(bits, u):
    return bits.T @ bits / len(u), bits.T @ u / len(u), u @ u / len(u)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_coordinate_descent_finds_what_scikit_learn_finds(seed, intercept):
    bits, u = problem(seed)
    centred = bits - bits.mean(axis=0) * intercept
    gram, cross, _ = statistics(centred, u - u.mean() * intercept)
    strengths = [0.01, 0.3, 1.0, 3.0, 100.0]
    for strength, ours in zip(strengths, lasso(gram, cross, strengths), strict=True):
        theirs = Lasso(
            strength, positive=True, fit_intercept=intercept, tol=1e-12, max_iter=100_000
        )
        np.testing.assert_allclose(ours, theirs.fit(bits, u).coef_, rtol=1e-6, atol=1e-8)


def test_no_penalty_is_least_squares():
    bits, u = problem(0)
    gram, cross, _ = statistics(bits, u)
    np.testing.assert_allclose(lasso(gram, cross, [0.0])[0], np.linalg.solve(gram, cross), 1e-6)


@pytest.mark.parametrize("intercept", [False, True])
def test_the_path_keeps_k_planes_at_the_weakest_penalty_that_does(intercept):
    bits, u = problem(1)
    gram, cross, energy = statistics(bits, u)
    solution = lasso_path(gram, cross, energy, mean=u.mean() if intercept else None)
    kept = solution.value.mask.sum(axis=1)
    assert kept[0] == 0
    assert (kept <= np.arange(9)).all()
    assert (np.diff(kept) >= 0).all()
    assert kept[8] == 8
    centred = bits - bits.mean(axis=0) * intercept
    fit = statistics(centred, u - u.mean() * intercept)[:2]
    for k in range(1, 8):
        strength = solution.stats["strengths"][k]
        at, weaker = lasso(*fit, [strength, strength * 0.998])
        np.testing.assert_allclose(at, solution.value.coefs[k], rtol=1e-6, atol=1e-9)
        assert (weaker > 0).sum() > k


def test_the_error_is_without_the_intercept():
    bits, u = problem(2)
    solution = lasso_path(*statistics(bits, u), mean=u.mean())
    errors = np.mean((u - solution.value.coefs @ bits.T) ** 2, axis=1)
    np.testing.assert_allclose(solution.objective, errors, rtol=1e-9)


def test_planes_that_are_never_set_and_zeros_have_no_coefficient():
    bits, u = problem(0)
    bits[:, 6:] = 0
    solution = lasso_path(*statistics(bits, u))
    assert not solution.value.mask[:, 6:].any()
    nothing = lasso_path(np.zeros((3, 3)), np.zeros(3), 0.0)
    assert not nothing.value.mask.any()
    assert nothing.objective.tolist() == [0.0] * 4


def test_shapes_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match=r"shapes \[D, D\] and \[D\], D at least 1, got"):
        lasso(np.eye(3), np.ones(2), [1.0])
