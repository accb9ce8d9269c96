"""The best levels against every partition of few values, and against a published table."""

import itertools

import numpy as np
import pytest

from bitjax.solvers import free_scales, lloyd_max


def error_at(values, weights, levels):
    return weights @ np.min((values[:, None] - levels) ** 2, axis=1)


def least_by_enumeration(values, weights, num_levels):
    """Every way to cut the values into runs; the first run's level is 0."""
    least = np.inf
    for cuts in itertools.combinations_with_replacement(range(values.size + 1), num_levels - 1):
        error = 0.0
        for i, (begin, end) in enumerate(itertools.pairwise((0, *cuts, values.size))):
            v, w = values[begin:end], weights[begin:end]
            level = w @ v / w.sum() if i and w.sum() else 0.0
            error += w @ (v - level) ** 2
        least = min(least, error)
    return least


@pytest.mark.parametrize("num_levels", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(10))
def test_it_finds_the_least_error_there_is(seed, num_levels):
    rng = np.random.default_rng(seed)
    values, weights = np.sort(rng.exponential(size=7)), rng.dirichlet(np.ones(7))
    values[: seed % 3] = 0.0
    solution = lloyd_max(values, weights, num_levels)
    least = least_by_enumeration(values, weights, num_levels)
    assert solution.objective == pytest.approx(least, abs=1e-14)
    assert error_at(values, weights, solution.value) == pytest.approx(least, abs=1e-14)
    assert solution.value[0] == 0.0
    assert len(solution.value) <= num_levels
    assert (np.diff(solution.value) > 0).all()


def test_more_levels_are_never_worse_and_no_uniform_ones_are_better():
    rng = np.random.default_rng(0)
    values, weights = np.sort(rng.exponential(size=500)), np.full(500, 1 / 500)
    by_levels = lloyd_max(values, weights, 32).stats["by_levels"]
    assert by_levels.shape == (32,)
    assert (np.diff(by_levels) <= 0).all()
    uniform = free_scales(values, weights, max_bits=5).objective
    assert (by_levels[[1, 3, 7, 15, 31]] <= uniform * (1 + 1e-9)).all()


@pytest.mark.parametrize(("num_levels", "expected"), [(3, 0.1902), (5, 0.07994), (7, 0.04400)])
def test_odd_numbers_of_gaussian_levels_are_maxs(num_levels, expected):
    """J. Max, "Quantizing for minimum distortion", 1960, table I: mean squared errors.

    With an odd number one of the levels is 0, and the others are pairs.
    """
    edges = np.linspace(0, 6, 1201)
    values = (edges[1:] + edges[:-1]) / 2
    density = np.exp(-(values**2) / 2)
    solution = lloyd_max(values, density / density.sum(), (num_levels + 1) // 2)
    assert solution.objective == pytest.approx(expected, rel=2e-3)


def test_few_values_are_held_exactly_and_need_no_more_levels():
    solution = lloyd_max([0.0, 0.0, 1.0, 4.0], [0.25] * 4, 8)
    assert solution.value.tolist() == [0.0, 1.0, 4.0]
    assert solution.objective == 0.0
    assert lloyd_max([0.0], [1.0], 4).value.tolist() == [0.0]


def test_what_cannot_be_solved_is_an_error():
    with pytest.raises(ValueError, match=r"`num_levels` must be an integer in \[1, 256\], got 0"):
        lloyd_max([1.0], [1.0], 0)
    with pytest.raises(ValueError, match="rising: sort them"):
        lloyd_max([2.0, 1.0], [0.5, 0.5], 2)
    with pytest.raises(ValueError, match=r"one shape \[M\], M at least 1"):
        lloyd_max([], [], 2)
