"""Multiply-adds of a traced program, counted without bitjax.

Counted are `conv_general_dilated`, and `dot_general` with a contracted axis: without one, as of a
mask that an einsum applies, it adds nothing up. Products with zeros of padding count; of a
transposed convolution, those with the zeros between its inputs do not. A scan counts as often as it
runs, any other nested program once: a `while`, and every branch of a `cond`.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple


class Product(NamedTuple):
    """One product of the program: its name scope, its primitive, its MACs with all repetitions."""

    scope: str
    primitive: str
    macs: int


def products(jaxpr: Any, scope: str = "", times: int = 1) -> list[Product]:
    """Every product in a program, in its order.

    Args:
      jaxpr: the `jaxpr` of what `jax.make_jaxpr` returns.
      scope: the name scope around it.
      times: how often it runs.

    Returns:
      Products whose `macs` are of the whole batch.
    """
    found = []
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        own = "/".join(part for part in (scope, str(eqn.source_info.name_stack)) if part)
        if name == "dot_general":
            if not eqn.params["dimension_numbers"][0][0]:
                continue
            found.append(Product(own, name, times * _dot(eqn)))
        elif name == "conv_general_dilated":
            found.append(Product(own, name, times * _conv(eqn)))
        else:
            often = eqn.params["length"] if name == "scan" else 1
            for sub in _nested(eqn):
                found += products(sub, own, times * often)
    return found


def total(found: list[Product]) -> int:
    """The sum of MACs."""
    return sum(p.macs for p in found)


def _dot(eqn: Any) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return eqn.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)


def _conv(eqn: Any) -> int:
    left, kernel = (v.aval for v in eqn.invars)
    spec = eqn.params["dimension_numbers"]
    if max(eqn.params["lhs_dilation"], default=1) > 1:
        # Every input element meets the part of the kernel that its feature has.
        return left.size // left.shape[spec.lhs_spec[1]] * kernel.size
    return eqn.outvars[0].aval.size * (kernel.size // kernel.shape[spec.rhs_spec[0]])


def _nested(eqn: Any) -> Iterator[Any]:
    """Programs among an operation's parameters, open and closed ones."""
    for value in eqn.params.values():
        for sub in value if isinstance(value, tuple | list) else (value,):
            sub = getattr(sub, "jaxpr", sub)
            if hasattr(sub, "eqns"):
                yield sub
