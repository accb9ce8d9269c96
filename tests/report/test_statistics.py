"""Intervals as scipy has them; fronts as the definition has them."""

import hypothesis.strategies as st
import pytest
import scipy.stats
from hypothesis import given

from bitjax.report.figures import Figure, cost_of
from bitjax.report.statistics import Difference, paired_difference, pareto_front, summarize
from bitjax.report.tables import difference

accuracies = st.floats(0.0, 1.0)


@given(
    st.lists(st.tuples(accuracies, accuracies), min_size=2, max_size=8),
    st.sampled_from((0.8, 0.95, 0.99)),
)
def test_the_interval_is_that_of_scipys_paired_test(pairs, confidence):
    ours, theirs = zip(*pairs, strict=True)
    found = paired_difference(dict(enumerate(ours)), dict(enumerate(theirs)), confidence)
    differences = [a - b for a, b in pairs]
    if found.low is None:
        assert max(differences) - min(differences) < 1e-11  # scipy divides by 0 there
        return
    if max(differences) - min(differences) < 1e-9:
        assert found.high - found.low < 1e-7
        return
    wanted = scipy.stats.ttest_rel(ours, theirs).confidence_interval(confidence)
    assert found.low == pytest.approx(wanted.low, rel=1e-9, abs=1e-12)
    assert found.high == pytest.approx(wanted.high, rel=1e-9, abs=1e-12)


def test_only_seeds_that_both_have_are_paired():
    found = paired_difference({0: 0.5, 1: 0.6, 7: 0.1}, {1: 0.7, 0: 0.7, 3: 0.2})
    assert found.seeds == (0, 1) and found.mean == pytest.approx(-0.15)
    assert paired_difference({0: 0.5}, {1: 0.5}) is None


def test_one_pair_has_a_difference_and_no_interval():
    found = paired_difference({0: 0.5}, {0: 0.75})
    assert found == (-0.25, None, None, (0,))


def test_seeds_that_all_differ_by_the_same_give_no_interval_of_width_zero():
    found = paired_difference({0: 0.5, 1: 0.6}, {0: 0.75, 1: 0.85})
    assert found.mean == pytest.approx(-0.25) and (found.low, found.high) == (None, None)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1, float("nan")])
def test_a_confidence_outside_0_and_1_is_refused(confidence):
    with pytest.raises(ValueError, match=r"`confidence` must be in \(0, 1\)"):
        paired_difference({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.6}, confidence)


def test_the_standard_deviation_is_the_samples():
    assert summarize([1.0, 2.0, 4.0]).std == pytest.approx(1.5275252316519468)
    assert summarize([1.0]) == (1.0, None, 1)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_a_point_is_on_the_front_unless_another_is_as_good_and_better_somewhere(points):
    costs = [float(c) for c, _ in points]
    values = [float(v) for _, v in points]
    wanted = [
        not any(c <= cost and v >= value and (c < cost or v > value) for c, v in points)
        for cost, value in points
    ]
    assert pareto_front(costs, values) == wanted


@pytest.mark.parametrize(
    ("scale", "digits", "shown"),
    [(0.01, 2, "-1.00 [-2.00, 0.00]"), (1.0, 3, "-0.010 [-0.020, 0.000]")],
)
def test_a_difference_has_the_scores_unit_and_an_interval_where_it_has_one(scale, digits, shown):
    score = Figure("score", "score", digits, scale, "")
    assert difference(Difference(-0.01, -0.02, 0.0, (0, 1, 2)), score) == f"{shown} (3)"
    assert difference(Difference(-0.01, None, None, (0,)), score) == f"{shown.split()[0]} (1)"


def test_an_accelerator_costs_the_inverse_of_its_speed_up():
    assert cost_of({"loom": 4.0}, "loom") == 0.25
