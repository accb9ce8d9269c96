"""Allocation against enumeration, against the textbook's table over cost, and its own promises."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bitjax.solvers import allocate, exact_allocation

BITS = np.arange(1, 17)


def total(rows, value):
    return math.fsum(row[j] for row, j in zip(rows, value, strict=True))


def least_loss_by_enumeration(costs, losses, budget):
    allocations = itertools.product(*(range(len(row)) for row in costs))
    return min(total(losses, a) for a in allocations if total(costs, a) <= budget)


def least_loss_by_table(costs, losses, budget):
    """The textbook's dynamic programme: the least loss at every integer cost up to the budget."""
    best = np.where(np.arange(budget + 1) == 0, 0.0, np.inf)
    for cost, loss in zip(costs, losses, strict=True):
        reached = np.full_like(best, np.inf)
        for c, added in zip(cost, loss, strict=True):
            if c <= budget:
                reached[c:] = np.minimum(reached[c:], best[: budget + 1 - c] + added)
        best = reached
    return best.min()


def assert_no_upgrade_fits(solution, costs, losses, budget, flat=True):
    slack = budget - total(costs, solution.value)
    for cost, loss, j in zip(costs, losses, solution.value, strict=True):
        better = (loss <= loss[j]) & (cost > cost[j]) if flat else loss < loss[j]
        assert not (better & (cost - cost[j] <= slack)).any()


def assert_no_exchange_helps(solution, costs, losses, budget):
    """Every pair of choices of every two groups, so one step up and one down too."""
    slack = budget - total(costs, solution.value)
    away = [c - c[j] for c, j in zip(costs, solution.value, strict=True)]
    added = [row - row[j] for row, j in zip(losses, solution.value, strict=True)]
    for a, b in itertools.combinations(range(len(costs)), 2):
        fits = away[a][:, None] + away[b] <= slack
        worth = added[a][:, None] + added[b]
        assert worth[fits].min() >= -1e-12 * abs(solution.objective)


@st.composite
def problems(draw, groups=5, choices=4):
    """Few distinct numbers, so that ties in cost, in loss and with the budget are common."""
    unit = draw(st.sampled_from([1, 1, 0.125, 3, 1e6]))
    sizes = draw(st.lists(st.integers(1, choices), min_size=1, max_size=groups))

    def row(size):
        return np.array(draw(st.lists(st.integers(0, 8), min_size=size, max_size=size)), float)

    costs = [unit * row(size) for size in sizes]
    losses = [row(size) - 2 for size in sizes]
    least, most = (sum(f(c) for c in costs) for f in (min, max))
    return costs, losses, least + draw(st.floats(0, 1.1)) * (most - least)


def convex_problem(rng, groups=20):
    """Equal costs, a unit per bit."""
    falling = np.sort(rng.exponential(size=(groups, 15)) * rng.lognormal(size=(groups, 1)))
    losses = np.flip(np.cumsum(falling, axis=1), axis=1)
    losses = np.hstack([losses, np.zeros((groups, 1))]) + rng.random((groups, 1))
    return [BITS] * groups, list(losses), int(rng.integers(groups, 16 * groups + 1))


def rough_problem(rng, groups=20):
    """Layers of unequal sizes; measured losses that are not convex, half of them not falling."""
    costs = list(rng.integers(1, 40, (groups, 1)) * BITS)
    losses = rng.lognormal(size=(groups, 1)) * 2.0**-BITS * rng.lognormal(0, 0.7, (groups, 16))
    if rng.random() < 0.5:
        losses = -np.sort(-losses, axis=1)
    least, most = (sum(int(f(row)) for row in costs) for f in (min, max))
    return costs, list(losses), int(rng.integers(least, most))


def pair_problem(rng, layers=6, top=5):
    """BOPs: pairs of weight and input bits; the losses' tails are flat."""
    pairs = [(w, a) for w in range(1, top + 1) for a in range(1, top + 1)]
    macs = rng.integers(1, 50, layers)
    flat = rng.integers(1, top + 1, (2, layers))
    height = rng.integers(1, 9, (2, layers))
    costs = [m * np.array([w * a for w, a in pairs]) for m in macs]
    losses = [
        np.array(
            [sum(h * 4.0 ** -min(b, f) for b, f, h in zip(p, fs, hs, strict=True)) for p in pairs]
        )
        for fs, hs in zip(flat.T, height.T, strict=True)
    ]
    return pairs, costs, losses, int(rng.integers(macs.sum(), top**2 * macs.sum() + 1))


def test_the_default_is_exact_on_convex_losses_and_equal_costs():
    for seed in range(200):
        costs, losses, budget = convex_problem(np.random.default_rng(seed))
        solution = allocate(costs, losses, budget)
        least = least_loss_by_table(costs, losses, budget)
        assert solution.objective == pytest.approx(least, rel=1e-12)
        assert solution.stats["bound"] == pytest.approx(least, rel=1e-12)
        assert solution.stats["cost"] == budget


def test_the_default_stays_within_one_upgrade_of_the_exact_answer_on_rough_problems():
    for seed in range(200):
        costs, losses, budget = rough_problem(np.random.default_rng(seed))
        solution = allocate(costs, losses, budget)
        exact = allocate(costs, losses, budget, exact=True)
        least = least_loss_by_table(costs, losses, budget)
        assert exact.objective == pytest.approx(least, rel=1e-12)
        largest_upgrade = max((row[:-1] - row[1:]).max() for row in losses)
        assert exact.objective <= solution.objective <= exact.objective + largest_upgrade
        assert solution.stats["bound"] <= exact.objective
        for found in (solution, exact):
            assert found.objective == total(losses, found.value)
            assert found.stats["cost"] == total(costs, found.value) <= budget
            assert_no_upgrade_fits(found, costs, losses, budget)
            assert_no_exchange_helps(found, costs, losses, budget)


@given(problems())
def test_exact_equals_enumeration(problem):
    costs, losses, budget = problem
    solution = allocate(costs, losses, budget, exact=True)
    assert solution.objective == least_loss_by_enumeration(costs, losses, budget)
    assert solution.stats["cost"] == total(costs, solution.value) <= budget


@given(st.integers(0, 2**32 - 1))
def test_exact_equals_enumeration_at_real_costs_and_losses(seed):
    rng = np.random.default_rng(seed)
    costs, losses = ([rng.random(k) for k in (4, 2, 5, 3, 4)] for _ in range(2))
    budget = rng.uniform(sum(map(min, costs)), sum(map(max, costs)))
    solution = allocate(costs, losses, budget, exact=True)
    least = least_loss_by_enumeration(costs, losses, budget)
    assert solution.objective == pytest.approx(least, rel=1e-12)
    assert solution.stats["cost"] <= budget


@given(problems())
def test_the_default_keeps_its_promises_and_the_bound_is_below_every_allocation(problem):
    costs, losses, budget = problem
    solution = allocate(costs, losses, budget)
    assert solution.objective == total(losses, solution.value)
    assert solution.stats["cost"] == total(costs, solution.value) <= budget
    least = least_loss_by_enumeration(costs, losses, budget)
    assert solution.stats["bound"] <= least + 1e-9
    assert_no_upgrade_fits(solution, costs, losses, budget)
    assert_no_exchange_helps(solution, costs, losses, budget)


@given(st.integers(0, 2**32 - 1), st.booleans())
@example(seed=0, exact=False)
def test_no_one_bit_upgrade_of_a_pair_fits(seed, exact):
    pairs, costs, losses, budget = pair_problem(np.random.default_rng(seed))
    solution = allocate(costs, losses, budget, exact=exact)
    slack = budget - solution.stats["cost"]
    assert slack >= 0
    for cost, j in zip(costs, solution.value, strict=True):
        w, a = pairs[j]
        for upgrade in ((w + 1, a), (w, a + 1)):
            assert upgrade not in pairs or cost[pairs.index(upgrade)] - cost[j] > slack
    assert_no_upgrade_fits(solution, costs, losses, budget)
    assert_no_exchange_helps(solution, costs, losses, budget)


@given(problems())
def test_without_maximal_nothing_is_spent_on_equal_losses(problem):
    costs, losses, budget = problem
    frugal = allocate(costs, losses, budget, maximal=False)
    for cost, loss, j in zip(costs, losses, frugal.value, strict=True):
        assert cost[j] == cost[loss <= loss[j]].min()
    assert_no_upgrade_fits(frugal, costs, losses, budget, flat=False)
    assert frugal.objective >= least_loss_by_enumeration(costs, losses, budget)


def test_flat_losses_leave_the_budget_unspent_only_without_maximal():
    costs, losses = [[2, 4, 6]] * 2, [[1.0, 0.0, 0.0]] * 2
    assert allocate(costs, losses, 11).value.tolist() == [2, 1]
    assert allocate(costs, losses, 11, maximal=False).value.tolist() == [1, 1]


@given(problems())
def test_the_bound_is_the_lagrangian_dual_at_the_multiplier(problem):
    costs, losses, budget = problem
    stats = allocate(costs, losses, budget).stats
    slope = stats["multiplier"]
    assert slope >= 0
    dual = sum(min(loss + slope * cost) for cost, loss in zip(costs, losses, strict=True))
    # The dual is piecewise linear and concave in the multiplier: no other one bounds better.
    most = budget if slope else 0.0
    assert stats["bound"] == pytest.approx(dual - slope * most, abs=1e-9)
    for other in (0.5 * slope, 1.5 * slope + 1e-9):
        dual = sum(min(loss + other * cost) for cost, loss in zip(costs, losses, strict=True))
        assert stats["bound"] >= dual - other * budget - 1e-9


def test_an_exchange_escapes_from_the_greedy_answer():
    # The best slope is group 0's; taken first, it leaves no room for group 1's, which saves more.
    costs, losses = [[0, 4, 5], [0, 7]], [[10.0, 4.0, 3.9], [10.0, 1.0]]
    solution = allocate(costs, losses, 8)
    assert solution.value.tolist() == [0, 1]
    assert solution.stats["exchanges"] == 1


def test_the_partner_of_an_exchange_is_another_group():
    # Group 0's own way down is the cheapest there is, and no partner for its way up.
    costs = [np.array([0, 3, 6]), np.array([0, 5])]
    losses = [np.array([2.0, 1.9, 0.0]), np.array([1.1, 0.0])]
    for budget in range(12):
        solution = allocate(costs, losses, budget)
        assert_no_exchange_helps(solution, costs, losses, budget)


@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_choices_does_not_matter(problem, random):
    costs, losses, budget = problem
    orders = [random.sample(range(len(row)), len(row)) for row in costs]
    shuffled = ([row[o] for row, o in zip(rows, orders, strict=True)] for rows in (costs, losses))
    plain, other = allocate(costs, losses, budget), allocate(*shuffled, budget)
    chosen = [o[j] for o, j in zip(orders, other.value, strict=True)]
    assert total(losses, chosen) == plain.objective
    assert total(costs, chosen) == plain.stats["cost"]


@pytest.mark.parametrize("groups", [8, 2000])
@given(st.integers(0, 2**32 - 1), st.sampled_from([-900, 0, 900]))
def test_the_budget_holds_to_the_last_digit_of_any_cost(groups, seed, exponent):
    """All costs together meet the budget, or are one unit in the last place too dear."""
    costs = np.random.default_rng(seed).random(groups) * 2.0**exponent
    met = math.fsum(costs)
    costs = np.append(costs, met)  # Never worth taking; keeps `met` from being all there is.
    rows, losses = np.stack([0 * costs, costs], 1), np.stack([1 + 0 * costs, 0 * costs], 1)
    for budget in (met, np.nextafter(met, 0)):
        solution = allocate(rows, losses, budget)
        assert math.fsum(costs[solution.value == 1]) == solution.stats["cost"] <= budget
        assert solution.value.sum() in (groups - 1, groups)


def test_a_budget_met_by_the_rounded_total_is_met():
    # Ten times the float 0.1 is a little over 1, and `math.fsum` rounds it to 1.
    assert allocate([[0.0, 0.1]] * 10, [[1.0, 0.0]] * 10, 1.0).value.sum() == 10


def test_an_infinite_budget_takes_the_least_loss_of_every_group():
    solution = allocate([[3.0, 1.0, 2.0], [5.0]], [[2.0, 7.0, 1.0], [4.0]], math.inf)
    assert solution.value.tolist() == [2, 0]
    assert solution.stats["multiplier"] == 0
    assert solution.stats["bound"] == solution.objective == 5


def test_the_least_feasible_budget_gives_the_cheapest_choices():
    costs, losses = [[3, 1, 2], [4, 9]], [[0.0, 5.0, 1.0], [1.0, 0.0]]
    assert allocate(costs, losses, 5).value.tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"costs 5 in all.*`budget` of 4\.5: raise the budget"):
        allocate(costs, losses, 4.5)


def test_costs_of_zero_are_no_obstacle():
    solution = allocate([[0, 0, 0], [0, 0]], [[3.0, 1.0, 2.0], [0.5, 0.5]], 0)
    assert solution.value.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("costs", "losses", "budget", "message"),
    [
        ([], [], 1, "`costs` must hold at least one group"),
        ([[1]], [[1], [2]], 1, "same groups, got 1 and 2"),
        ([[1], [1, 2]], [[1], [1]], 9, r"`costs\[1\]` and `losses\[1\]` must have the same shape"),
        ([[1], []], [[1], []], 9, r"`costs\[1\]` must be a non-empty array"),
        ([[1]], [[[1]]], 9, r"`losses\[0\]` must be a non-empty array of one axis.*\(1, 1\)"),
        ([[1], [2, -3]], [[1], [1, 1]], 9, r"`costs\[1\]` must be finite and >= 0, got -3"),
        ([[1], [2, 3]], [[1], [1, np.nan]], 9, r"`losses\[1\]` must be finite, got nan"),
        ([[np.inf]], [[1]], 9, r"`costs\[0\]` must be finite and >= 0, got inf"),
        ([[1]], [[1]], math.nan, "`budget` must be a finite number of 0 or more or inf, got nan"),
        ([[1]], [[1]], -1, "`budget` must be a finite number of 0 or more or inf, got -1"),
    ],
)
def test_wrong_arguments_are_named(costs, losses, budget, message):
    with pytest.raises(ValueError, match=message):
        allocate(costs, losses, budget)


def test_exact_gives_up_by_name_where_too_many_partial_allocations_remain(monkeypatch):
    monkeypatch.setattr(exact_allocation, "MAX_STATES", 10_000)
    costs = 2 * np.random.default_rng(0).integers(1, 10**12, (30, 5))
    with pytest.raises(ValueError, match="more than 10000 partial allocations.*exact=False"):
        allocate(costs, -1.0 * costs, int(costs.mean(axis=1).sum()) | 1, exact=True)


@pytest.mark.parametrize("exact", [False, True])
def test_thousands_of_channels_and_hundreds_of_pairs_take_no_time_to_speak_of(exact):
    rng = np.random.default_rng(0)
    bits = np.arange(17)
    weights = rng.integers(100, 2_000_000, (5000, 1))
    losses = rng.lognormal(0, 2, (5000, 1)) * 4.0**-bits * rng.lognormal(0, 0.3, (5000, 17))
    start = time.perf_counter()
    allocate(weights * bits, losses, int(4.3 * weights.sum()), exact=exact)
    channels = time.perf_counter()

    macs = rng.integers(10**4, 10**8, (60, 1))
    w, a = np.repeat(BITS, 16), np.tile(BITS, 16)
    losses = rng.lognormal(0, 2, (60, 1)) * 4.0**-w + rng.lognormal(0, 2, (60, 1)) * 4.0**-a
    allocate(macs * w * a, losses, int(16.3 * macs.sum()), exact=exact)
    # Some 0.1 s (exact: 0.4 s) and 0.01 s on one core; room for a busy machine.
    assert channels - start < 4
    assert time.perf_counter() - channels < 1
