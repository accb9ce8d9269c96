"""From calibration batches to bit-planes at every site, in one call and without training."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp

from bitjax.linen import QUANT, STATS, Quantized
from bitjax.probe import inner_model
from bitjax.quantizers.base import check_choice
from bitjax.rate_allocation import COSTS, allocate_rates, equal_psnr
from bitjax.rate_curves import rate_curves
from bitjax.rules import Rules, quantizer_of
from bitjax.sensitivity import fisher
from bitjax.site_histograms import site_histograms
from bitjax.sites import Costs, site_costs

WEIGHTINGS = ("fisher", "none")
GRIDS = ("free", "window")
_REFERENCE_DB = 55.0  # of the authors' program


def allocate(
    model: Quantized,
    variables: Mapping[str, Any],
    batches: Callable[[], Iterable[Any]],
    *,
    rate: float = 4.0,
    psnr_loss: float | None = None,
    weighting: str = "fisher",
    cost: str = "equal",
    grid: str = "free",
    min_bits: int = 2,
    max_bits: int = 8,
    exact: bool = False,
    costs: Costs | None = None,
) -> dict[str, Any]:
    """Gives every `bitplane` input the planes and the scale that serve the float network best.

    One pass over the batches makes a histogram of every site; from it come the distortion and the
    scale at every rate; a second pass measures the Fisher information; the rates then make
    sum of F_l n_l D_l(k_l)  least while their average is at most `rate`.

    Args:
      model: wrapped, with `bitjax.bitplane` quantizers (mode `strong`, scale `learned`, unsigned)
        on inputs behind a ReLU.
      variables: all its collections, as `attach` gives them.
      batches: a function that gives the calibration batches, the same ones at every call.
      rate: the budget, planes per element on average over sites.
      psnr_loss: the paper's knob T in dB instead of a budget: each site by itself gets the least
        rate whose PSNR is at least 55 - T; `rate`, `weighting` and `cost` are then not read.
      weighting: F_l, `fisher` (what an error costs the loss) or `none` (1 everywhere).
      cost: what the rate is averaged over: `equal`, `elements` or `macs`.
      grid: `free` scales, or the best `window` of an 8-bit code.
      min_bits: the least rate of a site; with `max_bits` the same, rates are uniform.
      max_bits: the greatest, at most 8.
      exact: see `solvers.allocation.allocate`.
      costs: from `site_costs`; measured on the first batch if None.

    Returns:
      The variables with new `bits`, `shift` and `scale` at these sites; everything else as it was.

    Raises:
      ValueError: no site has such a quantizer, a site has negative elements, a setting is out of
        its bounds, or a batch gives NaN or inf.

    Example:
      >>> import flax.linen as nn, jax
      >>> import bitjax as bj
      >>> x = jnp.abs(jax.random.normal(jax.random.key(0), (64, 8)))
      >>> model = bj.Quantized(nn.Dense(3), [bj.rule("input", bj.bitplane(bits=8))])
      >>> variables = model.init(jax.random.key(1), x)
      >>> variables = allocate(model, variables, lambda: [x], rate=3.0)
      >>> float(variables["quant"]["input"]["bits"])
      3.0

    Source: Zhou et al., arXiv 2006.05210; the budget over all sites and its weights are ours.
    """
    check_settings(rate, psnr_loss, weighting, cost, grid, min_bits, max_bits)
    net = inner_model(model)
    floats = {name: tree for name, tree in variables.items() if name not in (QUANT, STATS)}
    if costs is None:
        first = next(iter(batches()))
        costs = site_costs(net, *(first if isinstance(first, tuple) else (first,)))
    sites = plane_sites(model.rules, costs)
    if not sites:
        raise ValueError(
            "allocate has no planes to choose: give at least one input a bitplane() quantizer, of "
            "mode 'strong', scale 'learned' and signed=False."
        )
    chosen = "|".join(map(re.escape, sites))
    curves = rate_curves(
        site_histograms(net, floats, batches(), sites=chosen), grid=grid, max_bits=max_bits
    )
    if psnr_loss is not None:
        decibels = _REFERENCE_DB - psnr_loss
        bits = equal_psnr(curves, decibels, min_bits=min_bits, max_bits=max_bits)
    else:
        weights = None
        if weighting == "fisher" and min_bits < max_bits:
            weights = fisher(net, floats, batches(), sites=chosen)
        bits = allocate_rates(
            curves, costs, rate, weights=weights, cost=cost, min_bits=min_bits,
            max_bits=max_bits, exact=exact,
        ).value  # fmt: skip
    quant = variables[QUANT]
    for site, k in bits.items():
        scale = curves[site].scale[curves[site].bits == k][0]
        quant = _with_planes(quant, site.split("/"), k, scale)
    return {**variables, QUANT: quant}


def plane_sites(rules: Rules, costs: Costs) -> list[str]:
    """The inputs whose planes `allocate` chooses, in forward order.

    Example:
      >>> plane_sites((), {})
      []
    """
    found = []
    for site, entry in costs.items():
        quantizer = quantizer_of(rules, site)
        if quantizer is None or quantizer.name != "bitplane" or entry.role != "input":
            continue
        if quantizer.form.get("scale") == "learned" and not quantizer.form["signed"]:
            found.append(site)
    return found


def check_settings(
    rate: float,
    psnr_loss: float | None,
    weighting: str,
    cost: str,
    grid: str,
    min_bits: int,
    max_bits: int,
) -> None:
    """Raises a ValueError for what `allocate` cannot do, before any batch is read."""
    check_choice(weighting, WEIGHTINGS, "weighting")
    check_choice(cost, COSTS, "cost")
    check_choice(grid, GRIDS, "grid")
    if not 1 <= min_bits <= max_bits <= 8:
        raise ValueError(
            f"`min_bits`, `max_bits` must rise within [1, 8], got {min_bits}, {max_bits}."
        )
    if psnr_loss is None and not min_bits <= rate <= max_bits:
        raise ValueError(
            f"`rate` must be in [{min_bits}, {max_bits}], from `min_bits` to `max_bits`, "
            f"got {rate:g}."
        )


def _with_planes(tree, path, bits, scale):
    """A copy of nested dicts with `bits` planes from 0 upwards at the leaf node of a path."""
    if not path:
        new = {"bits": jnp.float32(bits), "shift": jnp.float32(0), "scale": jnp.float32(scale)}
        return {**tree, **new}
    return {**tree, path[0]: _with_planes(tree[path[0]], path[1:], bits, scale)}
