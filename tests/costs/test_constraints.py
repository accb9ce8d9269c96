"""Budgets while bits are learned, against scipy and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from bitjax.costs.budget import Budget, cost_of
from bitjax.costs.constraints import allowed, steered, within
from bitjax.costs.site import SiteCost

COSTS = {
    "a/kernel": SiteCost(100, 20, 2, "a/kernel", "a", "kernel"),
    "a/input": SiteCost(100, 5, 2, "a/input", "a", "input"),
    "b/kernel": SiteCost(300, 60, 2, "b/kernel", "b", "kernel"),
    "b/input": SiteCost(300, 15, 2, "b/input", "b", "input"),
}
LIMITS = dict.fromkeys(COSTS, (1.0, 16.0))
BUDGETS = {
    "bits": [Budget("bits", 4.0)],
    "bytes": [Budget("bytes", 40.0)],
    "bops": [Budget("bops", 400 * 16.0)],
    "both": [Budget("bops", 400 * 16.0), Budget("bytes", 35.0)],
    "part": [Budget("bits", 3.0, "b/.*")],
}
named = pytest.mark.parametrize("name", BUDGETS)


def drawn(seed, low, high):
    values = np.random.default_rng(seed).uniform(low, high, len(COSTS))
    return {site: jnp.float32(v) for site, v in zip(COSTS, values, strict=True)}


def costs_now(bits, budgets):
    return jnp.stack([cost_of(b, bits, COSTS) for b in budgets])


def slopes(bits, budgets):
    found = jax.jacobian(lambda b: costs_now(b, budgets))(bits)
    return np.stack([found[site] for site in COSTS], axis=1)


@named
def test_a_steered_gradient_is_the_nearest_whose_descent_raises_no_cost(name):
    budgets = BUDGETS[name]
    for seed in range(5):
        bits, gradient = drawn(seed, 2.0, 8.0), drawn(seed + 50, -1.0, 1.0)
        most = costs_now(bits, budgets)
        found = steered(gradient, bits, LIMITS, COSTS, budgets, most)
        g = np.array([gradient[site] for site in COSTS])
        a = slopes(bits, budgets) / np.asarray(most)[:, None]
        mu, _ = optimize.nnls(a.T, -g)
        np.testing.assert_allclose([found[s] for s in COSTS], g + a.T @ mu, atol=2e-3)


@named
def test_a_gradient_is_left_alone_where_there_is_room(name):
    bits, gradient = drawn(0, 2.0, 8.0), drawn(1, -1.0, 1.0)
    found = steered(
        gradient, bits, LIMITS, COSTS, BUDGETS[name], 1.01 * costs_now(bits, BUDGETS[name])
    )
    assert found == gradient


@named
def test_bits_are_shifted_to_the_cost_allowed_and_no_further(name):
    budgets = BUDGETS[name]
    most = jnp.asarray([b.limit for b in budgets])
    for seed in range(5):
        bits = drawn(seed, 5.0, 9.0)
        found = within(bits, LIMITS, COSTS, budgets, most)
        left = costs_now(found, budgets) / most
        assert np.all(left <= 1.0 + 1e-4) and max(left) == pytest.approx(1.0, abs=1e-4)
        again = within(found, LIMITS, COSTS, budgets, most)
        np.testing.assert_allclose([again[s] for s in COSTS], [found[s] for s in COSTS], atol=1e-3)


def test_bits_keep_what_they_have_learned_of_each_other_and_their_bounds():
    bits = dict(zip(COSTS, map(jnp.float32, (8.0, 6.0, 4.0, 2.5)), strict=True))
    limits = {**LIMITS, "b/input": (2.0, 16.0)}
    del limits["a/input"]  # fixed
    found = within(bits, limits, COSTS, [Budget("bits", 4.0)], jnp.array([4.0]))
    # 16 bits in all: 6 stay, 2.5 fall to 2, and the others share what is left.
    np.testing.assert_allclose([found[s] for s in COSTS], [6.0, 6.0, 2.0, 2.0], atol=1e-3)


def test_bits_within_a_budget_return_to_their_bounds_alone():
    bits = dict(zip(COSTS, map(jnp.float32, (0.5, 3.0, 17.0, 2.5)), strict=True))
    found = within(bits, LIMITS, COSTS, BUDGETS["bits"], jnp.array([jnp.inf]))
    assert [float(found[s]) for s in COSTS] == [1.0, 3.0, 16.0, 2.5]


def test_readers_of_one_tensor_fall_together_from_where_the_widest_meets_them():
    costs = {**COSTS, "b/input": COSTS["b/input"]._replace(source="a/input", elements=5)}
    budgets = [Budget("activation_bytes", 4.0 * 5 / 8)]
    for bits, top, expected in (
        ((8.0, 6.3, 4.0, 6.0), 6.1, (8.0, 6.1, 4.0, 6.0)),
        ((8.0, 6.3, 4.0, 6.0), 4.0, (8.0, 4.0, 4.0, 4.0)),
        ((8.0, 4.0, 4.0, 6.0), 5.0, (8.0, 4.0, 4.0, 5.0)),
        ((8.0, 6.0, 4.0, 6.0), 4.0, (8.0, 4.0, 4.0, 4.0)),
    ):
        bits = dict(zip(costs, map(jnp.float32, bits), strict=True))
        found = within(bits, LIMITS, costs, budgets, jnp.array([top * 5 / 8]))
        np.testing.assert_allclose([found[s] for s in costs], expected, atol=1e-3)


def test_the_way_to_a_limit_falls_by_equal_ratios_and_ends_on_it():
    budgets = [Budget("bits", 2.0), Budget("bytes", 100.0)]
    way = [allowed(budgets, jnp.array([16.0, 80.0]), jnp.float32(s)) for s in (-1, 0, 1 / 3, 1, 2)]
    np.testing.assert_allclose([w[0] for w in way], [16.0, 16.0, 8.0, 2.0, 2.0], rtol=1e-6)
    assert all(w[1] == 100.0 for w in way), "a limit that is met is the limit from the start"


def test_steered_descent_ends_where_the_constrained_optimum_is():
    """min sum w (n - t)^2 over bits of an average of 4 at most: t - mu / (8 w)."""
    weights, targets = jnp.array([1.0, 2.0, 0.5, 4.0]), jnp.array([8.0, 3.0, 6.0, 5.0])
    budgets, most = BUDGETS["bits"], jnp.array([4.0])

    def step(_, bits):
        gradient = 2 * weights * (jnp.stack([bits[site] for site in COSTS]) - targets)
        gradient = dict(zip(COSTS, gradient, strict=True))
        gradient = steered(gradient, bits, LIMITS, COSTS, budgets, most)
        moved = {site: n - 0.05 * gradient[site] for site, n in bits.items()}
        return within(moved, LIMITS, COSTS, budgets, most)

    bits = jax.lax.fori_loop(0, 300, step, drawn(0, 5.0, 9.0))
    excess = float(jnp.sum(targets) - 16.0)
    expected = targets - excess / weights / jnp.sum(1 / weights)
    np.testing.assert_allclose([bits[s] for s in COSTS], expected, atol=2e-3)


def test_bits_at_a_bound_hold_no_others_back():
    """min sum w (n - t)^2 by signs alone, as Adam's first steps: a kernel stands at its fewest."""
    sizes = np.array([1000.0, 100.0, 400.0, 50.0])
    costs = {
        f"{s}/kernel": SiteCost(1, int(n), 1, s, s, "kernel")
        for s, n in zip("abcd", sizes, strict=True)
    }
    limits = dict.fromkeys(costs, (3.5, 16.0))
    budgets, most = [Budget("bytes", 775.0)], jnp.array([775.0])
    weights, targets = np.array([1.0, 2.0, 0.5, 4.0]), np.array([2.0, 6.0, 9.0, 7.0])

    def step(i, bits):
        gradient = 2 * weights * (jnp.stack(list(bits.values())) - targets)
        gradient = dict(zip(costs, gradient, strict=True))
        gradient = steered(gradient, bits, limits, costs, budgets, most)
        moved = {s: n - 0.02 * 0.998**i * jnp.sign(gradient[s]) for s, n in bits.items()}
        return within(moved, limits, costs, budgets, most)

    bits = jax.lax.fori_loop(0, 3000, step, dict.fromkeys(costs, jnp.float32(5.0)))
    # By hand, with the first at 3.5: the others at t - mu * size / (2 w), within 2700 bits.
    rate = sizes[1:] / (2 * weights[1:])
    mu = (sizes[1:] @ targets[1:] - 2700.0) / (sizes[1:] @ rate)
    expected = [3.5, *(targets[1:] - mu * rate)]
    np.testing.assert_allclose([bits[s] for s in costs], expected, atol=0.05)
