"""Chooses bits of least predicted loss under several budgets at once, from each site's own table.

Greedy descent at the prices of the budgets that are exceeded (Toyoda, "A simplified algorithm for
obtaining approximate solutions to zero-one programming problems", Management Science 21(12), 1975),
then exchanges of one site up and another down.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from bitjax.costs.bits import Bits
from bitjax.costs.budget import Budget, cost_of
from bitjax.costs.rounding import unmet
from bitjax.costs.site import Costs

_ROWS = 1024  # trials whose costs are computed together
Places = NDArray[np.int64]  # [sites] or [trials, sites]: each site's place among its candidates


class Choices(NamedTuple):
    """What bits the sites may have, and what they cost."""

    sites: tuple[str, ...]
    levels: NDArray[np.float64]  # the candidates, rising
    groups: NDArray[np.bool_]  # [groups, sites]: which sites one move takes along
    spent: Callable[[Places], NDArray[np.float64]]  # trials to shares of the limits [.., budgets]
    budgets: tuple[Budget, ...]

    def fit(self, places: Places) -> NDArray[np.bool_]:
        """Whether trials meet every budget."""
        return np.all(self.spent(places) <= 1.0, axis=-1)

    def moved(self, at: Places, by: int | None, *, up: bool) -> Places:
        """`at` with one group moved by one candidate, or to every one beyond where `by` is None."""
        last = len(self.levels) - 1
        steps = np.arange(1, last + 1) if by is None else np.array([by])
        step = steps[:, None, None] * self.groups * (1 if up else -1)
        rows = np.clip(at + step, 0, last).reshape(-1, len(at))
        return np.unique(rows[(rows != at).any(axis=1)], axis=0)

    def bits(self, at: Places) -> dict[str, int]:
        """The bits of an allocation."""
        return {s: int(self.levels[i]) for s, i in zip(self.sites, at, strict=True)}


def choices_of(
    sites: Sequence[str],
    candidates: Sequence[int],
    bits: Bits,
    costs: Costs,
    budgets: Sequence[Budget],
) -> Choices:
    """The choices of some sites; `bits` are those of the others, which stay."""
    levels = np.asarray(candidates, np.float64)
    fixed = {site: np.asarray(n, np.float64) for site, n in bits.items() if site not in sites}

    def cost(row):
        given = {site: jnp.asarray(n) for site, n in fixed.items()}
        given |= {site: row[i] for i, site in enumerate(sites)}
        return jnp.stack([jnp.asarray(cost_of(b, given, costs), float) for b in budgets])

    # Compiled, because a search asks for thousands of trials; in float64, which is exact.
    with jax.enable_x64(True):
        compiled = jax.jit(jax.vmap(cost))
    limits = np.array([b.limit for b in budgets])

    def spent(places):
        rows = levels[np.atleast_2d(places)]
        filled = np.resize(rows, (-(-len(rows) // _ROWS), _ROWS, len(sites)))
        with jax.enable_x64(True):
            found = np.concatenate([np.asarray(compiled(jnp.asarray(part))) for part in filled])
        return (found[: len(rows)] / limits).reshape(*np.shape(places)[:-1], len(limits))

    # A tensor is stored at the bits of its widest reader: one reader alone frees nothing.
    sources = [site if costs[site].role == "kernel" else costs[site].source for site in sites]
    shared = [[s == one for s in sources] for one in dict.fromkeys(sources)]
    groups = np.unique(np.concatenate([np.eye(len(sites), dtype=bool), shared]), axis=0)
    return Choices(tuple(sites), levels, groups, spent, tuple(budgets))


def choose(choices: Choices, losses_SxC: NDArray[np.float64]) -> Places:
    """The places of a small sum of losses within the budgets.

    Afterwards no group's next candidate fits and lowers the sum, nor does one group up and another
    down by one candidate.
    """
    loss = total_of(losses_SxC)
    at = losses_SxC.shape[1] - 1 - losses_SxC[:, ::-1].argmin(axis=1)  # the dearest of the best
    while ((now := choices.spent(at)) > 1.0).any():
        over = np.maximum(now - 1.0, 0.0)
        trials = choices.moved(at, None, up=False)
        if not len(trials):
            worst = choices.budgets[int(over.argmax())]
            least = float(now[over.argmax()] * worst.limit)
            raise unmet(worst, least, "give fewer bits among `candidates`")
        # What is freed beyond the limit is worth nothing.
        freed = np.minimum(now - choices.spent(trials), over) @ over
        added = np.maximum(loss(trials) - loss(at), 0.0)
        price = np.where(freed > 0, added / np.where(freed > 0, freed, 1.0), np.inf)
        at = trials[np.lexsort((added, -freed, price))[0]]
    while (better := next(exchanges(choices, at, losses_SxC), at)) is not at:
        if not loss(better) < loss(at):
            break
        at = better
    return at


def exchanges(choices: Choices, at: Places, losses_SxC: NDArray[np.float64]) -> Iterator[Places]:
    """One group up, and perhaps another down, by a candidate each, within the budgets.

    The least sum of losses comes first.
    """
    up, down = (choices.moved(at, 1, up=way) for way in (True, False))
    both = (up[:, None] + down - at).reshape(-1, len(at))
    trials = np.concatenate([up, both[(both != at).any(axis=1)]])
    trials = trials[np.argsort(total_of(losses_SxC)(trials), kind="stable")]
    for start in range(0, len(trials), _ROWS):
        some = trials[start : start + _ROWS]
        yield from some[choices.fit(some)]


def total_of(losses_SxC: NDArray[np.float64]) -> Callable[[Places], NDArray[np.float64]]:
    """The sum of losses at places [..., sites]."""
    return lambda places: losses_SxC[np.arange(len(losses_SxC)), places].sum(axis=-1)
