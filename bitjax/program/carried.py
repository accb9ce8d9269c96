"""The part of a state that passes in and out of scans, branches and loops."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Flat = dict[str, dict[str, jax.Array]]  # by site, by leaf


class Carried(NamedTuple):
    """The part of a state that enters a body, or leaves it."""

    quant: Flat = {}
    stats: Flat = {}
    pending: dict[str, Any] = {}  # what a batch's calls so far measured, of sites with several
    records: dict[int, Any] = {}
    inputs: dict[str, list[jax.Array]] = {}  # what several calls read, while variables are made

    def joined(self, other: "Carried") -> "Carried":
        """Both parts together."""
        return _each(lambda mine, its: {**mine, **its}, self, other)

    def only(self, before: "Carried") -> "Carried":
        """The entries that were there before."""
        return _each(lambda new, old: {name: new[name] for name in old}, self, before)

    def without(self, before: "Carried") -> "Carried":
        """The entries that were not."""
        return _each(
            lambda new, old: {name: x for name, x in new.items() if name not in old}, self, before
        )


def _each(function: Callable[[Any, Any], Any], one: Carried, other: Carried) -> Carried:
    """A function of two dicts, for each kind of them."""
    return Carried(*(function(a, b) for a, b in zip(one, other, strict=True)))
