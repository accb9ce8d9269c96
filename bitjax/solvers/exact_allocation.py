"""Exact allocation: dynamic programming over undominated partial allocations.

The multiple-choice knapsack as in Pisinger, "A minimal algorithm for the multiple-choice knapsack
problem", EJOR 83(2), 1995. A partial allocation is dropped if another one is as good in cost and
loss, or if a Lagrangian bound shows that it ends above an allocation known already.
"""

import numpy as np
from numpy.typing import NDArray

MAX_STATES = 20_000_000  # partial allocations that are tried before giving up: some 4 s and 1 GB


def pareto_allocation(
    costs: NDArray[np.int64],
    losses: NDArray[np.float64],
    prices: NDArray[np.float64],
    worth_trying: NDArray[np.bool_],
    limit: int,
    gap: float,
) -> NDArray[np.int64] | None:
    """The places of least loss among those that pay less than `gap`; None if none do."""
    # All arrays are [groups, places]; prices are loss plus multiplier times cost, above the group's
    # least. With integer costs no more states are kept than there are costs, so this is never
    # larger than the table over cost that textbooks fill, and it needs no small or equal costs.
    least = np.where(worth_trying, costs, np.iinfo(np.int64).max).min(axis=-1)
    choice = worth_trying.argmax(axis=-1)
    open_groups = np.flatnonzero(worth_trying.sum(axis=-1) > 1)
    room = limit - int(least.sum())
    if room < 0:
        return None
    most_paid = gap * (1 + 1e-9) + 1e-12 * np.abs(losses[worth_trying]).sum()

    spent = np.zeros(1, dtype=np.int64)  # Above each group's least cost.
    lost = np.zeros(1)
    paid = np.zeros(1)
    history = []
    tried = 0
    for done, g in enumerate(open_groups):
        places = np.flatnonzero(worth_trying[g])
        tried += len(places) * len(spent)
        if tried > MAX_STATES:
            raise ValueError(
                f"`exact` would try more than {MAX_STATES} partial allocations, at group {done} of "
                f"{len(open_groups)} still open: use exact=False, whose loss is at most {gap:.3g} "
                "above the least, or give costs in coarser units."
            )
        new_spent = (costs[g, places] - least[g])[:, None] + spent
        new_lost = losses[g, places][:, None] + lost
        new_paid = prices[g, places][:, None] + paid
        kept = np.flatnonzero(((new_spent <= room) & (new_paid <= most_paid)).ravel())
        if not kept.size:
            return None
        kept = kept[np.lexsort((new_lost.ravel()[kept], new_spent.ravel()[kept]))]
        ordered = new_lost.ravel()[kept]
        kept = kept[np.append(True, ordered[1:] < np.minimum.accumulate(ordered)[:-1])]
        history.append((places[kept // len(spent)].astype(np.int32), kept % len(spent)))
        spent, lost, paid = (a.ravel()[kept] for a in (new_spent, new_lost, new_paid))

    state = int(lost.argmin())
    for g, (place, parent) in zip(reversed(open_groups), reversed(history), strict=True):
        choice[g], state = place[state], parent[state]
    return choice
