"""One choice per group under a hard budget, at the least total loss: bits to layers or channels.

Lagrangian bit allocation on convex hulls (Shoham and Gersho, 1988), then local exchanges; the exact
answer on request. Host-side NumPy: it runs once per stage, outside anything traced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitjax.solvers.base import Solution
from bitjax.solvers.exact_allocation import pareto_allocation

_NO_COST = np.int64(2**62)  # Cost of a place that holds no choice: over any limit, and no overflow.


def allocate(
    costs: Sequence[ArrayLike],
    losses: Sequence[ArrayLike],
    budget: float,
    *,
    exact: bool = False,
    maximal: bool = True,
) -> Solution:
    r"""Takes one choice in each group, at the least total loss whose total cost meets the budget.

    $$\min_{j} \sum_g L_g(j_g) \quad\text{subject to}\quad \sum_g C_g(j_g) \le R$$

    A group is whatever is decided as one: a site with its bits, a channel, or (for BOPs) a layer
    whose choices are pairs of weight and input bits. Choices may come in any order, and losses need
    be neither convex nor decreasing.

    The default solver takes the steps of each group's lower convex hull by loss saved per cost,
    then whatever choice still fits, then exchanges (one group up, another down) until none helps.
    At its end, over *all* choices of a group and not only the neighbouring ones,

    1. the total cost, `math.fsum` of the chosen costs, is at most `budget`;
    2. no dearer choice of at most the present loss (if `maximal`; else of less loss) still fits;
    3. no feasible move of one group up and another down lowers the total loss.

    So no further bit fits, if losses do not grow with bits. Where measured losses are noisy and a
    bit more may look worse, give `np.minimum.accumulate(losses)` for 2 to hold of every bit.

    With few groups the default may stay some per cent above the least loss, and `exact` costs a few
    milliseconds more; with thousands of groups the default is all but exact.

    Args:
        costs: for each group, the costs of its choices, [choices of the group], >= 0. Comparisons
            are exact for integers, and for binary fractions of up to 60 digits from the largest
            possible total down; costs of more digits (0.1) are first rounded up there, and may so
            miss a budget that they meet to the last digit.
        losses: for each group, the predicted losses of its choices, of the same shapes.
        budget: the largest total cost allowed, in the unit of `costs`; may be infinite.
        exact: find the least loss there is, up to the rounding of sums. Hard where costs have many
            digits and losses are nearly proportional to them.
        maximal: spend what is left of the budget on dearer choices of equal loss.

    Returns:
        `value`: the index of the chosen choice in each group, int64 [groups]; of choices equal in
            cost and loss the first given. `objective`: the total loss. `stats`: `cost`, `budget`,
            `multiplier` (loss saved per cost by the first hull step that did not fit; 0 if all
            did), `bound` (no allocation within the budget has less loss than this; the Lagrangian
            dual at that multiplier) and `exchanges` (how many were made).

    Raises:
        ValueError: if shapes, signs or values are wrong; if no allocation meets the budget; if
            `exact` needs more than `exact_allocation.MAX_STATES` partial allocations.

    Example:
        Two layers of 100 and 300 weights at 1 to 4 bits; 1000 bits for both.

        >>> import numpy as np
        >>> bits = np.arange(1, 5)
        >>> solution = allocate([100 * bits, 300 * bits], [4.0 ** -bits, 2 * 4.0 ** -bits], 1000)
        >>> bits[solution.value].tolist(), solution.stats["cost"]
        ([4, 2], 1000.0)

    Source: Y. Shoham and A. Gersho, "Efficient bit allocation for an arbitrary set of quantizers",
        IEEE Trans. ASSP 36(9), 1988. There the answer is the hull point under the budget; here the
        rest of the budget is spent too, and exchanges leave the hull.
    """
    budget = float(budget)
    if not budget >= 0:
        raise ValueError(f"`budget` must be a number >= 0, got {budget}.")
    cost_rows, loss_rows = _rows("costs", costs), _rows("losses", losses)
    _check(cost_rows, loss_rows)
    table, limit = _prepare(cost_rows, loss_rows, budget)
    groups = np.arange(len(cost_rows))

    hull, slope, choice = _climb_hulls(table, limit)
    slack = _fill(table, choice, limit - int(table.costs[groups, choice].sum()))

    # Every choice's price above its group's best at the multiplier. A total loss is the bound plus
    # the prices paid plus slope * slack, so whoever beats the present one pays less than the gap.
    away = table.costs - table.costs[groups, hull][:, None]
    drop = table.losses - table.losses[groups, hull][:, None]
    prices = drop + slope * away
    at_hull = _total(table.losses, hull)
    bound = at_hull - slope * (limit - int(table.costs[groups, hull].sum()))
    # Empty places have an infinite price, hence must not have an infinite allowance.
    allowance = 1e-12 * np.where(np.isinf(drop), 0.0, np.abs(drop) + slope * np.abs(away))
    allowance += 1e-12 * np.abs(table.losses[groups, hull]).sum()

    gap = _total(table.losses, choice) - bound
    worth_trying = prices <= gap + allowance
    exchanges = _exchange_while_it_helps(table, choice, slack, worth_trying)
    if exact:
        gap = _total(table.losses, choice) - bound
        worth_trying = prices <= gap + allowance
        found = pareto_allocation(table.costs, drop, prices, worth_trying, limit, gap)
        if found is not None and _total(table.losses, found) < _total(table.losses, choice):
            choice = found
    if maximal:
        _spend_on_equal_losses(table, choice, limit)

    value = table.index[groups, choice]
    objective = _total(table.losses, choice)
    stats = {
        "cost": math.fsum(row[j] for row, j in zip(cost_rows, value, strict=True)),
        "budget": budget,
        "multiplier": slope / table.unit,
        "bound": min(bound, objective),  # They may differ by rounding where the bound is met.
        "exchanges": exchanges,
    }
    return Solution(value, objective, stats)


class _Table(NamedTuple):
    """Choices worth having, per group by rising cost and never rising loss; then empty places."""

    costs: NDArray[np.int64]  # [groups, places], in `unit`s: sums and comparisons are exact.
    losses: NDArray[np.float64]  # [groups, places]; infinite in an empty place.
    index: NDArray[np.int64]  # [groups, places]: which of the caller's choices it is.
    unit: float


def _rows(name: str, groups: Sequence[ArrayLike]) -> list[NDArray[np.float64]]:
    # An array is copied from its device once, not row by row.
    whole = np.asarray(groups) if hasattr(groups, "__array__") else groups
    rows = [np.asarray(row, dtype=np.float64) for row in whole]
    for g, row in enumerate(rows):
        if row.ndim != 1 or row.size == 0:
            raise ValueError(
                f"`{name}[{g}]` must be a non-empty array of one axis, got shape {row.shape}."
            )
    if not rows:
        raise ValueError(f"`{name}` must hold at least one group, got none.")
    return rows


def _check(costs: list[NDArray[np.float64]], losses: list[NDArray[np.float64]]) -> None:
    if len(costs) != len(losses):
        raise ValueError(
            "`costs` and `losses` must hold the same groups, "
            f"got {len(costs)} and {len(losses)} of them."
        )
    for g, (cost, loss) in enumerate(zip(costs, losses, strict=True)):
        if cost.shape != loss.shape:
            raise ValueError(
                f"`costs[{g}]` and `losses[{g}]` must have the same shape, "
                f"got {cost.shape} and {loss.shape}."
            )
    for name, rows, least in (("costs", costs, 0.0), ("losses", losses, -np.inf)):
        flat = np.concatenate(rows)
        wrong = np.flatnonzero(~(np.isfinite(flat) & (flat >= least)))
        if wrong.size:
            g = np.searchsorted(np.cumsum([len(row) for row in rows]), wrong[0], side="right")
            wanted = "finite and >= 0" if name == "costs" else "finite"
            raise ValueError(f"`{name}[{g}]` must be {wanted}, got {flat[wrong[0]]}.")


def _prepare(
    cost_rows: list[NDArray[np.float64]],
    loss_rows: list[NDArray[np.float64]],
    budget: float,
) -> tuple[_Table, int]:
    """The choices no other one makes pointless, and the budget in the table's unit."""
    sizes = np.array([len(row) for row in cost_rows])
    present = np.arange(sizes.max()) < sizes[:, None]
    raw = np.concatenate(cost_rows)
    largest = math.fsum(row.max() for row in cost_rows)
    shift = 60 - math.frexp(largest)[1]  # The largest total lies below 2^60 units.
    costs = np.full(present.shape, _NO_COST)
    # Rounded up, hence a total that meets the limit does so before rounding too.
    costs[present] = np.ceil(np.ldexp(raw, shift)).astype(np.int64)
    losses = np.full(present.shape, np.inf)
    losses[present] = np.concatenate(loss_rows)

    index = np.lexsort((losses, costs), axis=-1)
    costs = np.take_along_axis(costs, index, axis=-1)
    losses = np.take_along_axis(losses, index, axis=-1)
    before = np.minimum.accumulate(losses, axis=-1)[:, :-1]
    useful = np.ones_like(present)
    useful[:, 1:] = (losses[:, 1:] <= before) & (costs[:, 1:] > costs[:, :-1])
    costs = np.where(useful, costs, _NO_COST)
    losses = np.where(useful, losses, np.inf)
    left = np.argsort(~useful, axis=-1, kind="stable")[:, : useful.sum(axis=-1).max()]
    table = _Table(
        costs=np.take_along_axis(costs, left, axis=-1),
        losses=np.take_along_axis(losses, left, axis=-1),
        index=np.take_along_axis(index, left, axis=-1),
        unit=math.ldexp(1.0, -shift),
    )

    if budget >= largest:
        limit = int(np.where(useful, costs, 0).max(axis=-1).sum())
    else:  # The last number of units that `math.fsum` does not round to more than the budget.
        limit = (
            math.ceil((Fraction(budget) + Fraction(math.ulp(budget)) / 2) * Fraction(2) ** shift)
            - 1
        )
    if table.costs[:, 0].sum() > limit:
        least = math.fsum(row.min() for row in cost_rows)
        raise ValueError(
            f"The cheapest choice of every group costs {least:.17g} in all, over the `budget` of "
            f"{budget:.17g}: raise the budget or offer cheaper choices."
        )
    return table, limit


def _total(losses: NDArray[np.float64], choice: NDArray[np.int64]) -> float:
    return math.fsum(losses[np.arange(len(choice)), choice])


def _climb_hulls(table: _Table, limit: int) -> tuple[NDArray[np.int64], float, NDArray[np.int64]]:
    """Takes hull steps by falling slope.

    Returns the choices when the first step does not fit, that step's slope, and the choices when
    none fits. The first ones are each group's best at that slope, as bisection would find them.
    """
    rows = np.arange(len(table.costs))
    at = np.zeros_like(rows)
    ceiling = np.full(len(rows), np.inf)
    steps = []
    while rows.size:
        away = table.costs[rows] - table.costs[rows, at[rows]][:, None]
        saved = table.losses[rows, at[rows]][:, None] - table.losses[rows]
        slopes = np.where(saved > 0, saved, 0.0) / np.maximum(away, 1)
        best = slopes.argmax(axis=-1)
        picked = np.arange(len(rows)), best
        rising = slopes[picked] > 0
        # Rounding can make a straight hull look bent the wrong way; steps must stay in order.
        ceiling[rows] = np.minimum(ceiling[rows], slopes[picked])
        rows, best = rows[rising], best[rising]
        steps.append((rows, best, away[picked][rising], ceiling[rows]))
        at[rows] = best
    group, place, added, slopes = (np.concatenate(parts) for parts in zip(*steps, strict=True))
    order = np.argsort(-slopes, kind="stable")
    group, place, added, slopes = group[order], place[order], added[order], slopes[order]

    slack = limit - int(table.costs[:, 0].sum())
    fitting = np.searchsorted(np.cumsum(added), slack, side="right")
    hull = np.zeros(len(table.costs), dtype=np.int64)
    np.maximum.at(hull, group[:fitting], place[:fitting])
    slope = float(slopes[fitting]) if fitting < len(slopes) else 0.0

    slack -= int(added[:fitting].sum())
    choice = hull.copy()
    stuck = set()
    rest = (array[fitting:].tolist() for array in (group, place, added))
    for g, j, cost in zip(*rest, strict=True):
        if cost > slack or g in stuck:
            stuck.add(g)
        else:
            choice[g] = j
            slack -= cost
    return hull, slope, choice


def _fill(table: _Table, choice: NDArray[np.int64], slack: int) -> int:
    """Takes choices of less loss while one fits, best loss saved per cost first; in place."""
    groups = np.arange(len(choice))
    while True:
        away = table.costs - table.costs[groups, choice][:, None]
        saved = table.losses[groups, choice][:, None] - table.losses
        fits = (saved > 0) & (away <= slack)
        movable = np.flatnonzero(fits.any(axis=-1))
        if not movable.size:
            return slack
        slopes = np.where(fits, saved, 0.0) / np.maximum(away, 1)
        best = np.where(fits, slopes, -1.0).argmax(axis=-1)
        order = np.argsort(-slopes[movable, best[movable]], kind="stable")
        for g in movable[order].tolist():
            if away[g, best[g]] <= slack:
                choice[g] = best[g]
                slack -= int(away[g, best[g]])


def _exchange_while_it_helps(
    table: _Table, choice: NDArray[np.int64], slack: int, worth_trying: NDArray[np.bool_]
) -> int:
    """Makes the best exchange until none lowers the total loss; in place. Returns how many."""
    objective = _total(table.losses, choice)
    exchanges = 0
    while (found := _best_exchange(table, choice, slack, worth_trying)) is not None:
        groups, places = found
        trial = choice.copy()
        trial[groups] = places
        # Judged by the sum: differences of rounded numbers could go round in a circle.
        if not _total(table.losses, trial) < objective:
            break
        slack -= int((table.costs[groups, places] - table.costs[groups, choice[groups]]).sum())
        slack = _fill(table, trial, slack)
        choice[:] = trial
        objective = _total(table.losses, choice)
        exchanges += 1
    return exchanges


def _best_exchange(
    table: _Table, choice: NDArray[np.int64], slack: int, worth_trying: NDArray[np.bool_]
) -> tuple[list[int], list[int]] | None:
    """The move of one group up and another down that lowers the loss most, if any does.

    Sorted by the cost it frees, each way down has a place in a running minimum of the loss it adds;
    each way up looks up the least among those that free enough. No pair is formed.
    """
    rows = np.flatnonzero(worth_trying.sum(axis=-1) > 1)
    away = table.costs[rows] - table.costs[rows, choice[rows]][:, None]
    saved = table.losses[rows, choice[rows]][:, None] - table.losses[rows]
    up = np.nonzero(worth_trying[rows] & (saved > 0))
    down = np.nonzero(worth_trying[rows] & (away < 0))
    if not (up[0].size and down[0].size):
        return None
    down = tuple(axis[np.argsort(away[down], kind="stable")] for axis in down)
    added = -saved[down]
    reach = np.searchsorted(away[down], slack - away[up], side="right") - 1
    gain = np.where(reach >= 0, saved[up], -np.inf)

    def partners(added: NDArray, ups: NDArray) -> tuple[NDArray, NDArray]:
        least = np.minimum.accumulate(added)
        record = np.append(True, added[1:] < least[:-1])
        holder = np.maximum.accumulate(np.where(record, np.arange(len(added)), 0))
        return gain[ups] - least[reach[ups]], holder[reach[ups]]

    worth, partner = partners(added, np.arange(len(gain)))
    alien = np.zeros(len(rows), dtype=bool)  # Groups whose own ways down were left out already.
    while worth[best := worth.argmax()] > 0:
        g = up[0][best]
        if alien[g] or down[0][partner[best]] != g:
            pair = up[0][best], down[0][partner[best]]
            return rows[list(pair)].tolist(), [up[1][best], down[1][partner[best]]]
        own = np.flatnonzero(up[0] == g)
        worth[own], partner[own] = partners(np.where(down[0] == g, np.inf, added), own)
        alien[g] = True
    return None


def _spend_on_equal_losses(table: _Table, choice: NDArray[np.int64], limit: int) -> None:
    """Moves each group to its dearest choice of equal loss that fits, in the order given."""
    groups = np.arange(len(choice))
    slack = limit - int(table.costs[groups, choice].sum())
    equal = table.losses == table.losses[groups, choice][:, None]
    away = table.costs - table.costs[groups, choice][:, None]
    for g in np.flatnonzero((equal & (away > 0) & (away <= slack)).any(axis=-1)).tolist():
        # One pass will do: what does not fit now will not fit once less is left.
        place = np.flatnonzero(equal[g] & (away[g] <= slack))[-1]
        choice[g] = place
        slack -= int(away[g, place])
