"""Bits from tables of losses, under several budgets: feasible, and beside all assignments."""

import itertools

import numpy as np
import pytest

import bitjax as bj
from bitjax.costs.choosing import choices_of, choose
from bitjax.costs.site import SiteCost

CANDIDATES = (2, 3, 4)
# Two layers that read one tensor, of 64 elements.
COSTS = {
    "a/kernel": SiteCost(640, 640, 10, "a/kernel", "a", "kernel"),
    "a/input": SiteCost(640, 64, 10, "a/input", "a", "input"),
    "b/kernel": SiteCost(1280, 1280, 20, "b/kernel", "b", "kernel"),
    "b/input": SiteCost(1280, 64, 20, "a/input", "b", "input"),
}
SITES = tuple(COSTS)
ALL = np.array(list(itertools.product(range(3), repeat=4)))
BUDGETS = {
    "bits": [bj.budget("bits", 3.0)],
    "bytes": [bj.budget("bytes", 700.0)],
    "activation bytes": [bj.budget("activation_bytes", 24.0)],
    "bops and bytes": [bj.budget("bops", 18_000.0), bj.budget("bytes", 700.0)],
    "all": [bj.budget("bops", 18_000.0), bj.budget("bytes", 800.0), bj.budget("bits", 3.0)],
}


def falling_losses(seed):
    return np.sort(np.random.default_rng(seed).exponential(size=(4, 3)), axis=1)[:, ::-1]


@pytest.mark.parametrize("name", BUDGETS)
def test_the_bits_are_within_a_few_per_cent_of_the_best_assignment_and_meet_every_budget(name):
    choices = choices_of(SITES, CANDIDATES, {}, COSTS, BUDGETS[name])
    feasible = ALL[choices.fit(ALL)]
    over, best = [], 0
    for seed in range(40):
        losses = falling_losses(seed)
        at = choose(choices, losses)
        assert choices.fit(at)
        least = losses[np.arange(4), feasible].sum(axis=1).min()
        over.append(losses[np.arange(4), at].sum() / least)
        best += over[-1] < 1 + 1e-9
    assert best >= 30 and np.mean(over) < 1.03


@pytest.mark.parametrize("name", BUDGETS)
def test_costs_of_many_assignments_are_those_of_each(name):
    choices = choices_of(SITES, CANDIDATES, {}, COSTS, BUDGETS[name])
    for place, spent in zip(ALL[::9], choices.spent(ALL)[::9], strict=True):
        bits = {s: np.float64(n) for s, n in choices.bits(place).items()}
        for limit, share in zip(BUDGETS[name], spent, strict=True):
            metric = {"bits": bj.average_bits, "bytes": bj.kernel_bytes, "bops": bj.bops,
                      "activation_bytes": bj.activation_bytes}[limit.metric]  # fmt: skip
            assert share == float(metric(bits, COSTS)) / limit.limit


def test_readers_of_one_tensor_are_lowered_together():
    losses = np.array([[0.0, 0, 0], [3, 2, 1], [0, 0, 0], [3, 2, 1]])
    choices = choices_of(SITES, CANDIDATES, {}, COSTS, [bj.budget("activation_bytes", 24.0)])
    assert list(choices.bits(choose(choices, losses)).values()) == [4, 3, 4, 3]


def test_bits_of_other_sites_count_and_stay():
    limit = bj.budget("bytes", 800.0)
    choices = choices_of(("a/kernel",), CANDIDATES, {"b/kernel": 3.5}, COSTS, [limit])
    assert choices.bits(choose(choices, np.array([[3.0, 2.0, 1.0]]))) == {"a/kernel": 3}


def test_a_budget_below_the_least_bits_says_what_those_cost():
    choices = choices_of(SITES, CANDIDATES, {}, COSTS, [bj.budget("bytes", 400.0)])
    with pytest.raises(ValueError, match="cannot be met: the fewest bits allowed cost 480"):
        choose(choices, np.zeros((4, 3)))
