"""Rounds learned bitlengths to integers: up, to the nearest, or under a budget."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.checks import ARRAY, checked, choice, instance, mapping, number, several
from bitjax.costs.bits import Bits
from bitjax.costs.budget import Budget, budget_sites, cost_of, exact_cost
from bitjax.costs.measures import layer_macs, layer_pairs
from bitjax.costs.site import SITE_COSTS, Costs
from bitjax.solvers.allocation import allocate

POLICIES = ("ceil", "nearest", "budget")
_EXACT_GROUPS = 256  # up to here the exact allocation costs milliseconds
_MOST_OPTIONS = 1 << 14  # of sites that are decided together
Limits = Mapping[str, tuple[float, float]]


@checked(
    bits=mapping(ARRAY),
    costs=SITE_COSTS,
    limits=mapping(several(number(0, 32), 2, 2)),
    policy=choice(*POLICIES),
    budgets=several(instance(Budget)),
)
def round_bits(
    bits: Bits,
    costs: Costs,
    limits: Limits,
    policy: str = "nearest",
    budgets: Sequence[Budget] = (),
) -> dict[str, np.ndarray]:
    """Integer bits for every learned site.

    - `ceil` rounds up, as the paper does to our knowledge. It was one bit too high in two of three
      cases of a toy with one Gaussian tensor.
    - `nearest` is the integer optimum of a quadratic loss plus its penalty, because the slope half
      way between two integers is the difference of their losses.
    - `budget` meets every budget on integers. By the error law loss_i(k) = A_i 4^-k, with slopes at
      the learned bits equal to the cost's, A_i = (d cost / d n_i) 4^(n_i). So each site's choices
      have a predicted loss, and `solvers.allocate` chooses. Afterwards no single bit more fits.
      Sites that no budget counts go to the nearest integer.

    Args:
      bits: learned bits by site, in [0, 16]; fixed sites may be among them.
      costs: the costs of the sites, from `site_costs`.
      limits: (least, most) bits of each learned site; other sites stay as they are.
      policy: `ceil`, `nearest` or `budget`.
      budgets: the budgets for `budget`. They are met one after the other, each within the bits that
        the ones before it left. Bits that all of them have room for are given back at the end.

    Returns:
      `{site: float32 integers}` in the shapes of `bits`, for the sites in `limits`.

    Raises:
      ValueError: an unknown policy, `budget` without budgets, or a budget that the least bits miss.

    Example:
      >>> from bitjax.costs.site import SiteCost
      >>> costs = {f"{n}/kernel": SiteCost(8, 8, 1, "", n, "kernel") for n in "ab"}
      >>> bits = {"a/kernel": np.float32(3.4), "b/kernel": np.float32(4.4)}
      >>> limits = {site: (1, 8) for site in bits}
      >>> rounded = round_bits(bits, costs, limits, "budget", [Budget("bytes", 7.0)])
      >>> {site: float(n) for site, n in rounded.items()}
      {'a/kernel': 3.0, 'b/kernel': 4.0}

    Source: arXiv 2002.03090 for `ceil`; the rest is ours.
    """
    for site in limits:
        if site not in bits or site not in costs:
            raise ValueError(
                f"`limits` has {site!r}, which must be a site of `bits` and of `costs`. Sites: "
                f"{', '.join(site for site in bits if site in costs)}."
            )
    learned = {site: np.asarray(bits[site], np.float64) for site in limits}
    for site, n in learned.items():
        if not ((n >= 0) & (n <= 32)).all():
            raise ValueError(f"`bits[{site!r}]` must be in [0, 32], got {n.ravel().tolist()}.")
    bounds = {
        site: (int(np.ceil(low)), int(np.floor(high))) for site, (low, high) in limits.items()
    }
    step = np.ceil if policy == "ceil" else np.rint
    rounded = {site: np.clip(step(n), *bounds[site]) for site, n in learned.items()}
    if policy == "budget":
        if not budgets:
            raise ValueError("rounding='budget' needs a budget: bitjax.budget('bits', 4.0), say.")
        most = {site: np.full(n.shape, bounds[site][1]) for site, n in learned.items()}
        for limit in budgets:
            # A site that several budgets count may only lose bits from one to the next, so that a
            # budget that is met stays met.
            inside = [s for s in budget_sites(limit, costs) if s in learned]
            fixed = {**bits, **{s: n for s, n in rounded.items() if s not in inside}}
            solved = _meet(limit, learned, fixed, costs, inside, bounds, most)
            rounded.update(solved)
            most.update(solved)
        rounded = _put_right(rounded, learned, bits, costs, bounds, budgets)
    return {site: np.asarray(n, np.float32) for site, n in rounded.items()}


def _meet(limit, learned, fixed, costs, sites, bounds, most):
    """The integer bits of `sites` under one budget, all other sites held at `fixed`."""
    if not sites:
        return {}
    # The learned bits are where penalty and loss balance: there the cost's slope is the loss's.
    slopes = _slopes(limit, {**fixed, **{s: learned[s] for s in sites}}, costs, sites)
    if limit.metric == "bops":
        return _meet_bops(limit, learned, fixed, costs, sites, bounds, most, slopes)
    groups: dict[str, list[str]] = {}
    for site in sites:
        # A tensor is stored at the bits of its widest reader, so its readers are decided as one.
        key = costs[site].source if limit.metric == "activation_bytes" else site
        groups.setdefault(key, []).append(site)
    return _meet_sum(limit, learned, fixed, costs, bounds, most, slopes, list(groups.values()))


def _slopes(limit, bits, costs, sites):
    # In float64: the slopes become prices, which are compared with a limit exactly.
    with jax.enable_x64(True):
        point = {site: jnp.asarray(bits[site], float) for site in sites}
        grads = jax.grad(lambda b: cost_of(limit, {**bits, **b}, costs))(point)
    return {site: np.asarray(g, np.float64) for site, g in grads.items()}


def _meet_sum(limit, learned, fixed, costs, bounds, most, slopes, groups):
    """Costs that add up over groups of sites, and over the entries of a group's bits."""
    # With all these sites at 0 bits, the fixed part of the cost is left.
    nothing = {site: np.zeros_like(learned[site]) for group in groups for site in group}

    def cost(bits):
        return exact_cost(limit, {**fixed, **nothing, **bits}, costs)

    prices, losses, values = [], [], []
    base = cost({})
    for group in groups:
        low, high = min(bounds[s][0] for s in group), max(bounds[s][1] for s in group)
        choices = np.arange(low, high + 1)
        # [entries, choices]; a site that may not follow its group stays at its bound.
        bits, loss = {}, {}
        for site in group:
            bits[site] = np.clip(choices, bounds[site][0], most[site].reshape(-1, 1)).astype(float)
            # loss(k) = A 4^-k = slope * 4^(n - k). A slope of 0 would make all choices equal.
            gap = learned[site].reshape(-1, 1) - bits[site]
            loss[site] = np.maximum(slopes[site], 1e-12).reshape(-1, 1) * 4.0**gap
        lead = group[0]
        if _is_one(limit, group, costs, bits):
            # The cost is linear, so each entry of the bits (a channel, say) is decided alone.
            price = slopes[lead].reshape(-1, 1)
            if limit.metric == "activation_bytes":
                # The gradient of a maximum is shared among equals, or all of it goes to another
                # reader: the price is measured instead.
                price = (cost({s: 1.0 + nothing[s] for s in group}) - base) / len(bits[lead])
            prices += list(price * bits[lead])
            losses += list(np.sum(list(loss.values()), axis=0))
            values += [{s: n[entry] for s, n in bits.items()} for entry in range(len(bits[lead]))]
        else:
            # Readers with other bounds: the whole group moves as one, priced choice by choice.
            at = [
                {s: n[:, i].reshape(learned[s].shape) for s, n in bits.items()}
                for i in range(len(choices))
            ]
            prices.append(np.array([cost(n) - base for n in at]))
            losses.append(sum(np.sum(x, axis=0) for x in loss.values()))
            values.append(bits)
    solution = _allocate(limit, costs, prices, losses, limit.limit - base)
    found: dict[str, list[np.ndarray]] = {}
    for value, index in zip(values, solution.value, strict=True):
        for site, rows in value.items():
            found.setdefault(site, []).append(rows[..., index])
    return {site: np.reshape(n, learned[site].shape) for site, n in found.items()}


def _is_one(limit, group, costs, bits):
    """Whether the sites of a group have the same choices, entry by entry, and no fixed reader."""
    same = all(np.array_equal(bits[site], bits[group[0]]) for site in group)
    if limit.metric != "activation_bytes":
        return same
    source = costs[group[0]].source
    return same and all(s in group for s in budget_sites(limit, costs) if costs[s].source == source)


def _meet_bops(limit, learned, fixed, costs, sites, bounds, most, slopes):
    """Pairs of weight and input bits, a layer at a time; then single entries, inputs held."""
    # BOPs are products of both widths, so neither is decided without the other. Pairs of entries
    # would be too many: a first pass gives each site one width, a second one tunes the channels of
    # kernels, where the cost is linear again.
    rows, losses, options = [], [], []
    outside = exact_cost(limit, {**fixed, **{s: 0.0 * learned[s] for s in sites}}, costs)
    for members, pairs in _sharing(costs, sites):
        mesh = _mesh(members, learned, bounds, most)
        width = {s: mesh[:, i] for i, s in enumerate(members)}

        def bits(site, width=width):
            return width.get(site, float(np.mean(fixed.get(site, 32.0)))) if site else 32.0

        rows.append(sum(layer_macs(costs, pair) * bits(pair[0]) * bits(pair[1]) for pair in pairs))
        losses.append(
            sum(
                np.sum(slopes[s]) * 4.0 ** (np.mean(learned[s]) - mesh[:, i])
                for i, s in enumerate(members)
            )
        )
        options.append((members, mesh))
    solution = _allocate(limit, costs, rows, losses, limit.limit - outside)
    result = {}
    for (members, mesh), index in zip(options, solution.value, strict=True):
        for i, site in enumerate(members):
            result[site] = np.minimum(np.full(learned[site].shape, mesh[index, i]), most[site])
    finer = [s for s in result if costs[s].role == "kernel" and result[s].size > 1]
    if finer:
        held = {**fixed, **{s: n for s, n in result.items() if s not in finer}}
        slopes = _slopes(limit, {**held, **{s: learned[s] for s in finer}}, costs, finer)
        groups = [[s] for s in finer]
        result.update(_meet_sum(limit, learned, held, costs, bounds, most, slopes, groups))
    return result


def _sharing(costs, sites):
    """The sites to decide together, with the pairs of their layers: several may read one cache."""
    found: list[tuple[list[str], list[Any]]] = []
    for pair in layer_pairs(costs).values():
        members, pairs = [s for s in pair if s is not None and s in sites], [pair]
        if not members:
            continue
        for own in [own for own in found if set(own[0]) & set(members)]:
            found.remove(own)
            members, pairs = list(dict.fromkeys(own[0] + members)), own[1] + pairs
        found.append((members, pairs))
    return found


def _mesh(members, learned, bounds, most):
    """All bits of these sites together, `[options, sites]`; near the learned ones if many share."""

    def grid(s, reach):
        every = np.arange(bounds[s][0], int(np.max(most[s])) + 1)
        near = np.abs(every - np.mean(learned[s])) < reach
        return every[near | (every == every[0])]

    reach = 16.0
    grids = [grid(s, reach) for s in members]
    while math.prod(map(len, grids)) > _MOST_OPTIONS:
        reach /= 2
        grids = [grid(s, reach) for s in members]
    return np.stack([m.reshape(-1) for m in np.meshgrid(*grids, indexing="ij")], axis=1)


def _allocate(limit, costs, prices, losses, left):
    # The solver compares integers exactly. An average times its denominator is an integer, and so
    # is a count of bytes times 8.
    sites = sum(costs[site].count for site in budget_sites(limit, costs))
    scale = float(sites) if limit.metric == "bits" else 8.0
    prices, left = [_whole(p * scale) for p in prices], float(_whole(left * scale))
    least = math.fsum(float(np.min(row)) for row in prices)
    if least > left:
        raise unmet(limit, limit.limit + (least - left) / scale)
    if len(prices) <= _EXACT_GROUPS:
        try:
            return allocate(prices, losses, left, exact=True)
        except ValueError:
            pass  # too many states for the exact answer; the default one is close to it
    return allocate(prices, losses, left)


def unmet(limit: Budget, least: float, fix: str = "lower `min_bits`") -> ValueError:
    """The error of a budget that the least bits miss."""
    return ValueError(
        f"the budget of {limit.limit:g} on {limit.metric} of sites {limit.sites!r} cannot be "
        f"met: the fewest bits allowed cost {least:g}. Raise the budget or {fix}."
    )


def _whole(value):
    """Values with the rounding errors of multiples of 2^-16 taken off."""
    near = np.rint(np.asarray(value) * 65536.0) / 65536.0
    return np.where(np.abs(near - value) <= 1e-9 * np.maximum(1.0, np.abs(value)), near, value)


def _put_right(rounded, learned, bits, costs, bounds, budgets):
    """Meets the budgets to the last digit, and gives back the bits that all have room for."""
    # The solver's costs may be approximate, where a tensor has several readers, and a later budget
    # may have left room in an earlier one. Single bits mend both. By the error law, at one price,
    # the next bit belongs to the site whose learned bits exceed the rounded ones most, and is taken
    # from the one where they exceed them least.
    counted = {s for limit in budgets for s in budget_sites(limit, costs) if s in learned}

    def over(limit, trial):
        return exact_cost(limit, {**bits, **trial}, costs) > limit.limit

    for limit in budgets:
        while over(limit, rounded):
            inside = counted & set(budget_sites(limit, costs))
            lower = next(_moves(-1, inside, rounded, learned, costs, bounds), None)
            if lower is None:
                raise unmet(limit, exact_cost(limit, {**bits, **rounded}, costs))
            rounded = lower
    while True:
        moves = _moves(1, counted, rounded, learned, costs, bounds)
        better = next((m for m in moves if not any(over(b, m) for b in budgets)), None)
        if better is None:
            return rounded
        rounded = better


def _moves(by, sites, rounded, learned, costs, bounds) -> Iterator[dict[str, np.ndarray]]:
    """`rounded` with one entry of one site moved by a bit, the most deserving first."""
    # Entries of one layer cost the same, so the best entry of each layer is enough.
    found = []
    for site in sorted(sites):
        count, shape = costs[site].count, rounded[site].shape
        layers = count if count > 1 and shape[:1] == (count,) else 1
        gap = ((learned[site] - rounded[site]) * by).reshape(layers, -1)
        moved = (rounded[site] + by).reshape(layers, -1)
        allowed = (moved >= bounds[site][0]) & (moved <= bounds[site][1])
        gap = np.where(allowed, gap, -np.inf)
        for layer, entry in enumerate(gap.argmax(axis=1)):
            if allowed[layer, entry]:
                found.append((-gap[layer, entry], site, layer * gap.shape[1] + int(entry)))
    for _, site, place in sorted(found):
        new = np.array(rounded[site], float)  # a copy that is an array, even of a NumPy scalar
        new.reshape(-1)[place] += by
        yield {**rounded, site: new}
