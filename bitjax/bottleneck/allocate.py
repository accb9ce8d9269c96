"""Chooses the bit-planes of every site from calibration batches, without training."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from bitjax.bottleneck.coefficients import solve_coefficients
from bitjax.bottleneck.curves import GRIDS, rate_curves
from bitjax.bottleneck.of_sites import site_histograms
from bitjax.bottleneck.rates import COSTS, RATE, Curve, allocate_rates, check_rate, equal_psnr
from bitjax.bottleneck.sensitivity import fisher
from bitjax.checks import (
    FUNCTION,
    NONE,
    SWITCH,
    Allowed,
    checked,
    choice,
    either,
    integer,
    mapping,
    number,
)
from bitjax.costs.site import SITE_COSTS, Costs
from bitjax.frameworks.calibrate import calibrate
from bitjax.frameworks.costs import costs_with
from bitjax.frameworks.linen import Quantized
from bitjax.frameworks.models import float_model
from bitjax.quantizers.base import Planes
from bitjax.quantizers.planes import powers_of_two
from bitjax.rules import Rules, quantizer_of
from bitjax.variables import QUANT, STATS, VARIABLES, as_call, floats_of, read_site, write_site

WEIGHTINGS = ("fisher", "none")
PAPER_GRIDS = GRIDS[2:]
_REFERENCE_DB = 55.0  # the reference PSNR in the authors' program
_NO_SITE = (
    "allocate has no planes to choose: give at least one input a bitplane() quantizer, of mode "
    "'strong', scale 'learned' and signed=False.",
    "allocate has no planes to choose: give at least one input a bitplane() quantizer, of mode "
    "'faithful' with truncate=True, coefficients='free', depth 8 and signed=False.",
)

# What the settings may be, here and in the method.
ALLOCATE: dict[str, Allowed] = {
    "rate": RATE,
    "psnr_loss": either(NONE, number()),
    "weighting": choice(*WEIGHTINGS),
    "cost": choice(*COSTS),
    "grid": choice(*GRIDS),
    "min_bits": integer(1, 8),
    "max_bits": integer(1, 8),
    "exact": SWITCH,
}


@checked(
    variables=VARIABLES,
    batches=FUNCTION,
    costs=either(NONE, SITE_COSTS),
    weights=either(NONE, FUNCTION),
    kwargs=either(NONE, mapping()),
    **ALLOCATE,
)
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
    weights: Callable[[], Iterable[Any]] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Gives every `bitplane` input the planes and the scale that serve the float network best.

    A first pass over the batches makes a histogram of every site, which gives the distortion and
    the scale at every rate. A second pass measures the Fisher information. The rates then make the
    sum of F_l n_l D_l(k_l) least while their average is at most `rate`.

    Args:
      model: a wrapped model with unsigned `bitjax.bitplane` quantizers on inputs behind a ReLU. For
        the grids `free` and `window` they have mode `strong` and scale `learned`; for `truncated`
        and `lasso` mode `faithful`, `truncate=True` and `coefficients="free"`.
      variables: all collections of the model, as `attach` gives them.
      batches: a function that gives the calibration batches, the same ones at every call.
      rate: the budget, in planes per element on average over sites.
      psnr_loss: the paper's knob T in dB, in place of a budget. Each site gets the least rate whose
        PSNR is at least 55 - T; `rate`, `weighting` and `cost` are then not read.
      weighting: how sites are weighed: `fisher` (F_l is the cost of an error in the loss) or `none`
        (F_l is 1).
      cost: the weights of the average rate: `equal`, `elements` or `macs`.
      grid: the levels to choose from: `free` scales; the best `window` of an 8-bit code; or, as in
        the paper, planes of a finished 8-bit code over each example's own range, the best ones
        (`truncated`) or the LASSO's (`lasso`). In these two the distortion is a share of the peak,
        which is not comparable between sites: with a budget, `min_bits` and `max_bits` must be the
        same.
      min_bits: the least rate of a site; if `max_bits` is the same, all rates are.
      max_bits: the greatest rate of a site, at most 8.
      exact: whether to find the least loss there is, see `bitjax.solvers.allocate`.
      costs: the costs of the sites, from `site_costs`; measured on the first batch if None.
      weights: a function that gives, for every batch, what each of its predictions counts in F_l,
        as `fisher` takes them: 0 for padding.
      kwargs: keyword arguments of the model, the same for every batch.

    Returns:
      The variables with new `bits`, `shift`, `scale` and `coefficients` at these sites; everything
      else as it was. Coefficients of the kind `solved` are solved in one more pass.

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
    check_settings(rate, psnr_loss, grid, min_bits, max_bits)
    net, kwargs = float_model(model), dict(kwargs or {})
    floats = floats_of(variables)
    if costs is None:
        costs = costs_with(net, variables, *as_call(next(iter(batches())), kwargs))
    planes = check_sites(model.rules, costs, grid, max_bits)
    sites = list(planes)
    chosen = "|".join(map(re.escape, sites))
    paper = grid in PAPER_GRIDS
    seen = site_histograms(net, floats, batches(), sites=chosen, per_example=paper, **kwargs)
    curves = rate_curves(seen, grid=grid, max_bits=max_bits)
    if psnr_loss is not None:
        decibels = _REFERENCE_DB - psnr_loss
        bits = equal_psnr(curves, decibels, min_bits=min_bits, max_bits=max_bits)
    else:
        F = None
        if weighting == "fisher" and min_bits < max_bits:
            counts = None if weights is None else weights()
            F = fisher(net, floats, batches(), sites=chosen, weights=counts, **kwargs)
        bits = allocate_rates(
            curves, costs, rate, weights=F, cost=cost, min_bits=min_bits,
            max_bits=max_bits, exact=exact,
        ).value  # fmt: skip
    quant = variables[QUANT]
    for site, k in bits.items():
        new = _updated(read_site(quant, site), _leaves(curves[site], k))
        quant = write_site(quant, site, new)
    found = {**variables, QUANT: quant}
    stats = found.get(STATS, {})
    solved = [s for s in sites if planes[s].coefficients == "solved"]
    if solved:
        averages = calibrate(model, found, batches(), **kwargs)[STATS]
        for site in solved:
            stats = write_site(stats, site, read_site(averages, site))
        found = solve_coefficients(model, {**found, STATS: stats})
    return found


def plane_sites(rules: Rules, costs: Costs, grid: str = "free") -> list[str]:
    """The inputs whose planes `allocate` chooses under a grid, in forward order."""
    found = []
    for site, entry in costs.items():
        planes = _planes(rules, site) if entry.role == "input" else None
        if grid in PAPER_GRIDS:
            chosen = planes == Planes(8, coefficients="free", scale="example", truncated=True)
        else:
            chosen = planes is not None and planes.scale == "learned"
        if chosen:
            found.append(site)
    return found


def check_sites(rules: Rules, costs: Costs, grid: str, max_bits: int) -> dict[str, Planes]:
    """The planes of the sites that `allocate` chooses, if there are any and each has enough."""
    sites = plane_sites(rules, costs, grid)
    if not sites:
        raise ValueError(_NO_SITE[grid in PAPER_GRIDS])
    planes = {site: planes for site in sites if (planes := _planes(rules, site))}
    shallow = next((site for site in sites if planes[site].depth < max_bits), None)
    if shallow is not None:
        raise ValueError(
            f"`max_bits` must be at most the {planes[shallow].depth} planes of {shallow!r}, got "
            f"{max_bits}: give its bitplane() a larger `depth`, or lower `max_bits`."
        )
    return planes


def _planes(rules: Rules, site: str) -> Planes | None:
    """The planes of a site's quantizer, if it has some and no sign."""
    quantizer = quantizer_of(rules, site)
    if quantizer is None or quantizer.traits.numbers == "signed":
        return None
    return quantizer.traits.planes


def check_settings(
    rate: float, psnr_loss: float | None, grid: str, min_bits: int, max_bits: int
) -> None:
    """Raises a ValueError for settings of `allocate` that do not go together."""
    if grid in PAPER_GRIDS and psnr_loss is None and min_bits != max_bits:
        raise ValueError(
            f"`grid` {grid!r} goes with `psnr_loss`, or with `min_bits` the same as `max_bits`, "
            f"got {min_bits}, {max_bits}."
        )
    if min_bits > max_bits:
        raise ValueError(
            f"`min_bits`, `max_bits` must rise within [1, 8], got {min_bits}, {max_bits}."
        )
    if psnr_loss is None:
        check_rate(rate, min_bits, max_bits)


def _leaves(curve: Curve, bits: int) -> dict[str, Any]:
    """The new leaves of a site that keeps `bits` planes."""
    row = int(np.flatnonzero(curve.bits == bits)[0])
    if curve.coefficients is None:  # planes from 0 upwards
        scale = curve.scale[row]
        return {"bits": bits, "shift": 0, "scale": scale, "coefficients": powers_of_two}
    kept = np.flatnonzero(curve.coefficients[row])
    low, high = (kept[0], kept[-1] + 1) if kept.size else (0, bits)
    # Planes between kept ones are stored too.
    return {"bits": high - low, "shift": low, "coefficients": curve.coefficients[row]}


def _updated(node, leaves):
    """A copy of a site's leaves with new values for those that it has."""
    new = dict(node)
    for name in node.keys() & leaves.keys():
        shape = node[name].shape
        value = leaves[name](shape[-1]) if callable(leaves[name]) else leaves[name]
        # Layers of a scan have a leading axis and share one solution.
        new[name] = jnp.broadcast_to(jnp.float32(value), shape)
    return new
