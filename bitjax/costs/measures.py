"""Computes a model's cost at given bits: average bits, bytes, BOPs, as pure functions of its sites.

`costs` comes from `site_costs`. `bits` maps sites to the `bits` leaves of their quantizers, as
`bits_of` reads them; a site that is not there is float and counts 32 bits. JAX bits give JAX
scalars, differentiable and traceable; NumPy bits give float64. 1 kB is 1024 bytes.
"""

import inspect
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.checks import ARRAY, checked, mapping
from bitjax.costs.bits import Bits
from bitjax.costs.site import SITE_COSTS, Costs, SiteCost

FLOAT_BITS = 32.0
Scalar = Any  # a JAX scalar for JAX bits, else NumPy's
_COUNTED = {"bits": mapping(ARRAY), "costs": SITE_COSTS}


def site_bits(bits: Bits, costs: Costs) -> dict[str, Any]:
    """Bits of every site in `costs`, [count] each: a layer's mean over channels or groups."""
    return {site: _per_layer(bits.get(site, FLOAT_BITS), cost) for site, cost in costs.items()}


def _chosen(bits, costs, sites):
    """The sites to count, in order; a ValueError for a name of none, or bits of another model."""
    if isinstance(sites, str) or not isinstance(sites, Iterable | None):
        raise ValueError(f"`sites` must be a list of names of sites, or None, got {sites!r}.")
    names = dict.fromkeys(costs if sites is None else sites)  # sums run in their order
    unknown = next((site for site in names if site not in costs), None)
    if unknown is not None:
        raise ValueError(
            f"`sites` has {unknown!r}, which is no site of `costs`. Sites: {', '.join(costs)}."
        )
    if bits and costs and not any(site in costs for site in bits):
        raise ValueError(
            f"`bits` and `costs` must be of one model, got bits of {', '.join(bits)} and costs of "
            f"{', '.join(costs)}."
        )
    return names


def _per_layer(bits, cost: SiteCost) -> Any:
    # On the device in its dtype; on the host in float64, exact enough for a hard limit.
    bits = bits if isinstance(bits, jax.Array) else np.asarray(bits, np.float64)
    if cost.count > 1 and bits.ndim and bits.shape[0] == cost.count:
        return bits.reshape(cost.count, -1).mean(axis=1)
    xp = jnp if isinstance(bits, jax.Array) else np
    return xp.broadcast_to(bits.mean(), (cost.count,))


@checked(costs=SITE_COSTS)
def inner_sites(costs: Costs) -> list[str]:
    """The sites of all layers but the first and the last of the forward pass.

    Args:
      costs: the costs of the sites, from `site_costs`.

    Example:
      >>> inner_sites({"stem/kernel": SiteCost(1, 1, 1, "", "stem", "kernel")})
      []
    """
    layers = [cost.layer for cost in costs.values()]
    ends = {*layers[:1], *layers[-1:]}  # one layer, where the head is the embedding
    return [site for site, cost in costs.items() if cost.layer not in ends]


@checked(**_COUNTED)
def average_bits(bits: Bits, costs: Costs, sites: Iterable[str] | None = None) -> Scalar:
    """Plain average of bits over sites, all by default; scalar float32.

    A per-channel site counts its mean, a scanned one as many times as it has layers.

    Args:
      bits: `{site: bits}`; a site that is not there is float and counts 32.
      costs: the costs of the sites, from `site_costs`.
      sites: the sites to count; all by default.

    Example:
      >>> costs = {r: SiteCost(1, 1, 1, r, "", r) for r in ("kernel", "input")}
      >>> float(average_bits({"kernel": jnp.float32(4.0)}, costs))  # the input is float: 32
      18.0
    """
    chosen = {site: costs[site] for site in _chosen(bits, costs, sites)}
    mean = site_bits(bits, chosen)
    total = sum(n.sum() for n in mean.values())
    return total / max(1, sum(cost.count for cost in chosen.values()))


@checked(**_COUNTED)
def kernel_bytes(bits: Bits, costs: Costs, sites: Iterable[str] | None = None) -> Scalar:
    """Bytes of the kernels' codes: sum of elements * bits / 8; scalar float32.

    Args:
      bits: `{site: bits}`; a site that is not there is float and counts 32.
      costs: the costs of the sites, from `site_costs`.
      sites: the sites to count; all by default.

    Example:
      >>> costs = {"kernel": SiteCost(64, 16, 4, "kernel", "", "kernel")}
      >>> float(kernel_bytes({"kernel": jnp.float32(4.0)}, costs))
      8.0
    """
    mean = site_bits(bits, costs)
    chosen = _chosen(bits, costs, sites)
    return sum(
        mean[site].mean() * (cost.elements / 8)
        for site, cost in costs.items()
        if cost.role == "kernel" and site in chosen
    )


@checked(**_COUNTED)
def activation_bytes(bits: Bits, costs: Costs, sites: Iterable[str] | None = None) -> Scalar:
    """Bytes of the layers' inputs for one example; scalar float32.

    A tensor that several layers read counts once, at its widest site.

    Args:
      bits: `{site: bits}`; a site that is not there is float and counts 32.
      costs: the costs of the sites, from `site_costs`.
      sites: the sites to count; all by default.

    Example:
      >>> read = SiteCost(64, 16, 4, "a/input", "a", "input")
      >>> costs = {"a/input": read, "b/input": read._replace(layer="b")}
      >>> float(activation_bytes({"a/input": 2.0, "b/input": 4.0}, costs))
      8.0
    """
    mean = site_bits(bits, costs)
    chosen = _chosen(bits, costs, sites)
    widest: dict[str, Any] = {}
    for site, cost in costs.items():
        if cost.role != "kernel" and site in chosen:
            size = mean[site].mean() * (cost.elements / 8)
            before = widest.get(cost.source, size)
            xp = jnp if isinstance(size * before, jax.Array) else np
            widest[cost.source] = xp.maximum(before, size)
    return sum(widest.values())


def layer_pairs(costs: Costs) -> dict[str, tuple[str, str | None]]:
    """`{layer: (kernel site, input site)}`; None where the layer's input has no site."""
    # Of a product of two activations the right one stands for the kernel, or the one in a cache.
    inputs = {c.layer: s for s, c in costs.items() if c.role in ("input", "left")}
    seconds = {s: c for s, c in costs.items() if c.role in ("kernel", "right")}
    pairs = {cost.layer: (site, inputs.get(cost.layer)) for site, cost in seconds.items()}
    for site, cost in costs.items():
        if cost.partner:
            kernel = cost.role == "kernel"
            pairs[cost.layer] = (site, cost.partner) if kernel else (cost.partner, site)
    return pairs


def layer_macs(costs: Costs, pair: tuple[str, str | None]) -> int:
    """The multiply-adds of a layer, from its pair of sites."""
    kernel, x = pair
    # Several products may read one cache, which has the work of all of them.
    return costs[x if x is not None and costs[kernel].role == "cache" else kernel].macs


@checked(**_COUNTED)
def bops(bits: Bits, costs: Costs, sites: Iterable[str] | None = None) -> Scalar:
    """Bit operations per example: sum over layers of MACs * weight bits * input bits.

    Args:
      bits: `{site: bits}`; a site that is not there is float and counts 32.
      costs: the costs of the sites, from `site_costs`.
      sites: kernel sites of the layers to count, of products of two activations `right` or the
        cache; all layers by default.

    Example:
      >>> costs = {r: SiteCost(12, 1, 1, r, "", r) for r in ("kernel", "input")}
      >>> float(bops({"kernel": jnp.float32(2.0), "input": jnp.float32(3.0)}, costs))
      72.0

    Source: Baskin et al., UNIQ, arXiv 1804.10969, without the accumulator's term, as FracBits and
      HAWQ-V3 count.
    """
    mean = site_bits(bits, costs)
    chosen = _chosen(bits, costs, sites)
    calls: dict[str, list[str]] = {}  # a layer's inputs, where each of its calls has its own
    for site, cost in costs.items():
        if cost.role in ("input", "left"):
            calls.setdefault(cost.layer, []).append(site)

    def of_input(layer, x):
        found = calls.get(layer) or ([] if x is None else [x])
        if not found:
            return FLOAT_BITS
        total = sum(costs[site].macs for site in found)
        return sum(mean[site] * (costs[site].macs / total if total else 1.0) for site in found)

    return sum(
        (mean[pair[0]] * of_input(layer, pair[1])).mean() * layer_macs(costs, pair)
        for layer, pair in layer_pairs(costs).items()
        if pair[0] in chosen
    )


@checked(costs=SITE_COSTS)
def macs(costs: Costs) -> int:
    """Multiply-adds per example, every layer once.

    Args:
      costs: the costs of the sites, from `site_costs`.

    Example:
      >>> macs({r: SiteCost(12, 1, 1, r, "", r) for r in ("kernel", "input")})
      12
    """
    return sum(layer_macs(costs, pair) for pair in layer_pairs(costs).values())


# Without the checks of their arguments: rounding asks for costs thousands of times.
METRICS = {
    "bits": inspect.unwrap(average_bits),
    "bytes": inspect.unwrap(kernel_bytes),
    "activation_bytes": inspect.unwrap(activation_bytes),
    "bops": inspect.unwrap(bops),
}
