"""Summarises seeds: mean, spread, difference to a baseline; and finds the Pareto front."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bitjax.checks import ARRAY, checked, instance, number


class Summary(NamedTuple):
    """Values over seeds.

    Attributes:
      mean: Mean of the values.
      std: Sample standard deviation (divided by count - 1), or None if there is one value.
      count: Number of values.
    """

    mean: float
    std: float | None
    count: int


class Difference(NamedTuple):
    """A paired difference over seeds that both have.

    Attributes:
      mean: Mean of the differences.
      low: Lower end of the mean's confidence interval. It is None for one seed, and where all seeds
        differ by the same, which says nothing about the spread.
      high: Upper end of the interval, or None with `low`.
      seeds: The seeds that both have.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: tuple[int, ...]


@checked(values=ARRAY)
def summarize(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation of at least one value.

    Example:
      >>> summarize([1.0, 3.0])
      Summary(mean=2.0, std=1.4142135623730951, count=2)
    """
    if np.ndim(values) != 1 or not len(values):
        raise ValueError(f"`values` must be a list of at least one number, got {values!r}.")
    values = list(values)
    return Summary(
        statistics.fmean(values),
        statistics.stdev(values) if len(values) > 1 else None,
        len(values),
    )


@checked(
    values=instance(Mapping),
    baseline=instance(Mapping),
    confidence=number(0, 1, above=True, below=True),
)
def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], confidence: float = 0.95
) -> Difference | None:
    """Mean over common seeds of value - baseline, with Student's interval.

    mean +- t((1 + confidence) / 2, n - 1) * s / sqrt(n), of the n differences and their sample
    standard deviation s. It assumes normal differences, which few seeds can neither show nor deny.

    Args:
      values: A method's values by seed.
      baseline: The baseline's values by seed.
      confidence: Confidence of the interval, in (0, 1).

    Returns:
      The difference, or None if no seed is common.

    Example:
      >>> paired_difference({0: 0.90, 1: 0.92, 2: 0.97}, {0: 0.95, 1: 0.95})
      Difference(mean=-0.04, low=-0.167, high=0.087, seeds=(0, 1))
    """
    seeds = tuple(sorted(values.keys() & baseline.keys()))
    if not seeds:
        return None
    mean, std, count = summarize([values[seed] - baseline[seed] for seed in seeds])
    if not std or std < 1e-12:
        return Difference(mean, None, None, seeds)
    from scipy.special import stdtrit  # scipy.stats would take a second to import

    half = float(stdtrit(count - 1, (1 + confidence) / 2)) * std / math.sqrt(count)
    return Difference(mean, mean - half, mean + half, seeds)


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Whether no other point costs at most as much and has at least the value, one of them better.

    Args:
      costs: Each point's cost; less is better.
      values: Each point's value; more is better.

    Example:
      >>> pareto_front([1.0, 2.0, 2.0], [0.5, 0.9, 0.4])
      [True, True, False]
    """
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -values[i]))
    front = [False] * len(costs)
    best, cheapest = -math.inf, math.inf  # of what is on the front so far, and its last cost
    for i in order:
        if values[i] > best or (values[i] == best and costs[i] == cheapest):
            front[i], best, cheapest = True, values[i], costs[i]
    return front
