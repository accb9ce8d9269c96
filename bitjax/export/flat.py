"""A traced model as one flat list of operations, and how its arrays grow with the batch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core as jcore

from bitjax.program.body import INLINE, Body, Op, called, parts_of
from bitjax.program.control import REMAT
from bitjax.rules import Rules, quantizer_of

# Calls with a derivative of their own. A program that only evaluates runs what they call.
_CALLS = (*INLINE, *REMAT, "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")


class Entry(NamedTuple):
    """One operation; its arrays go by number."""

    eqn: Any
    ins: list[int]
    outs: list[int]
    name: str  # the path of its module
    product: Any = None  # a Product, or None
    op: Any = None  # its operation
    numbers: list[int] = []  # of a product, by the number that its body has for an array


class Flat:
    """The operations of a program, with all calls inlined."""

    def __init__(self, body: Body, rules: Rules):
        self.rules = rules
        self.entries: list[Entry] = []
        self.avals: list[Any] = []  # by number
        self.fixed: dict[int, Any] = {}  # literals and constants
        self.ins = [self._number(body.avals[i]) for i in body.ins]
        self.outs = self._body(body, self.ins)

    def _number(self, aval: Any) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1

    def _body(self, body: Body, ins: Sequence[int]) -> list[int]:
        given = dict(zip(body.ins, ins, strict=True))
        numbers = [
            given[i] if i in given else self._number(aval) for i, aval in enumerate(body.avals)
        ]
        self.fixed.update((numbers[i], value) for i, value in body.fixed.items())
        for op in body.ops:
            own = [numbers[i] for i in op.ins]
            if op.bodies and op.name in REMAT:
                inside = self._body(op.bodies[0], own)
            elif op.name in _CALLS:
                inside = self._call(op.eqn, own, op.module)
            else:
                self._check(op)
                inside = [numbers[i] for i in op.outs]
                self.entries.append(Entry(op.eqn, own, inside, op.module, op.product, op, numbers))
            for place, number in zip(op.outs, inside, strict=True):
                numbers[place] = number  # of a call, those that its results have inside
        return [numbers[i] for i in body.outs]

    def _call(self, eqn: Any, ins: Sequence[int], name: str) -> list[int]:
        jaxpr, consts = parts_of(_called(eqn))
        numbers: dict[Any, int] = dict(zip(jaxpr.invars, ins, strict=True))
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            numbers[var] = self._fix(const, var.aval)

        def read(var):
            is_literal = isinstance(var, jcore.Literal)
            return self._fix(var.val, var.aval) if is_literal else numbers[var]

        for inner in jaxpr.eqns:
            own = [read(v) for v in inner.invars]
            if inner.primitive.name in _CALLS:
                outs = self._call(inner, own, name)
            else:
                outs = [self._number(v.aval) for v in inner.outvars]
                self.entries.append(Entry(inner, own, outs, name))
            numbers.update(zip(inner.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _fix(self, value: Any, aval: Any) -> int:
        number = self._number(aval)
        self.fixed[number] = value
        return number

    def _check(self, op: Op) -> None:
        inside = [name for name in op.inner if quantizer_of(self.rules, name) is not None]
        if inside:
            raise ValueError(
                f"{inside[0]!r} is quantized inside a {op.name!r}, and an integer program has no "
                "control flow: call the layers one by one in Python."
            )


def _called(eqn: Any) -> Any:
    found = called(eqn)
    return eqn.params["fun_jaxpr"] if found is None else found


class Growth(NamedTuple):
    """How a program's sizes grow when its batch has one example more."""

    batch: int | None  # the batch that was traced; None where the program does not tell
    axes: dict[int, tuple[int, ...]]  # by number, for each axis; only those that grow
    params: dict[int, dict[str, tuple[int, ...]]]  # by an entry's first result, of sizes


def growth_of(first: Flat, second: Flat | None, batch: int | None) -> Growth:
    """Compares a program with that of one example more."""
    nothing = Growth(None, {}, {})
    if second is None or batch is None or not _alike(first, second):
        return nothing
    axes = {}
    for number, (a, b) in enumerate(zip(first.avals, second.avals, strict=True)):
        if a.shape != b.shape:
            axes[number] = tuple(after - now for now, after in zip(a.shape, b.shape, strict=True))
    params = {}
    for a, b in zip(first.entries, second.entries, strict=True):
        own = {name: _grows(x, b.eqn.params.get(name)) for name, x in a.eqn.params.items()}
        own = {name: sizes for name, sizes in own.items() if sizes and any(sizes)}
        if own:
            params[a.outs[0]] = own
    return Growth(batch, axes, params)


def _alike(first: Flat, second: Flat) -> bool:
    """Whether two programs differ in sizes alone."""
    if len(first.avals) != len(second.avals) or len(first.entries) != len(second.entries):
        return False
    names = (
        a.eqn.primitive.name == b.eqn.primitive.name and a.ins == b.ins
        for a, b in zip(first.entries, second.entries, strict=True)
    )
    ranks = (len(a.shape) == len(b.shape) for a, b in zip(first.avals, second.avals, strict=True))
    # A number that counts the examples, as that of a mean over them does.
    numbers = (np.ndim(x) or np.array_equal(x, second.fixed[i]) for i, x in first.fixed.items())
    same = first.fixed.keys() == second.fixed.keys()
    return same and all(names) and all(ranks) and all(numbers)


def _grows(now: Any, after: Any) -> tuple[int, ...]:
    """How each size of a parameter grows; empty for what holds no sizes."""
    if not isinstance(now, tuple) or not isinstance(after, tuple) or len(now) != len(after):
        return ()
    if not all(type(n) is int for n in (*now, *after)):
        return ()
    return tuple(b - a for a, b in zip(now, after, strict=True))


def longer(args: Any, batch: int) -> Any:
    """A call's arguments with one example more, as shapes."""

    def more(x):
        shape = getattr(x, "shape", ())
        if not shape or shape[0] != batch or not hasattr(x, "dtype"):
            return x
        return jax.ShapeDtypeStruct((batch + 1, *shape[1:]), x.dtype)

    return jax.tree.map(more, args)
