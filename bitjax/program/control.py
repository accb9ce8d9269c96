"""What the primitives of control flow hold: bodies, and which operands each of them takes."""

from collections.abc import Sequence
from typing import Any

from bitjax.program.macs import bodies_of, total_of
from bitjax.program.values import DATA, Kind

REMAT = ("checkpoint", "remat2", "remat")


def macs_inside(eqn: Any) -> int:
    """Multiply-adds of an operation's bodies."""
    return sum(often * total_of(body) for often, body in bodies_of(eqn))


def scan_counts(eqn: Any) -> tuple[int, int]:
    """How many constants and carried arrays a scan has."""

    # From ranks alone: the parameters that hold the two numbers change their names with JAX's
    # version. A scanned array has one axis more outside of the body.
    def scanned(outside, inside):
        return sum(a.aval.ndim > b.aval.ndim for a, b in zip(outside, inside, strict=True))

    body = eqn.params["jaxpr"].jaxpr
    carries = len(eqn.outvars) - scanned(eqn.outvars, body.outvars)
    return len(eqn.invars) - carries - scanned(eqn.invars, body.invars), carries


def branches_of(eqn: Any, kinds: Sequence[Kind]) -> list[tuple[Any, Sequence[Kind]]] | None:
    """The bodies of a conditional or a loop with their arguments' kinds; None of anything else."""
    if eqn.primitive.name == "cond":
        return [(branch, kinds[1:]) for branch in eqn.params["branches"]]
    if eqn.primitive.name == "while":
        tests, constants = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        carried = [DATA] * (len(kinds) - tests - constants)
        return [(eqn.params["body_jaxpr"], [*kinds[tests : tests + constants], *carried])]
    return None
