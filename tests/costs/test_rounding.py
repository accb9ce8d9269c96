"""Learned bits become integers: to the nearest, up, or under budgets that they meet and use up."""

import math
import re
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings

from bitjax.costs.budget import Budget, budget
from bitjax.costs.rounding import round_bits
from bitjax.costs.site import SiteCost

# A small network: two branches read one tensor, one layer is scanned, one keeps fixed bits.
COSTS = {
    "stem/kernel": SiteCost(4000, 40, 4, "stem/kernel", "stem", "kernel"),
    "stem/input": SiteCost(4000, 100, 4, "stem/input", "stem", "input"),
    "left/kernel": SiteCost(900, 72, 4, "left/kernel", "left", "kernel"),
    "left/input": SiteCost(900, 64, 4, "left/input", "left", "input"),
    "right/kernel": SiteCost(300, 24, 4, "right/kernel", "right", "kernel"),
    "right/input": SiteCost(300, 64, 4, "left/input", "right", "input"),
    "body/kernel": SiteCost(1200, 96, 4, "body/kernel", "body", "kernel", count=2),
    "body/input": SiteCost(1200, 128, 4, "body/input", "body", "input", count=2),
    "head/kernel": SiteCost(80, 40, 10, "head/kernel", "head", "kernel"),
    "head/input": SiteCost(80, 8, 10, "head/input", "head", "input"),
}
SHAPES = {
    "tensor": {site: (c.count, 1) if c.count > 1 else () for site, c in COSTS.items()},
    "channel": {
        site: (c.count, 1, 4) if c.count > 1 else (1, 4) if c.role == "kernel" else ()
        for site, c in COSTS.items()
    },
    "channel everywhere": {
        site: (c.count, 1, 4) if c.count > 1 else (1, 4) for site, c in COSTS.items()
    },
}
LEARNED = [site for site in COSTS if not site.startswith("head")]
LIMITS = {site: (2.0, 7.0) if "kernel" in site else (1.0, 8.0) for site in LEARNED}


def layers(site, bits):
    """The mean bits of each layer that a site's name stands for, exactly."""
    rows = np.reshape(bits, (COSTS[site].count, -1)).tolist()
    return [sum(map(Fraction, row)) / len(row) for row in rows]


def reference_cost(limit, bits):
    """A budget's cost in exact arithmetic, written a second time and as plainly as it goes."""
    chosen = [site for site in COSTS if re.fullmatch(limit.sites, site)]
    mean = {site: layers(site, n) for site, n in bits.items()}
    if limit.metric == "bits":
        total = sum(sum(mean[site]) for site in chosen)
        return total / sum(COSTS[site].count for site in chosen)
    size = {s: sum(m) / len(m) * Fraction(COSTS[s].elements, 8) for s, m in mean.items()}
    if limit.metric == "bytes":
        return sum(size[site] for site in chosen if site.endswith("kernel"))
    if limit.metric == "activation_bytes":
        read = [site for site in chosen if site.endswith("input")]
        sources = {COSTS[site].source for site in read}
        return sum(max(size[s] for s in read if COSTS[s].source == t) for t in sources)
    total = Fraction(0)
    for kernel in (site for site in chosen if site.endswith("kernel")):
        pairs = zip(mean[kernel], mean[kernel.replace("kernel", "input")], strict=True)
        products = [w * a for w, a in pairs]
        total += COSTS[kernel].macs * sum(products) / len(products)
    return total


def meets(limit, bits):
    return float(reference_cost(limit, bits)) <= limit.limit


def upgrades(bits, sites):
    """`bits` with one more bit at one place, for every place within its limits."""
    for site in sites:
        for place in range(bits[site].size):
            raised = np.array(bits[site])
            raised.reshape(-1)[place] += 1
            if raised.reshape(-1)[place] <= LIMITS[site][1]:
                yield {**bits, site: raised}


@st.composite
def problems(draw, metrics=("bits", "bytes", "activation_bytes", "bops")):
    """Learned bits, and a budget between what the least and the most bits cost."""
    shapes = SHAPES[draw(st.sampled_from(sorted(SHAPES)))]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bits = {site: np.float32(8.0) for site in COSTS}
    bits |= {site: rng.uniform(*LIMITS[site], shapes[site]).astype(np.float32) for site in LEARNED}
    pattern = draw(st.sampled_from([".*", "(stem|left|body)/.*", ".*/(kernel|input)"]))
    limits = []
    for metric in draw(st.lists(st.sampled_from(metrics), min_size=1, max_size=2, unique=True)):
        ends = [
            reference_cost(
                Budget(metric, 1.0, pattern),
                {**bits, **{s: np.full(shapes[s], LIMITS[s][end]) for s in LEARNED}},
            )
            for end in (0, 1)
        ]
        share = draw(st.fractions(0, 1, max_denominator=16))
        # A little more than the least bits cost, for two budgets may leave no exact place.
        limit = float(ends[0] + share * (ends[1] - ends[0]))
        limits.append(budget(metric, math.nextafter(limit, math.inf), pattern))
    return bits, limits


@given(problems())
def test_budgets_are_met_and_no_single_bit_more_fits(problem):
    bits, limits = problem
    rounded = round_bits(bits, COSTS, LIMITS, "budget", limits)
    assert set(rounded) == set(LEARNED), "fixed sites are left alone"
    final = {**bits, **rounded}
    for site, n in rounded.items():
        assert n.dtype == np.float32 and n.shape == bits[site].shape
        assert np.all(n == np.rint(n)) and LIMITS[site][0] <= n.min() <= n.max() <= LIMITS[site][1]
    for limit in limits:
        assert meets(limit, final), limit
    counted = [s for s in LEARNED if any(counts(limit, s) for limit in limits)]
    better = [b for b in upgrades(final, counted) if all(meets(limit, b) for limit in limits)]
    assert not better
    for site in set(LEARNED) - set(counted):
        np.testing.assert_array_equal(rounded[site], np.clip(np.rint(bits[site]), *LIMITS[site]))


def counts(limit, site):
    """Whether a budget counts a site: some bits of the site cost something there."""
    role = {"bytes": "kernel", "activation_bytes": "input"}.get(limit.metric, "")
    return re.fullmatch(limit.sites, site) is not None and site.endswith(role)


def test_ceil_goes_up_and_nearest_to_the_nearest_both_within_limits():
    bits = {"left/kernel": np.float32(3.2), "left/input": np.array([[4.6, 7.9, 1.2, 0.3]])}
    limits = {"left/kernel": (2, 7), "left/input": (2, 7)}
    up = round_bits(bits, COSTS, limits, "ceil")
    near = round_bits(bits, COSTS, limits, "nearest")
    assert (float(up["left/kernel"]), up["left/input"].tolist()) == (4.0, [[5.0, 7.0, 2.0, 2.0]])
    assert (float(near["left/kernel"]), near["left/input"].tolist()) == (
        3.0,
        [[5.0, 7.0, 2.0, 2.0]],
    )
    assert list(up) == ["left/kernel", "left/input"]


def test_fractional_limits_are_taken_inwards():
    rounded = round_bits({"left/kernel": np.float32(9.0)}, COSTS, {"left/kernel": (1.5, 7.5)})
    assert float(rounded["left/kernel"]) == 7.0
    rounded = round_bits({"left/kernel": np.float32(0.1)}, COSTS, {"left/kernel": (1.5, 7.5)})
    assert float(rounded["left/kernel"]) == 2.0


@pytest.mark.slow
@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
@example(0)
def test_an_average_of_exactly_four_is_reached_exactly(seed):
    costs = {f"{i}/kernel": SiteCost(10, 10 + i, 1, "", f"{i}", "kernel") for i in range(36)}
    rng = np.random.default_rng(seed)
    bits = {site: np.float32(rng.uniform(2.0, 6.5)) for site in costs}
    limits = dict.fromkeys(costs, (2.0, 8.0))
    rounded = round_bits(bits, costs, limits, "budget", [budget("bits", 4.0)])
    assert sum(float(n) for n in rounded.values()) == 144


def test_an_average_over_thirds_of_a_bit_is_reached_exactly():
    costs = {f"{i}/kernel": SiteCost(10, 9, 3, "", f"{i}", "kernel") for i in range(7)}
    bits = {site: np.array([3.9, 4.6, 5.5], np.float32) for site in costs}
    limits = dict.fromkeys(costs, (2.0, 8.0))
    rounded = round_bits(bits, costs, limits, "budget", [budget("bits", 4.0)])
    assert sum(float(n.sum()) for n in rounded.values()) == 7 * 3 * 4


def test_tensors_with_several_readers_are_lowered_at_all_of_them():
    bits = {**{site: np.float32(8.0) for site in COSTS}, "left/input": 5.0, "right/input": 4.9}
    limits = dict.fromkeys(("left/input", "right/input"), (1.0, 8.0))
    limit = budget("activation_bytes", 8.0 * 3.5, "(left|right)/.*")  # 64 elements at 3.5 bits
    rounded = round_bits(bits, COSTS, limits, "budget", [limit])
    assert {site: float(n) for site, n in rounded.items()} == dict.fromkeys(limits, 3.0)


def test_a_reader_with_fixed_bits_makes_fewer_bits_elsewhere_pointless():
    bits = {**{site: np.float32(8.0) for site in COSTS}, "left/input": np.float32(3.0)}
    limit = budget("activation_bytes", 8.0 * 8.5, "(left|right)/.*")
    rounded = round_bits(bits, COSTS, {"left/input": (1.0, 16.0)}, "budget", [limit])
    assert float(rounded["left/input"]) == 8.0  # right/input stores the tensor at 8 bits anyway


def test_channels_that_learned_more_bits_get_more():
    bits = {"left/kernel": np.array([[2.2, 6.8, 4.1, 4.0]], np.float32)}
    limits = {"left/kernel": (1.0, 8.0)}
    for limit in (budget("bytes", 36.0, "left/.*"), budget("bops", 4 * 32 * 900.0, "left/.*")):
        rounded = round_bits(bits, COSTS, limits, "budget", [limit])["left/kernel"]
        assert rounded.tolist() == [[2.0, 6.0, 4.0, 4.0]] or rounded.tolist() == [
            [2.0, 7.0, 4.0, 3.0]
        ], limit


def test_a_budget_that_the_least_bits_miss_is_one_clear_line():
    bits = {site: np.float32(4.0) for site in COSTS}
    for metric, low in (("bits", 1.0), ("bytes", 9.0), ("activation_bytes", 2.0), ("bops", 9.0)):
        with pytest.raises(ValueError, match="the fewest bits allowed cost") as caught:
            round_bits(bits, COSTS, LIMITS, "budget", [budget(metric, low)])
        assert metric in str(caught.value) and "\n" not in str(caught.value)
        assert "Raise the budget or lower `min_bits`" in str(caught.value)


def test_a_budget_on_sites_that_cannot_move_is_checked_too():
    bits = {site: np.float32(8.0) for site in COSTS}
    limits = {"stem/kernel": (1.0, 8.0)}
    with pytest.raises(ValueError, match="the fewest bits allowed cost 8"):
        round_bits(bits, COSTS, limits, "budget", [budget("bits", 4.0, "head/.*")])
    met = round_bits(bits, COSTS, limits, "budget", [budget("bits", 8.0, "head/.*")])
    assert float(met["stem/kernel"]) == 8.0


def test_unknown_policies_and_missing_budgets_are_named():
    bits = {"left/kernel": np.float32(4.0)}
    with pytest.raises(ValueError, match="`policy` must be one of .*'floor'"):
        round_bits(bits, COSTS, {}, "floor")
    with pytest.raises(ValueError, match="rounding='budget' needs a budget"):
        round_bits(bits, COSTS, {}, "budget")
