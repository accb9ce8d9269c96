"""Multiply-adds of products and of whole programs, from shapes alone."""

import math
from collections.abc import Iterator
from typing import Any

PRODUCTS = ("dot_general", "ragged_dot_general", "conv_general_dilated")


def multiplies(eqn: Any) -> bool:
    """Whether an operation is a product with sums: a mask by einsum multiplies elements alone."""
    if eqn.primitive.name != "dot_general":
        return eqn.primitive.name in PRODUCTS
    (contracted, _), _ = dimension_numbers(eqn)
    return len(contracted) > 0


def dimension_numbers(eqn: Any) -> Any:
    """The contracted and the batch axes of a product of two matrices."""
    ragged = eqn.params.get("ragged_dot_dimension_numbers")
    return eqn.params["dimension_numbers"] if ragged is None else ragged.dot_dimension_numbers


def macs_of(eqn: Any) -> int:
    """Multiply-adds of one product or convolution; products with padding's zeros count."""
    if not multiplies(eqn):
        return 0
    left, right = (v.aval for v in eqn.invars[:2])
    size = eqn.outvars[0].aval.size
    if eqn.primitive.name != "conv_general_dilated":
        (contracted, _), _ = dimension_numbers(eqn)
        macs = size * math.prod(left.shape[axis] for axis in contracted)
        ragged = eqn.params.get("ragged_dot_dimension_numbers")
        # Groups part what is summed, as in the gradient of a kernel: every row is in one of them.
        parts = ragged is not None and set(ragged.lhs_ragged_dimensions) <= set(contracted)
        return macs // max(1, eqn.invars[2].aval.shape[-1]) if parts else macs
    spec = eqn.params["dimension_numbers"]
    if max(eqn.params["lhs_dilation"], default=1) > 1:  # a transposed convolution spreads its input
        return left.size // left.shape[spec.lhs_spec[1]] * right.size
    return size * right.size // right.shape[spec.rhs_spec[0]]


def bodies_of(eqn: Any) -> Iterator[tuple[int, Any]]:
    """The programs inside an operation, and how often each of them runs."""
    often = eqn.params["length"] if eqn.primitive.name == "scan" else 1
    for value in eqn.params.values():
        for body in value if isinstance(value, tuple | list) else (value,):
            body = getattr(body, "jaxpr", body)
            if hasattr(body, "eqns"):
                yield often, body


def total_of(jaxpr: Any) -> int:
    """Multiply-adds of a program: scans by their length, loops once, every branch."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in PRODUCTS:
            total += macs_of(eqn)
        total += sum(often * total_of(body) for often, body in bodies_of(eqn))
    return total


def has(jaxpr: Any, names: tuple[str, ...]) -> bool:
    """Whether an operation of one of these names is anywhere in a program."""
    return any(
        eqn.primitive.name in names or any(has(body, names) for _, body in bodies_of(eqn))
        for eqn in jaxpr.eqns
    )
