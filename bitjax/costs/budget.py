"""Soft and hard limits on the cost of bits.

The penalty is BitPruning's regularizer (arXiv 2002.03090). A hard budget limits one of the costs of
`bitjax.costs.measures`: `bitjax.costs.constraints` keeps it while bits are learned, and
`bitjax.costs.rounding` ends it on integers.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.checks import PATTERN, checked, choice, either, instance, mapping, number
from bitjax.costs.bits import Bits, bits_of
from bitjax.costs.measures import METRICS, layer_macs, layer_pairs, site_bits
from bitjax.costs.site import SITE_COSTS, Costs

_WEIGHTS = {"equal": "count", "macs": "macs", "bytes": "elements"}  # fields of `SiteCost`
_ROLES = {"bytes": ("kernel",), "activation_bytes": ("input", "left", "right", "cache")}

CRITERION = either(choice(*_WEIGHTS, "bops"), mapping(number(0)))


def check_criterion(
    criterion: str | Mapping[str, float], costs: Costs, sites: Iterable[str]
) -> None:
    """Raises a ValueError for a mapping that weighs other sites than these, or none of them."""
    if isinstance(criterion, str):
        return
    unknown = sorted(set(criterion) - set(costs))
    if unknown:
        raise ValueError(
            f"`criterion` weighs {unknown[0]!r}, which is no site. Sites: {', '.join(costs)}."
        )
    if not any(criterion.get(site) for site in sites):
        raise ValueError(
            "`criterion` must weigh at least one of the quantized sites above 0, got "
            f"{dict(criterion)!r}. Sites: {', '.join(sites)}."
        )


@checked(quant=mapping(instance(Mapping)), costs=SITE_COSTS, criterion=CRITERION)
def penalty(
    quant: Mapping[str, Any], costs: Costs, criterion: str | Mapping[str, float] = "equal"
) -> jax.Array:
    """The bits' regularizer, sum_i lambda_i n_i, over the quantized sites; scalar float32.

    | criterion | lambda_i |
    |---|---|
    | equal | 1 / sites: the average bitlength |
    | macs | MACs of the layer / sum of MACs over the sites |
    | bytes | elements of the site / sum of elements (activations of one example) |
    | bops | none: sum of MACs * n_w * n_a / (8 * sum of MACs), 8 when all bits are 8 |
    | a mapping | the number given for the site, as it is; sites not in it count 0 |

    The lambdas of `equal`, `macs` and `bytes` sum to 1, so a strength means the same in every
    network. The numbers of a mapping are not rescaled.

    Args:
      quant: the collection `quant`, or all variables.
      costs: the costs of the sites, from `site_costs`.
      criterion: a name of the table, or `{site: lambda}`.

    Raises:
      ValueError: an unknown criterion, or a mapping that names an unknown site.

    Example:
      >>> from bitjax.costs.site import SiteCost
      >>> costs = {r: SiteCost(12, 12, 4, r, "", r) for r in ("kernel", "input")}
      >>> quant = {"kernel": {"bits": jnp.float32(2.0)}, "input": {"bits": jnp.float32(4.0)}}
      >>> float(penalty(quant, costs)), float(penalty(quant, costs, {"kernel": 0.5}))
      (3.0, 1.0)

    Source: arXiv 2002.03090, the regularizer; the normalisation is ours.
    """
    every = bits_of(quant)
    bits = {site: n for site, n in every.items() if site in costs}
    if every and not bits:
        raise ValueError(
            f"`quant` and `costs` must be of one model, got bits of {', '.join(every)} and costs "
            f"of {', '.join(costs)}."
        )
    if not isinstance(criterion, str):
        check_criterion(criterion, costs, bits)
        weights = {site: float(criterion.get(site, 0.0)) for site in bits}
        return _weighted(bits, costs, weights, 1.0)
    if criterion == "bops":
        pairs = [p for p in layer_pairs(costs).values() if p[0] in bits or p[1] in bits]
        chosen = [kernel for kernel, _ in pairs]
        total = sum(layer_macs(costs, pair) for pair in pairs)
        return METRICS["bops"](bits, costs, chosen) / (8.0 * max(1, total))
    weights = {site: float(getattr(costs[site], _WEIGHTS[criterion])) for site in bits}
    return _weighted(bits, costs, weights, sum(weights.values()))


def _weighted(bits, costs, weights, total):
    mean = site_bits(bits, {site: costs[site] for site in bits})
    terms = (weights[site] / (total or 1.0) * jnp.mean(n) for site, n in mean.items())
    return sum(terms, jnp.float32(0.0))


class Budget(NamedTuple):
    """A hard limit on a cost.

    Attributes:
      metric: `bits` (plain average), `bytes` (kernel codes), `activation_bytes` or `bops`.
      limit: the largest cost, in bits, bytes or bit operations per example.
      sites: a regular expression; the cost counts the sites it matches in full.
    """

    metric: str
    limit: float
    sites: str = ".*"


@checked(metric=choice(*METRICS), limit=number(0, above=True), sites=PATTERN)
def budget(metric: str, limit: float, sites: str = ".*") -> Budget:
    """A checked `Budget`.

    Args:
      metric: `bits`, `bytes`, `activation_bytes` or `bops`.
      limit: the largest cost, in bits, bytes or bit operations per example; above 0.
      sites: a regular expression; the cost counts the sites it matches in full.

    Raises:
      ValueError: an unknown metric, or a limit that is not above 0.

    Example:
      >>> budget("bytes", 70 * 1024).limit
      71680.0
    """
    return Budget(metric, float(limit), sites)


def budget_sites(limit: Budget, costs: Costs) -> list[str]:
    """The sites that a budget counts; a ValueError if its pattern names none of them."""
    # `bops` counts the layers whose kernel is named, and of their inputs those that are named too.
    roles = _ROLES.get(limit.metric)
    found = [site for site in costs if re.fullmatch(limit.sites, site)]
    countable = [s for s, c in costs.items() if roles is None or c.role in roles]
    if limit.metric == "bops":
        pairs, named = layer_pairs(costs), set(found)
        countable = list(dict.fromkeys(kernel for kernel, _ in pairs.values()))
        chosen = {layer: pair for layer, pair in pairs.items() if pair[0] in named}
        ends = {site for pair in chosen.values() for site in pair}
        found = [site for site in found if site in ends or costs[site].layer in chosen]
    elif roles:
        found = [site for site in found if costs[site].role in roles]
    if not found:
        raise ValueError(
            f"the budget on {limit.metric} names sites {limit.sites!r}, which match none that it "
            f"counts. Sites: {', '.join(countable)}."
        )
    return found


def cost_of(limit: Budget, bits: Bits, costs: Costs) -> jax.Array:
    """The cost that a budget limits, in its own unit; scalar."""
    return METRICS[limit.metric](bits, costs, budget_sites(limit, costs))


def exact_cost(limit: Budget, bits: Bits, costs: Costs) -> float:
    """The cost that a budget limits, in float64."""
    # In float32, integers within the limit could exceed it by a rounding error.
    host = {site: np.asarray(n, np.float64) for site, n in bits.items()}
    return float(cost_of(limit, host, costs))
