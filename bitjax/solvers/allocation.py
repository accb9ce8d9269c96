"""Takes one choice per group under a hard budget at the least loss: bits to layers or channels.

Lagrangian bit allocation on convex hulls (Shoham and Gersho, 1988), then local exchanges; the exact
answer on request. Host-side NumPy: it runs once per stage, outside anything traced.
"""

import math
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitjax.checks import SWITCH, checked, choice, either, number
from bitjax.solvers.allocation_table import Table, check_rows, prepare, rows_of, total
from bitjax.solvers.base import Solution
from bitjax.solvers.exact_allocation import pareto_allocation


@checked(
    budget=either(number(0, sys.float_info.max), choice(math.inf)), exact=SWITCH, maximal=SWITCH
)
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

    A group is a unit of decision: a site with its bits, a channel, or (for BOPs) a layer whose
    choices are pairs of weight and input bits. Choices may come in any order, and losses need be
    neither convex nor decreasing.

    The default solver takes the steps of each group's lower convex hull by loss saved per cost,
    then any choice that still fits, then exchanges (one group up, another down) until none helps.
    At its end, over *all* choices of a group and not only the neighbouring ones,

    1. the total cost, `math.fsum` of the chosen costs, is at most `budget`;
    2. no dearer choice of at most the present loss (if `maximal`; else of less loss) still fits;
    3. no feasible move of one group up and another down lowers the total loss.

    So no further bit fits, if losses do not grow with bits. If measured losses are noisy and a bit
    more may look worse, give `np.minimum.accumulate(losses)`, so that 2 holds for every bit.

    With few groups the default may stay some per cent above the least loss, and `exact` costs a few
    milliseconds more; with thousands of groups the default is all but exact.

    Args:
        costs: the costs of each group's choices, [choices of the group], >= 0. Comparisons are
            exact for integers, and for binary fractions of up to 60 digits from the largest
            possible total down. Costs of more digits (0.1) are first rounded up there, so they may
            miss a budget that they meet to the last digit.
        losses: the predicted losses of each group's choices, in the same shapes.
        budget: the largest total cost allowed, in the unit of `costs`; may be infinite.
        exact: whether to find the least loss there is, up to the rounding of sums. This is hard if
            costs have many digits and losses are nearly proportional to them.
        maximal: whether to spend the rest of the budget on dearer choices of equal loss.

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
    cost_rows, loss_rows = rows_of("costs", costs), rows_of("losses", losses)
    check_rows(cost_rows, loss_rows)
    table, limit = prepare(cost_rows, loss_rows, budget)
    groups = np.arange(len(cost_rows))

    hull, slope, choice = _climb_hulls(table, limit)
    slack = _fill(table, choice, limit - int(table.costs[groups, choice].sum()))

    # Every choice's price above its group's best at the multiplier. A total loss is the bound plus
    # the prices paid plus slope * slack, so whoever beats the present one pays less than the gap.
    away = table.costs - table.costs[groups, hull][:, None]
    drop = table.losses - table.losses[groups, hull][:, None]
    prices = drop + slope * away
    at_hull = total(table.losses, hull)
    bound = at_hull - slope * (limit - int(table.costs[groups, hull].sum()))
    # Empty places have an infinite price, hence must not have an infinite allowance.
    allowance = 1e-12 * np.where(np.isinf(drop), 0.0, np.abs(drop) + slope * np.abs(away))
    allowance += 1e-12 * np.abs(table.losses[groups, hull]).sum()

    gap = total(table.losses, choice) - bound
    worth_trying = prices <= gap + allowance
    exchanges = _exchange_while_it_helps(table, choice, slack, worth_trying)
    if exact:
        gap = total(table.losses, choice) - bound
        worth_trying = prices <= gap + allowance
        found = pareto_allocation(table.costs, drop, prices, worth_trying, limit, gap)
        if found is not None and total(table.losses, found) < total(table.losses, choice):
            choice = found
    if maximal:
        _spend_on_equal_losses(table, choice, limit)

    value = table.index[groups, choice]
    objective = total(table.losses, choice)
    stats = {
        "cost": math.fsum(row[j] for row, j in zip(cost_rows, value, strict=True)),
        "budget": budget,
        "multiplier": slope / table.unit,
        "bound": min(bound, objective),  # They may differ by rounding where the bound is met.
        "exchanges": exchanges,
    }
    return Solution(value, objective, stats)


def _climb_hulls(table: Table, limit: int) -> tuple[NDArray[np.int64], float, NDArray[np.int64]]:
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


def _fill(table: Table, choice: NDArray[np.int64], slack: int) -> int:
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
    table: Table, choice: NDArray[np.int64], slack: int, worth_trying: NDArray[np.bool_]
) -> int:
    """Makes the best exchange until none lowers the total loss; in place. Returns how many."""
    objective = total(table.losses, choice)
    exchanges = 0
    while (found := _best_exchange(table, choice, slack, worth_trying)) is not None:
        groups, places = found
        trial = choice.copy()
        trial[groups] = places
        # Judged by the sum: differences of rounded numbers could go round in a circle.
        if not total(table.losses, trial) < objective:
            break
        slack -= int((table.costs[groups, places] - table.costs[groups, choice[groups]]).sum())
        slack = _fill(table, trial, slack)
        choice[:] = trial
        objective = total(table.losses, choice)
        exchanges += 1
    return exchanges


def _best_exchange(
    table: Table, choice: NDArray[np.int64], slack: int, worth_trying: NDArray[np.bool_]
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


def _spend_on_equal_losses(table: Table, choice: NDArray[np.int64], limit: int) -> None:
    """Moves each group to its dearest choice of equal loss that fits, in the order given."""
    groups = np.arange(len(choice))
    slack = limit - int(table.costs[groups, choice].sum())
    equal = table.losses == table.losses[groups, choice][:, None]
    away = table.costs - table.costs[groups, choice][:, None]
    for g in np.flatnonzero((equal & (away > 0) & (away <= slack)).any(axis=-1)).tolist():
        # One pass is enough: a choice that does not fit now will not fit once less is left.
        place = np.flatnonzero(equal[g] & (away[g] <= slack))[-1]
        choice[g] = place
        slack -= int(away[g, place])
