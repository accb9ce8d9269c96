"""What a program computes of its variables and constants alone: noted first, then run at once."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bitjax.export.flat import Entry
from bitjax.program.body import Op

Name = Hashable  # an array's number, or what else a variable goes by


class _Maker(NamedTuple):
    run: Callable[..., Sequence[Any]]
    ins: tuple[Name, ...]
    outs: tuple[int, ...]
    entry: Entry | None  # the program's own operation, if it is one


class Constants:
    """The arrays that no data reaches."""

    def __init__(self, given: Mapping[Name, Any], fixed: Mapping[int, Any]):
        self.given, self.fixed = dict(given), dict(fixed)
        self.makers: dict[Name, _Maker] = {}
        self.literals: set[Name] = set(fixed)  # what depends on no variable

    def __contains__(self, number: Name) -> bool:
        return number in self.makers or number in self.fixed or number in self.given

    def add(
        self,
        run: Callable[..., Sequence[Any]],
        ins: Iterable[Name],
        outs: Iterable[int],
        entry: Entry | None = None,
    ) -> None:
        """Notes how constants are made of others."""
        maker = _Maker(run, tuple(ins), tuple(outs), entry)
        for number in maker.outs:
            self.makers[number] = maker
        if self.literals.issuperset(maker.ins):
            self.literals.update(maker.outs)

    def add_entry(self, entry: Entry) -> None:
        """Notes an operation of the program."""
        op = Op(entry.eqn, entry.ins, "", entry.name)
        self.add(lambda *values: op(values), entry.ins, entry.outs, entry)

    def entry(self, number: Name) -> Entry | None:
        """The program's operation that makes a constant."""
        maker = self.makers.get(number)
        return None if maker is None else maker.entry

    def values(self, numbers: Iterable[int]) -> dict[int, np.ndarray]:
        """The arrays, computed in one program as evaluation computes them."""
        numbers = list(dict.fromkeys(numbers))
        order = self._order(numbers)

        # Variables are arguments and literals are not, as in evaluation: XLA rounds a division by
        # a literal in another way than one by a variable.
        def run(given):
            found = {**self.fixed, **dict(zip(names, given, strict=True))}
            for maker in order:
                results = maker.run(*(found[i] for i in maker.ins))
                found.update(zip(maker.outs, results, strict=True))
            return {i: found[i] for i in numbers if i in self.makers}

        names = list({i: None for maker in order for i in maker.ins if i in self.given})
        made = jax.jit(run)([self.given[i] for i in names])
        here = {**self.fixed, **self.given, **made}
        return {i: np.asarray(here[i]) for i in numbers}

    def _order(self, numbers: Iterable[Name]) -> list[_Maker]:
        """The makers of these constants, in the order in which they can run."""
        order: dict[int, _Maker] = {}
        waiting = [(number, False) for number in numbers]
        done: set[Name] = set()
        while waiting:
            number, ready = waiting.pop()
            maker = self.makers.get(number)
            if maker is None:
                continue
            if ready:
                order.setdefault(id(maker), maker)
            elif number not in done:
                done.add(number)
                waiting.append((number, True))
                waiting += [(i, False) for i in maker.ins]
        return list(order.values())
