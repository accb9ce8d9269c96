"""Searches bits by what a whole network does: effects of single sites say where to look.

Effects of single sites do not add up at few bits: the best sum promises a fraction of what is
measured, and may be worse than equal bits. So a sum only ranks moves, and every step is judged on
batches that the effects have not seen.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitjax.bottleneck.outputs import Judge
from bitjax.costs.choosing import Choices, Places, choose, exchanges
from bitjax.costs.site import Costs
from bitjax.frameworks.leaves import read_leaf, write_leaf
from bitjax.variables import QUANT, STATS, read_site, write_site

_CAUTION = (0.0, 0.5, 0.75, 0.9)  # quantiles of the gains below which a site stays where it is
_LEAST = 0.05  # no single site is believed to take away more of the distance than 1 - 0.05
_NEVER = 1e9  # the loss of a place out of reach
Table = NDArray[np.float64]  # [sites, candidates]


class Mixed(NamedTuple):
    """The variables at every candidate, from which those of mixed bits are put together."""

    choices: Choices
    levels: list[dict[str, Any]]
    owned: Mapping[str, Sequence[str]] = {}  # paths of the leaves that go with a site

    def at(self, places: Places) -> dict[str, Any]:
        """The variables with each site at its candidate."""
        whole = self.levels[0]
        for site, i in zip(self.choices.sites, places, strict=True):
            for path in self.owned.get(site, ()):
                whole = write_leaf(whole, path, read_leaf(self.levels[i], path))
        quant, stats = whole[QUANT], whole.get(STATS, {})
        for site, i in zip(self.choices.sites, places, strict=True):
            quant = write_site(quant, site, read_site(self.levels[i][QUANT], site))
            own = read_site(self.levels[i].get(STATS, {}), site, None)
            stats = stats if own is None else write_site(stats, site, own)
        return {**whole, QUANT: quant, **({STATS: stats} if stats else {})}


class Search(NamedTuple):
    """What is measured on the way: `effects` judges single sites, `steps` whole allocations."""

    mixed: Mixed
    effects: Judge
    steps: Judge
    say: Callable[[str], None]

    def best(self, what: str, rows: Iterable[Places]) -> tuple[Places, float]:
        """The best of some allocations."""
        found = [(row, self.steps(self.mixed.at(row))) for row in rows]
        best = min(found, key=lambda one: one[1])
        self.say(f"{what}: {best[1]:.4g} is the best of {len(found)}")
        return best

    def uniform(self, costs: Costs) -> tuple[Places, float]:
        """The best of one number of bits for all kernels and one for all other sites."""
        choices = self.mixed.choices
        size = len(choices.levels)
        choose(choices, np.zeros((len(choices.sites), size)))  # refuses budgets that nothing meets
        kernels = np.array([costs[site].role == "kernel" for site in choices.sites])
        pairs = np.indices((size, size)).reshape(2, -1).T
        rows = np.unique(np.where(kernels, pairs[:, :1], pairs[:, 1:]), axis=0)
        rows = rows[choices.fit(rows)]
        # Of two that fit, the one with more bits everywhere is no worse.
        most = [r for r in rows if np.sum(np.all(rows >= r, axis=1)) == 1]  # itself
        return self.best("uniform bits", most)

    def alone(self) -> tuple[Table, float]:
        """What each site costs at each candidate beside the most bits; and what those cost."""
        size = len(self.mixed.choices.levels)
        top = np.full(len(self.mixed.choices.sites), size - 1)
        found, start = self._measured(top, size)
        # More bits do not hurt: what looks so is noise of the batches.
        return np.minimum.accumulate(np.maximum(found, 0.0), axis=1), start

    def around(self, at: Places) -> Table:
        """By what one site moves the distance, one candidate up or down; in logarithms."""
        found, start = self._measured(at, 1)
        logs = np.log(np.maximum((start + found) / start, _LEAST))
        places = np.arange(found.shape[1]) - at[:, None]
        return np.where(places > 0, np.minimum(logs, 0.0), np.maximum(logs, 0.0))

    def _measured(self, at, reach):
        """Changes by one site at the places within reach, infinite at the others."""
        start = self.effects(self.mixed.at(at))
        found = np.full((len(at), len(self.mixed.choices.levels)), np.inf)
        for site, own in enumerate(at):
            for place in range(max(0, own - reach), min(found.shape[1], own + reach + 1)):
                trial = np.where(np.arange(len(at)) == site, place, at)
                distance = start if place == own else self.effects(self.mixed.at(trial))
                found[site, place] = distance - start
        return found, start


def blended(alone: Table, around: Table, at: Places) -> Table:
    """One table of both kinds of effects, each in shares of its sum; near `at` only."""
    # Effects at the operating point know what the others do, and carry the most noise. Those of a
    # site alone are the steadier ones.
    near = np.isfinite(around)
    parts = [np.where(near, t, 0.0) for t in (alone - _at(alone, at), around)]
    return np.where(near, sum(t / (np.abs(t).sum() or 1.0) for t in parts), _NEVER)


def cautious(choices: Choices, at: Places, losses: Table) -> NDArray[np.int64]:
    """The allocations of least predicted loss, from bold ones to those that move few sites."""
    gains = _at(losses, at)[:, 0] - losses.min(axis=1)
    gains = gains[gains > 0]
    moved = np.arange(losses.shape[1]) != at[:, None]
    fees = [np.quantile(gains, share) if share else 0.0 for share in _CAUTION if gains.size]
    rows = [choose(choices, losses + fee * moved) for fee in fees]
    return np.unique([at, *rows], axis=0)


def descend(
    search: Search, at: Places, distance: float, losses: Table, trials: int
) -> tuple[Places, float, int]:
    """Keeps every exchange that lowers the measured distance, the likeliest tried first."""
    tried, kept = {at.tobytes()}, 0
    while trials > 0:
        for trial in exchanges(search.mixed.choices, at, losses):
            if trial.tobytes() in tried:
                continue
            tried.add(trial.tobytes())
            trials -= 1
            if (found := search.steps(search.mixed.at(trial))) < distance:
                at, distance, kept = trial, found, kept + 1
                search.say(f"exchange {kept}: {distance:.4g}")
                break
            if trials == 0:
                break
        else:
            break
    return at, distance, kept


def _at(losses, at):
    """The losses at an allocation, [sites, 1]."""
    return np.take_along_axis(losses, at[:, None], axis=1)
