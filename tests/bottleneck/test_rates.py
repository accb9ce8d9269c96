"""Rates under a budget: what is spent, what is refused, and what no exchange improves."""

import itertools

import numpy as np
import pytest

from bitjax.bottleneck.rates import Curve, allocate_rates, equal_psnr, mixed_precision_gain
from bitjax.costs.site import SiteCost

BITS = np.arange(1, 9)


def curve(energy, slope=4.0, peak=1.0):
    return Curve(BITS, energy * slope ** -BITS.astype(float), 2.0**-BITS, peak)


def site(elements=8, macs=64):
    return SiteCost(macs, elements, 1, "x", "x", "input")


CURVES = {name: curve(4.0**i) for i, name in enumerate("abcd")}
COSTS = {name: site() for name in "abcd"}


def loss(bits, weights=None):
    return sum(
        0.5 * (weights or {}).get(s, 1.0) * COSTS[s].elements * CURVES[s].distortion[k - 1]
        for s, k in bits.items()
    )


@pytest.mark.parametrize("rate", [2.0, 3.1, 4.0, 5.5])
@pytest.mark.parametrize("weights", [None, {"a": 70.0, "b": 1.0, "c": 0.1, "d": 3.0}])
def test_it_is_the_best_of_all_allocations_within_the_budget(rate, weights):
    found = allocate_rates(CURVES, COSTS, rate, weights=weights, max_bits=6, exact=True)
    every = (
        dict(zip("abcd", bits, strict=True))
        for bits in itertools.product(range(2, 7), repeat=4)
        if sum(bits) <= rate * 4
    )
    assert found.objective == pytest.approx(min(loss(bits, weights) for bits in every))
    assert found.objective == pytest.approx(loss(found.value, weights))
    assert found.stats["average"] <= rate


def test_a_rate_by_elements_counts_large_sites_more():
    costs = {**COSTS, "d": site(elements=800)}
    assert allocate_rates(CURVES, costs, 3.0).value["d"] > 3  # it has the most to lose
    found = allocate_rates(CURVES, costs, 3.0, cost="elements")
    assert found.stats["average_by_elements"] <= 3.0
    assert found.value["d"] == 3  # nobody else can pay for a plane of it


def test_equal_bounds_make_rates_uniform():
    assert set(allocate_rates(CURVES, COSTS, 3.0, min_bits=3, max_bits=3).value.values()) == {3}


def test_the_psnr_knob_treats_every_site_alike():
    loud = {"a": curve(1.0), "b": curve(100.0, peak=10.0)}  # the same but for the unit
    assert equal_psnr(loud, 24.0) == {"a": 4, "b": 4}
    assert equal_psnr(loud, 99.0) == {"a": 8, "b": 8}  # out of reach


def test_the_gain_of_unequal_rates_is_the_arithmetic_over_the_geometric_mean():
    found = mixed_precision_gain({"a": curve(1.0), "b": curve(100.0)}, COSTS)
    assert found == pytest.approx(10 * np.log10(50.5 / 10.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 1.5}, r"`rate` must be in \[2, 8\], from `min_bits` to `max_bits`, got 1.5"),
        ({"rate": 9.0}, r"`rate` must be in \[2, 8\]"),
        ({"curves": {}}, "`curves` must hold at least one site"),
        ({"curves": {"e": curve(1.0)}}, "'e', which is no site of `costs`"),
        ({"weights": {"a": 1.0}}, "`weights` has no 'b'"),
        ({"max_bits": 9}, "no rate 9: solve it from `min_bits` 2 to `max_bits` 9"),
        ({"cost": "bops"}, "`cost` must be one of"),
    ],
)
def test_what_cannot_be_allocated_is_one_clear_line(change, message):
    arguments = {"curves": CURVES, "costs": COSTS, "rate": 4.0, **change}
    with pytest.raises(ValueError, match=message):
        allocate_rates(**arguments)
