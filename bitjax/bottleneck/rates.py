"""Gives bit-planes to sites under a rate budget, from each site's distortion at every rate.

Zhou et al., "Neural Network Activation Quantization with Bitwise Information Bottlenecks",
arXiv 2006.05210, choose planes site by site at equal PSNR; the budget over all sites is ours.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitjax.checks import NONE, SWITCH, checked, choice, either, instance, integer, mapping, number
from bitjax.costs.site import SITE_COSTS, Costs
from bitjax.solvers.allocation import allocate as choose
from bitjax.solvers.base import Solution

COSTS = ("equal", "elements", "macs")
RATE = number(0, above=True)


class Curve(NamedTuple):
    """A site's quantizer at every rate; arrays over the rates."""

    bits: NDArray[np.int64]  # planes kept
    distortion: NDArray[np.float64]  # mean squared error, in squared units of the site
    scale: NDArray[np.float64]  # scale of the lowest kept plane, in units of the site
    peak: float  # the largest |x| that was seen
    # [rates, planes], 0 where a plane is dropped; None for powers of two
    coefficients: NDArray[np.float64] | None = None


@checked(
    curves=mapping(instance(Curve)),
    costs=SITE_COSTS,
    weights=either(NONE, mapping(number(0))),
    rate=RATE,
    cost=choice(*COSTS),
    min_bits=integer(1, 16),
    max_bits=integer(1, 16),
    exact=SWITCH,
)
def allocate_rates(
    curves: Mapping[str, Curve],
    costs: Costs,
    rate: float,
    *,
    weights: Mapping[str, float] | None = None,
    cost: str = "equal",
    min_bits: int = 2,
    max_bits: int = 8,
    exact: bool = False,
) -> Solution:
    """The rate of every site that makes the predicted loss least, the average not above `rate`.

      min sum_l F_l n_l D_l(k_l) / 2   subject to   sum_l C_l k_l <= rate * sum_l C_l

    Args:
      curves: `{site: Curve}`, from `rate_curves`; D_l(k).
      costs: the costs of the sites, from `site_costs`; n_l are the elements.
      rate: the budget, in planes per element.
      weights: F_l, `{site: weight}` from `bitjax.fisher`; all 1 if None.
      cost: C_l: `equal` (the plain average over sites), `elements` (the average over stored
        elements: memory) or `macs` (compute).
      min_bits: the least rate of a site.
      max_bits: the greatest rate of a site.
      exact: whether to find the least loss there is, see `bitjax.solvers.allocate`.

    Returns:
      `value`: `{site: bits}`. `objective`: the predicted loss. `stats`: those of
      `bitjax.solvers.allocate`, `average` (plain) and `average_by_elements`.

    Raises:
      ValueError: a site has no cost or weight, its curve lacks the rates between the bounds, or the
        budget is below `min_bits` or above `max_bits`.

    Example:
      >>> from bitjax.costs.site import SiteCost
      >>> bits = np.arange(1, 5)
      >>> curve = Curve(bits, 4.0 ** -bits, 2.0 ** -bits, 1.0)
      >>> wide = curve._replace(distortion=16 * curve.distortion)
      >>> costs = {s: SiteCost(1, 8, 1, s, s, "input") for s in ("a", "b")}
      >>> allocate_rates({"a": curve, "b": wide}, costs, 3.0, max_bits=4).value
      {'a': 2, 'b': 4}
    """
    if min_bits > max_bits:
        raise ValueError(f"`min_bits` must be in [1, {max_bits}], got {min_bits}.")
    check_rate(rate, min_bits, max_bits)
    sites = list(curves)
    _check_sites(curves, costs, weights, min_bits, max_bits)
    share = {
        s: {"equal": 1, "elements": costs[s].elements, "macs": costs[s].macs}[cost] for s in sites
    }
    rates = np.arange(min_bits, max_bits + 1)
    losses = [
        0.5
        * (1.0 if weights is None else weights[s])
        * costs[s].elements
        * _distortion_at(curves[s], rates)
        for s in sites
    ]
    prices = [share[s] * rates for s in sites]
    # A curve rises only by the last digits of a search for the scale.
    losses = [np.minimum.accumulate(row) for row in losses]
    found = choose(prices, losses, rate * sum(share.values()), exact=exact)
    bits = {s: int(rates[i]) for s, i in zip(sites, found.value, strict=True)}
    elements = {s: costs[s].elements for s in sites}
    stats = {
        **found.stats,
        "average": sum(bits.values()) / len(bits),
        "average_by_elements": sum(bits[s] * elements[s] for s in sites) / sum(elements.values()),
    }
    return Solution(bits, found.objective, stats)


def equal_psnr(
    curves: Mapping[str, Curve], decibels: float, *, min_bits: int = 1, max_bits: int = 8
) -> dict[str, int]:
    """The paper's single knob: every site's least rate with a PSNR of at least `decibels`."""
    # PSNR = 10 log10(peak^2 / distortion). The paper's T is the loss below a reference of 55 dB:
    # `decibels` = 55 - T. A site that never gets there has the greatest rate.
    found = {}
    for site, curve in curves.items():
        rates = np.arange(min_bits, min(max_bits, int(curve.bits.max())) + 1)
        error = np.maximum(_distortion_at(curve, rates), 1e-300)
        reached = 10 * np.log10(max(curve.peak, 1e-150) ** 2 / error) >= decibels
        found[site] = int(rates[reached.argmax()]) if reached.any() else int(rates[-1])
    return found


def mixed_precision_gain(
    curves: Mapping[str, Curve], costs: Costs, weights: Mapping[str, float] | None = None
) -> float:
    """How much unequal rates gain over equal ones at high rate, in dB; 6.02 dB is a bit."""
    # The arithmetic over the geometric mean of F_l D_l at the greatest rate, weighed by elements.
    # Below about 1 dB an allocation cannot help much.
    n = np.array([costs[s].elements for s in curves], float)
    F = np.array([1.0 if weights is None else weights[s] for s in curves])
    v = F * np.array([c.distortion[np.argmax(c.bits)] for c in curves.values()])
    n, v = n[v > 0] / n[v > 0].sum(), v[v > 0]
    return float(10 * (np.log10(n @ v) - n @ np.log10(v))) if v.size else 0.0


def check_rate(rate: float, min_bits: int, max_bits: int) -> None:
    """Raises a ValueError unless the rate lies between the bounds."""
    if not min_bits <= rate <= max_bits:
        raise ValueError(
            f"`rate` must be in [{min_bits}, {max_bits}], from `min_bits` to `max_bits`, "
            f"got {rate:g}."
        )


def _distortion_at(curve: Curve, rates: NDArray) -> NDArray:
    place = {int(b): i for i, b in enumerate(curve.bits)}
    return np.array([curve.distortion[place[int(k)]] for k in rates], np.float64)


def _check_sites(curves, costs, weights, min_bits, max_bits):
    if not curves:
        raise ValueError("`curves` must hold at least one site, got none.")
    for site, curve in curves.items():
        if site not in costs:
            raise ValueError(
                f"`curves` has {site!r}, which is no site of `costs`: take both from one model."
            )
        if weights is not None and site not in weights:
            raise ValueError(
                f"`weights` has no {site!r}: take the weights of the same sites as the histograms."
            )
        missing = set(range(min_bits, max_bits + 1)) - set(curve.bits.tolist())
        if missing:
            raise ValueError(
                f"the curve of {site!r} has no rate {min(missing)}: solve it from `min_bits` "
                f"{min_bits} to `max_bits` {max_bits}."
            )
