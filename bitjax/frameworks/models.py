"""Takes a model of any framework as one that has rules and can be asked for its program."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from bitjax.frameworks.call import Model
from bitjax.frameworks.kinds import advice, holds_parameters, is_nnx, is_wrapped
from bitjax.frameworks.linen import Quantized
from bitjax.frameworks.plain import Function
from bitjax.rules import Rules


def as_model(model: Any) -> Model:
    """A wrapped model as it is; a Linen module or a function of parameters without rules."""
    if is_wrapped(model):
        return model
    if isinstance(model, nn.Module):
        return Quantized(model)
    if not callable(model) or isinstance(model, type) or is_nnx(model) or holds_parameters(model):
        raise TypeError(f"`model` is {advice(model)}.")
    return Function(model)


def float_model(model: Any) -> Model:
    """The model without rules."""
    return as_model(model).with_rules(())


def rules_of(model: Any) -> Rules:
    """The rules of a wrapped model; none of a float one."""
    return as_model(model).rules


def unboxed(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables without Linen's boxes, such as those that name axes for partitioning."""
    return nn.meta.unbox(dict(variables))
