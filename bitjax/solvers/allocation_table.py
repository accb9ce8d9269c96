"""The choices of an allocation in one table, checked, with costs in whole units."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitjax.checks import ARRAY, check_one

_NO_COST = np.int64(2**62)  # Cost of a place that holds no choice: over any limit, and no overflow.


class Table(NamedTuple):
    """Choices worth having, per group by rising cost and never rising loss; then empty places."""

    costs: NDArray[np.int64]  # [groups, places], in `unit`s: sums and comparisons are exact.
    losses: NDArray[np.float64]  # [groups, places]; infinite in an empty place.
    index: NDArray[np.int64]  # [groups, places]: which of the caller's choices it is.
    unit: float


def rows_of(name: str, groups: Sequence[ArrayLike]) -> list[NDArray[np.float64]]:
    """Each group's costs or losses as one row of float64."""
    # An array is copied from its device once, not row by row.
    whole = np.asarray(groups) if hasattr(groups, "__array__") else groups
    if not (isinstance(whole, list | tuple) or getattr(whole, "ndim", 0) > 0):
        raise ValueError(f"`{name}` must be a list of one array a group, got {groups!r}.")
    for g, row in enumerate(whole):
        check_one(f"{name}[{g}]", ARRAY, row)
    rows = [np.asarray(row, dtype=np.float64) for row in whole]
    for g, row in enumerate(rows):
        if row.ndim != 1 or row.size == 0:
            raise ValueError(
                f"`{name}[{g}]` must be a non-empty array of one axis, got shape {row.shape}."
            )
    if not rows:
        raise ValueError(f"`{name}` must hold at least one group, got none.")
    return rows


def check_rows(costs: list[NDArray[np.float64]], losses: list[NDArray[np.float64]]) -> None:
    """Raises a ValueError unless costs and losses fit together and are finite, costs also >= 0."""
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


def prepare(
    cost_rows: list[NDArray[np.float64]],
    loss_rows: list[NDArray[np.float64]],
    budget: float,
) -> tuple[Table, int]:
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
    table = Table(
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


def total(losses: NDArray[np.float64], choice: NDArray[np.int64]) -> float:
    """The total loss of one choice in each group, rounded once."""
    return math.fsum(losses[np.arange(len(choice)), choice])
