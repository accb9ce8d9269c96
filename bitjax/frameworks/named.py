"""A Linen model as data: its class by import path, and its fields; for files that hold a model."""

import dataclasses
import importlib
import inspect
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from bitjax.frameworks.linen import Quantized

# The only module that a file may name: importing another one would run code of whoever wrote it.
OURS = "bitjax.models"
_MOST = 65_536  # of a number in a field: a model of more layers or channels would never be made
_FLAX = ("parent", "name")


def named(model: Any) -> dict[str, Any] | None:
    """What JSON can say of a wrapped Linen model; None of other models.

    The `arguments` are None where a field is no plain value.
    """
    if not isinstance(model, Quantized):
        return None
    inner = model.model
    kind = type(inner)
    ours = getattr(importlib.import_module(OURS), kind.__name__, None) is kind
    module = OURS if ours else kind.__module__
    fields = [f.name for f in dataclasses.fields(kind) if f.init and f.name not in _FLAX]
    try:
        arguments = {name: _plain(getattr(inner, name)) for name in fields}
    except TypeError:
        arguments = None
    name = kind.__name__ if ours else kind.__qualname__
    return {"class": f"{module}:{name}", "arguments": arguments,
            "sums": model.sums, "calls": model.calls}  # fmt: skip


def _plain(value):
    """A value of JSON; tuples are lists there, and dtypes are their names."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return np.dtype(value).name
    if hasattr(value, "dtype") and isinstance(value.dtype, np.dtype) and not hasattr(value, "ndim"):
        return value.dtype.name  # jnp.float32
    raise TypeError(f"{type(value).__name__} is no plain value")


def from_name(spec: Any) -> Quantized:
    """The model that `named` described, without rules; a ValueError where it is none of ours."""
    if spec is None:
        raise ValueError("names no model")
    if not isinstance(spec, Mapping) or not isinstance(spec.get("class"), str):
        raise ValueError("names its model in no known way")
    module, _, name = spec["class"].partition(":")
    if module != OURS:
        raise ValueError(f"is of the model {spec['class']!r}, whose code is not imported for it")
    kind = vars(importlib.import_module(OURS)).get(name)
    if not (inspect.isclass(kind) and issubclass(kind, nn.Module)):
        raise ValueError(f"names the model {name!r}, which {OURS} has not")
    arguments = spec.get("arguments")
    if arguments is None:
        raise ValueError(f"is of a {name} with fields that are no plain values")
    known = {f.name for f in dataclasses.fields(kind) if f.init} - set(_FLAX)
    if not isinstance(arguments, Mapping) or not set(arguments) <= known:
        raise ValueError(f"has arguments that {name} does not take")
    _check_sizes(arguments)
    try:
        inner = kind(**{key: _frozen(value) for key, value in arguments.items()})
        return Quantized(inner, sums=spec.get("sums", False), calls=spec.get("calls", "shared"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"has arguments that {name} refuses ({error})") from None


def _frozen(value):
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _check_sizes(arguments):
    values = list(arguments.values())
    for value in values:  # which grows
        if isinstance(value, list):
            values += value
        if isinstance(value, Mapping) or (type(value) in (int, float) and abs(value) > _MOST):
            raise ValueError(f"has the argument {value!r}, at most {_MOST} is read")
        if len(values) > _MOST:
            raise ValueError("has too many arguments")
