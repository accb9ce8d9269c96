"""Penalties and budgets against sums by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.costs.budget import (
    Budget,
    budget,
    budget_sites,
    cost_of,
    exact_cost,
    penalty,
)
from bitjax.costs.site import SiteCost

# Two layers: 100 and 300 multiply-adds, kernels of 20 and 60 elements, inputs of 5 and 15.
COSTS = {
    "a/kernel": SiteCost(100, 20, 2, "a/kernel", "a", "kernel"),
    "a/input": SiteCost(100, 5, 2, "a/input", "a", "input"),
    "b/kernel": SiteCost(300, 60, 2, "b/kernel", "b", "kernel"),
    "b/input": SiteCost(300, 15, 2, "b/input", "b", "input"),
}


def quant(a_kernel, a_input, b_kernel, b_input):
    values = {"a": (a_kernel, a_input), "b": (b_kernel, b_input)}
    return {
        layer: {
            role: {"bits": jnp.asarray(n, jnp.float32)}
            for role, n in zip(("kernel", "input"), pair, strict=True)
        }
        for layer, pair in values.items()
    }


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("equal", (2 + 4 + 6 + 8) / 4),
        ("macs", (2 * 100 + 4 * 100 + 6 * 300 + 8 * 300) / 800),
        ("bytes", (2 * 20 + 4 * 5 + 6 * 60 + 8 * 15) / 100),
        ("bops", (2 * 4 * 100 + 6 * 8 * 300) / (8 * 400)),
        ({"a/kernel": 0.5, "b/input": 2.0}, 0.5 * 2 + 2.0 * 8),
    ],
    ids=str,
)
def test_every_penalty_is_the_sum_in_its_table(criterion, expected):
    assert float(penalty(quant(2, 4, 6, 8), COSTS, criterion)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("criterion", ["equal", "macs", "bytes", "bops"])
def test_eight_bits_everywhere_cost_eight_whatever_the_network(criterion):
    assert float(penalty(quant(8, 8, 8, 8), COSTS, criterion)) == pytest.approx(8.0, rel=1e-6)


def test_channels_count_their_mean_and_a_scanned_site_each_of_its_layers():
    costs = {
        "scan/kernel": COSTS["a/kernel"]._replace(count=3),
        "b/kernel": COSTS["b/kernel"],
    }
    bits = {"scan/kernel": np.array([[1.0, 3.0], [4.0, 4.0], [9.0, 3.0]]), "b/kernel": 8.0}
    tree = {s.split("/")[0]: {"kernel": {"bits": jnp.asarray(n)}} for s, n in bits.items()}
    assert float(penalty(tree, costs)) == pytest.approx((2 + 4 + 6 + 8) / 4)
    assert float(penalty(tree, costs, "bytes")) == pytest.approx((20 * 4 + 60 * 8) / 80)


def test_float_sites_are_no_part_of_a_penalty_but_count_32_in_bops():
    tree = {"a": {"kernel": {"bits": jnp.float32(4.0)}}}
    assert float(penalty(tree, COSTS)) == 4.0
    assert float(penalty(tree, COSTS, "bops")) == pytest.approx(4 * 32 * 100 / (8 * 100))


@pytest.mark.parametrize(
    ("criterion", "slopes"),
    [
        ("equal", [1 / 4] * 4),
        ("macs", [1 / 8, 1 / 8, 3 / 8, 3 / 8]),
        ("bytes", [0.2, 0.05, 0.6, 0.15]),
        ("bops", [4 / 32, 2 / 32, 8 * 3 / 32, 6 * 3 / 32]),
        ({"b/kernel": 0.7}, [0.0, 0.0, 0.7, 0.0]),
    ],
    ids=str,
)
def test_the_slope_of_a_penalty_is_its_weight(criterion, slopes):
    grads = jax.grad(lambda q: penalty(q, COSTS, criterion))(quant(2, 4, 6, 8))
    found = [float(grads[n][role]["bits"]) for n in "ab" for role in ("kernel", "input")]
    np.testing.assert_allclose(found, slopes, rtol=1e-6)


def test_an_unknown_criterion_or_site_is_named_with_the_choices():
    with pytest.raises(ValueError, match=r"one of \['equal', 'macs', 'bytes', 'bops'\].*'size'"):
        penalty(quant(1, 1, 1, 1), COSTS, "size")
    with pytest.raises(ValueError, match="'c/kernel', which is no site. Sites: a/kernel, a/input"):
        penalty(quant(1, 1, 1, 1), COSTS, {"c/kernel": 1.0})


@pytest.mark.parametrize("criterion", [{}, {"a/kernel": 0.0}, {"a/kernel": -1.0}, 4.0, None])
def test_a_criterion_that_counts_nothing_is_refused(criterion):
    with pytest.raises(ValueError, match="must"):
        penalty(quant(1, 1, 1, 1), COSTS, criterion)


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), -1.0, "4", True])
def test_a_limit_that_is_no_limit_is_refused(limit):
    with pytest.raises(ValueError, match="`limit` must be a finite number above 0"):
        budget("bits", limit)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("bits", 5.0),
        ("bytes", (2 * 20 + 6 * 60) / 8),
        ("activation_bytes", (4 * 5 + 8 * 15) / 8),
        ("bops", 2 * 4 * 100 + 6 * 8 * 300),
    ],
)
def test_a_budget_limits_the_cost_in_its_own_unit(metric, expected):
    bits = {"a/kernel": 2.0, "a/input": 4.0, "b/kernel": 6.0, "b/input": 8.0}
    limit = budget(metric, 1.0)
    assert float(cost_of(limit, bits, COSTS)) == pytest.approx(expected, rel=1e-6)
    assert exact_cost(limit, bits, COSTS) == expected


def test_the_exact_cost_does_not_round_as_float32_does():
    big = {"a/kernel": SiteCost(1, 2**28 + 8, 1, "", "a", "kernel")}
    assert exact_cost(budget("bytes", 1.0), {"a/kernel": 1.0}, big) == 2**25 + 1
    many = {f"{i}/kernel": SiteCost(1, 1, 1, "", f"{i}", "kernel") for i in range(10)}
    assert exact_cost(budget("bits", 1.0), dict.fromkeys(many, 4.1), many) == pytest.approx(4.1)


def test_a_budget_counts_the_sites_it_can():
    assert budget_sites(budget("bits", 4.0, "a/.*"), COSTS) == ["a/kernel", "a/input"]
    assert budget_sites(budget("bytes", 4.0), COSTS) == ["a/kernel", "b/kernel"]
    assert budget_sites(budget("activation_bytes", 4.0), COSTS) == ["a/input", "b/input"]
    assert budget_sites(budget("bops", 4.0, "b/.*|a/input"), COSTS) == ["b/kernel", "b/input"]


def test_a_wrong_budget_is_one_clear_line():
    with pytest.raises(ValueError, match=r"one of \['bits', .*'bops'\], got 'size'"):
        budget("size", 1.0)
    with pytest.raises(ValueError, match="`limit` must be a finite number above 0, got 0"):
        budget("bits", 0.0)
    with pytest.raises(ValueError, match="names sites 'c/.*', which match none.* a/kernel"):
        budget_sites(Budget("bits", 4.0, "c/.*"), COSTS)
    with pytest.raises(ValueError, match=r"counts. Sites: a/kernel, b/kernel\.$"):
        budget_sites(Budget("bytes", 4.0, ".*/input"), COSTS)
