"""Hard budgets while bits are learned: a gradient that raises no cost, and bits within a cost.

Nocedal and Wright, Numerical Optimization (2006): least-squares multipliers (eq. 18.22) and the
gradient projection method (section 16.7).
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bitjax.costs.bits import Bits
from bitjax.costs.budget import Budget, budget_sites, cost_of
from bitjax.costs.site import Costs

_SWEEPS = 10  # over the multipliers of several budgets
_NEWTON = 8  # steps to the cost allowed: the cost falls convexly with the shift

Limits = Mapping[str, tuple[float, float]]


def allowed(budgets: Sequence[Budget], start: jax.Array, share: jax.Array) -> jax.Array:
    """The costs that budgets allow on the way from `start` to their limits, `[budgets]`.

    Geometric in the share of the way: bits fall by equal ratios, and from any start in time.

    Example:
      >>> allowed([Budget("bits", 2.0)], jnp.array([8.0]), jnp.float32(0.5)).tolist()
      [4.0]
    """
    limit = jnp.asarray([b.limit for b in budgets], jnp.float32)
    above = jnp.maximum(start / limit, 1.0)
    return limit * above ** (1.0 - jnp.clip(share, 0.0, 1.0))


def steered(
    gradient: Bits,
    bits: Bits,
    limits: Limits,
    costs: Costs,
    budgets: Sequence[Budget],
    most: jax.Array,
) -> dict[str, jax.Array]:
    """The gradient g + sum_k mu_k grad c_k whose descent raises no cost that is at its most.

    mu >= 0 is where that is shortest. Bits that stand at a bound and would pass it move nothing,
    and are not counted. `gradient` is `{site: array}` of the bits that are learned, whose bounds
    are `limits`; `bits` and `costs` are of all sites, and `most` is `[budgets]`.
    """
    flat, unravel = ravel_pytree(dict(gradient))
    slopes = []
    for limit, top in zip(budgets, most, strict=True):
        cost, slope = jax.value_and_grad(lambda b, limit=limit: cost_of(limit, b, costs))(
            dict(bits)
        )
        each = ravel_pytree({s: slope[s] for s in gradient})[0]
        slopes.append(jnp.where(cost >= 0.999 * top, each / top, 0.0))
    slopes = jnp.stack(slopes)
    lowest = ravel_pytree({s: bits[s] <= limits[s][0] for s in gradient})[0]
    highest = ravel_pytree({s: bits[s] >= limits[s][1] for s in gradient})[0]

    def sweep(_, mu):
        for k in range(len(budgets)):
            now = flat + mu @ slopes
            stuck = jnp.where(now > 0.0, lowest, highest)
            own = jnp.where(stuck, 0.0, slopes[k])
            square = jnp.sum(own * own)
            less = jnp.sum(own * now) / jnp.where(square > 0.0, square, 1.0)
            mu = mu.at[k].set(jnp.maximum(0.0, mu[k] - less))
        return mu

    mu = jax.lax.fori_loop(0, _SWEEPS, sweep, jnp.zeros(len(budgets), flat.dtype))
    return unravel(flat + mu @ slopes)


def within(
    bits: Bits, limits: Limits, costs: Costs, budgets: Sequence[Budget], most: jax.Array
) -> dict[str, jax.Array]:
    """Bits in their bounds, and shifted down together as far as each budget asks.

    One shift for all that a budget counts keeps what they have learned of each other; the bounds
    hold single ones back. Bits that are not in `limits` stay. Costs end within 1e-4 of `most`. Of
    the readers of one tensor, which count once, the widest is shifted, and the others once it has
    come down to them.
    """
    found = {s: jnp.clip(n, *limits[s]) if s in limits else n for s, n in bits.items()}
    for limit, top in zip(budgets, most, strict=True):
        slope = jax.grad(lambda b, limit=limit: cost_of(limit, b, costs))(found)
        counts = {s: jnp.where(slope[s] > 0.0, 1.0, 0.0) for s in limits}
        behind = {}
        for readers in _readers(limit, limits, costs):
            width = jnp.stack([jnp.mean(found[s]) for s in readers])
            any_counts = jnp.max(jnp.stack([jnp.max(counts[s]) for s in readers]))
            counts.update(dict.fromkeys(readers, any_counts))
            behind.update(zip(readers, jnp.max(width) - width, strict=True))

        def shifted(shift, now=found, counts=counts, behind=behind):
            own = dict.fromkeys(counts, shift)
            # No `maximum`: where the two are equal, its slope is half of the one that follows.
            own.update({s: jnp.where(shift >= n, shift - n, 0.0) for s, n in behind.items()})
            down = {s: jnp.maximum(now[s] - own[s] * n, limits[s][0]) for s, n in counts.items()}
            return {**now, **down}

        def newton(_, shift, limit=limit, top=top, shifted=shifted):
            cost, fall = jax.value_and_grad(lambda t: cost_of(limit, shifted(t), costs))(shift)
            return shift + jnp.maximum(cost - top, 0.0) / jnp.maximum(-fall, 1e-6 * top)

        found = shifted(jax.lax.fori_loop(0, _NEWTON, newton, jnp.zeros(())))
    return found


def _readers(limit: Budget, limits: Limits, costs: Costs) -> list[list[str]]:
    """The sites in `limits` that a budget counts once together, where they are several."""
    found: dict[str, list[str]] = {}
    if limit.metric == "activation_bytes":
        for site in budget_sites(limit, costs):
            found.setdefault(costs[site].source, []).extend([site] if site in limits else [])
    return [sites for sites in found.values() if len(sites) > 1]
