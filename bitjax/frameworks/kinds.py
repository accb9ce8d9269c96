"""What somebody gave as a model, and which of bitjax's wrappers takes it."""

import sys
from typing import Any

import flax.linen as nn
import jax

from bitjax.checks import NONE, SWITCH, TEXT, choice, either, several

# The fields that wrappers share.
WRAPPED = {
    "axis_name": either(NONE, TEXT, several(TEXT, 1)),
    "sums": SWITCH,
    "calls": choice("shared", "each"),
}
WRAPPERS = (
    "bitjax.Quantized(model, rules) for Linen, bitjax.quantize(model, rules, batch) for NNX, "
    "bitjax.Function(fn, rules) for a function of parameters"
)


def is_wrapped(model: Any) -> bool:
    """Whether it can be asked for its program: it is in one of bitjax's wrappers."""
    return callable(getattr(type(model), "ask", None))


def is_nnx(model: Any) -> bool:
    """Whether it is an NNX module; loads nothing."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(model, nnx.Module)


def holds_parameters(model: Any) -> bool:
    """Whether arrays are in a callable itself, as in Equinox's modules."""
    leaves = jax.tree.leaves(model)
    return not (len(leaves) == 1 and leaves[0] is model) and any(
        hasattr(leaf, "shape") for leaf in leaves
    )


def advice(model: Any) -> str:
    """What it is, and what to call with it; the end of a sentence."""
    name = model.__name__ if isinstance(model, type) else type(model).__name__
    if isinstance(model, type):
        return f"the class {name}: give an instance, {name}(...)"
    if is_nnx(model):
        if hasattr(model, "functional"):
            return (
                "a module that bitjax.quantize made: take `function, variables = "
                "model.functional()`, give both to the tool, and put back what it returns by "
                "model.update(variables)"
            )
        return (
            f"the NNX module {name}: call `model = bitjax.quantize(model, rules, batch)` (no rules "
            "keep it float), and for bitjax's tools `function, variables = model.functional()`"
        )
    if isinstance(model, nn.Module):
        return f"the Linen module {name}: call bitjax.Quantized(model, rules)"
    if is_wrapped(model):
        return f"a model that is wrapped already, in {name}"
    if callable(model) and holds_parameters(model):
        return (
            f"{name}, which holds its parameters (Equinox): call `params, static = "
            "eqx.partition(model, eqx.is_inexact_array)` and bitjax.Function(lambda params, x: "
            "eqx.combine(params, static)(x), rules)"
        )
    if callable(model):
        return f"a function ({getattr(model, '__name__', name)}): call bitjax.Function(fn, rules)"
    if callable(getattr(model, "apply", None)):
        return (
            f"{name}, whose function is `apply` (Haiku): call bitjax.Function(model.apply, rules)"
        )
    return f"{model!r}: call {WRAPPERS}"
