"""Where zeros stand: masks of parameters, entries that are set to zero, arrays of nothing else."""

import jax
import numpy as np

from bitjax.program.body import Body, Op
from bitjax.program.values import NEUTRAL

# Where each operation takes what stands in the place of a parameter's entries.
_PLACED = {"scatter": 2, "dynamic_update_slice": 1}
_COPIES = ("broadcast_in_dim", "convert_element_type", "reshape", "squeeze", "copy")


def masks(body: Body, op: Op) -> bool:
    """Whether an operation on parameters may set some of their entries to zero."""
    if op.name == "mul":
        return any(_is_mask(body, i) for i in op.ins)
    places = (
        op.ins[1:] if op.name == "select_n" else op.ins[_PLACED.get(op.name, len(op.ins)) :][:1]
    )
    return any(body.kinds[i] == NEUTRAL and _may_be_zero(body, i) for i in places)


def is_zero(body: Body, number: int) -> bool:
    """Whether an array is 0 everywhere in every run."""
    maker = body.makers.get(number)
    if maker is not None:
        return maker.name in _COPIES and is_zero(body, maker.ins[0])
    value = body.fixed.get(number)
    if value is None or isinstance(value, jax.core.Tracer):
        return False
    return not np.any(np.asarray(value))


def _is_mask(body, number):
    """Whether a factor is fixed and not the same everywhere, or was a truth value."""
    maker = body.makers.get(number)
    if maker is not None and maker.name == "convert_element_type":
        if body.avals[maker.ins[0]].dtype == bool:
            return True
    fixed = body.kinds[number] == NEUTRAL and not _uniform(body, number)
    return fixed and _may_be_zero(body, number)


def _uniform(body, number):
    """Whether an array is one number, repeated or not."""
    if body.avals[number].size == 1:
        return True
    maker = body.makers.get(number)
    return maker is not None and maker.name == "broadcast_in_dim" and _uniform(body, maker.ins[0])


def _may_be_zero(body, number):
    """Whether an element may be 0; what only a run can tell may be."""
    maker = body.makers.get(number)
    if maker is not None:
        return maker.name not in _COPIES or _may_be_zero(body, maker.ins[0])
    value = body.fixed.get(number)
    if value is None or isinstance(value, jax.core.Tracer):
        return True
    return not np.all(np.asarray(value))
