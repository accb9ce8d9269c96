"""Follows what the axes of a product's operand mean back through moves of its elements.

A label is `k` for an axis that the result keeps, `b` for a batch axis of both operands, `c` for a
contracted axis and `s` for the window of a convolution.
"""

import math
from typing import Any

from bitjax.program.macs import dimension_numbers
from bitjax.quantizers.base import Axes

Labels = list[str]

# Operations that only move, repeat or cast elements.
MOVES = frozenset(
    "reshape transpose convert_element_type squeeze broadcast_in_dim rev copy copy_p expand_dims "
    "reduce_precision name sharding_constraint optimization_barrier stop_gradient pvary".split()
)
# Operations that take some elements or put arrays side by side. Only kernels are followed through
# them: the queries, keys and values of one fused projection are to stay three tensors.
TAKES = frozenset("slice concatenate pad split gather dynamic_slice".split())


def product_labels(eqn: Any) -> tuple[Labels, Labels]:
    """The labels of both operands of a product."""
    left, right = (v.aval for v in eqn.invars[:2])
    if eqn.primitive.name != "conv_general_dilated":
        contract, batch = dimension_numbers(eqn)
        both = zip((left, right), contract, batch, strict=True)
        first, second = (
            ["c" if i in c else "b" if i in b else "k" for i in range(x.ndim)] for x, c, b in both
        )
        return first, second
    spec = eqn.params["dimension_numbers"]
    first, second = ["k"] * left.ndim, ["s"] * right.ndim
    first[spec.lhs_spec[1]] = "c"
    second[spec.rhs_spec[0]], second[spec.rhs_spec[1]] = "k", "c"
    return first, second


def axes_of(labels: Labels, role: str) -> Axes:
    """What the axes of an operand mean to its quantizer."""

    def those(kinds):
        return tuple(i - len(labels) for i, label in enumerate(labels) if label in kinds)

    group = (those("c") or (-1,))[-1]
    if role == "kernel":
        return Axes(those("kb") or (-1,), group)
    # Examples come first among what a product keeps of its input: positions are behind them.
    example = next((i for i, label in enumerate(labels) if label in "kb"), None)
    return Axes((group,), group, example)


def labels_before(eqn: Any, labels: Labels, operand: int) -> Labels | None:
    """The labels of a move's operand, from those of its result; None where they do not pass."""
    before, after = eqn.invars[operand].aval, eqn.outvars[0].aval
    name = eqn.primitive.name
    if name == "transpose":
        found = [""] * before.ndim
        for i, axis in enumerate(eqn.params["permutation"]):
            found[axis] = labels[i]
        return found
    if name == "broadcast_in_dim":
        return [labels[i] for i in eqn.params["broadcast_dimensions"]]
    if name == "squeeze":
        gone = {axis % before.ndim for axis in eqn.params["dimensions"]}
        rest = iter(labels)
        return ["s" if i in gone else next(rest) for i in range(before.ndim)]
    if name == "reshape":
        return _through_reshape(before.shape, after.shape, labels)
    if name == "gather":
        return None
    return list(labels) if before.ndim == after.ndim else None


def labels_after(eqn: Any, labels: Labels) -> Labels | None:
    """The labels of a move's result, from those of its operand; None where they do not pass."""
    before, after = eqn.invars[0].aval, eqn.outvars[0].aval
    if eqn.primitive.name == "transpose":
        return [labels[axis] for axis in eqn.params["permutation"]]
    if before.shape == after.shape:
        return list(labels)
    if math.prod(before.shape) != math.prod(after.shape):
        return None
    return _through_reshape(after.shape, before.shape, labels)


def _through_reshape(before, after, labels):
    """Labels of blocks of neighbouring axes that hold the same elements."""
    if 0 in before:
        return None
    found, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        first, second = i, j
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while math.prod(before[first:i]) != math.prod(after[second:j]):
            if math.prod(before[first:i]) < math.prod(after[second:j]):
                i += 1
            else:
                j += 1
        block = [x for x, n in zip(labels[second:j], after[second:j], strict=True) if n > 1]
        block = block or labels[second:j] or ["s"]
        if len(set(block)) == 1:
            found += block[:1] * (i - first)
        elif i - first == len(block):
            found += block
        else:
            return None
    return found
