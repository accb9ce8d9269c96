"""A jaxpr with numbered arrays: its operations in order, and what each array depends on."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.extend import core as jcore

from bitjax.program.values import NEUTRAL, Kind, Product

# Calls that are read as if their operations stood in the caller.
INLINE = ("jit", "pjit", "closed_call", "core_call")


class Op:
    """One operation of a body."""

    def __init__(self, eqn: Any, ins: list[int], scope: str, module: str):
        self.eqn, self.ins = eqn, ins
        self.scope, self.module = scope, module  # the name stack, and the path of the module in it
        self.name: str = eqn.primitive.name
        self.outs: list[int] = []
        self.bodies: tuple[Body, ...] = ()  # of a scan, branch or loop with sites in it
        self.inner: tuple[str, ...] = ()  # the sites in its bodies
        self.product: Product | None = None

    def __call__(self, values: Sequence[Any]) -> list[Any]:
        """The operation on other values, in its scope."""
        eqn = self.eqn
        found = eqn.primitive.get_bind_params(eqn.params)
        functions, params = found if isinstance(found, tuple) else ((), found)
        if self.name == "pvary":  # of a kernel that a draw on each device made differ already
            aval: Any = jax.typeof(values[0])  # its attribute's name depends on JAX's version
            known = aval.mat.varying if hasattr(aval, "mat") else aval.vma
            params = {**params, "axes": tuple(a for a in params["axes"] if a not in known)}
            if not params["axes"]:
                return list(values)
        scope = jax.named_scope(self.scope) if self.scope else contextlib.nullcontext()
        with scope, eqn.ctx.manager:
            out = eqn.primitive.bind(*functions, *values, **params)
        return list(out) if eqn.primitive.multiple_results else [out]


class Body:
    """The operations of a jaxpr, with calls inlined."""

    def __init__(self, kinds: Sequence[Kind]):
        self.ops: list[Op] = []
        self.kinds: list[Kind] = []  # by number
        self.avals: list[Any] = []
        self.makers: dict[int, Op] = {}
        self.fixed: dict[int, Any] = {}  # values of literals and constants
        self.ins = [self.number(kind) for kind in kinds]
        self.outs: list[int] = []
        self.outputs: dict[int, list[Op]] = {}  # products by the array that their layer gives
        self.leaving: dict[int, str] = {}  # scopes by the other arrays of data that they give

    def number(self, kind: Kind, aval: Any = None) -> int:
        """A new array's number."""
        self.kinds.append(kind)
        self.avals.append(aval)
        return len(self.kinds) - 1

    def fix(self, value: Any, aval: Any) -> int:
        """The number of a constant."""
        number = self.number(NEUTRAL, aval)
        self.fixed[number] = value
        return number

    def add(self, op: Op, kinds: Sequence[Kind]) -> list[int]:
        """Appends an operation; gives the numbers of its results."""
        op.outs = [self.number(kind, v.aval) for kind, v in zip(kinds, op.eqn.outvars, strict=True)]
        self.makers.update(dict.fromkeys(op.outs, op))
        self.ops.append(op)
        return op.outs

    def all(self) -> Iterator["Body"]:
        """This body and those inside it, in order."""
        yield self
        for op in self.ops:
            for body in op.bodies:
                yield from body.all()

    def users(self) -> dict[int, list[Op]]:
        """The operations that read each array."""
        found: dict[int, list[Op]] = {}
        for op in self.ops:
            for number in dict.fromkeys(op.ins):
                found.setdefault(number, []).append(op)
        return found


class Frame:
    """The numbers of one jaxpr's variables while it is read into a body."""

    def __init__(self, body: Body, jaxpr: Any, consts: Sequence[Any], ins: Sequence[int]):
        self.body = body
        self.numbers: dict[Any, int] = dict(zip(jaxpr.invars, ins, strict=True))
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            self.numbers[var] = body.fix(const, var.aval)
        for var, number in self.numbers.items():
            if body.avals[number] is None:
                body.avals[number] = var.aval

    def read(self, var: Any) -> int:
        """The number of a variable or of a literal."""
        if isinstance(var, jcore.Literal):
            return self.body.fix(var.val, var.aval)
        return self.numbers[var]

    def bind(self, variables: Sequence[Any], numbers: Sequence[int]) -> None:
        """Names the results of an operation."""
        self.numbers.update(zip(variables, numbers, strict=True))


def parts_of(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """An open jaxpr and its constants, from either kind."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def called(eqn: Any) -> Any:
    """The jaxpr that a call runs."""
    return eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
