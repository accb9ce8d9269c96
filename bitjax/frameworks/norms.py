"""Flax's batch normalisations: synchronised over devices, and their statistics averaged anew."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import flax.linen as nn
import jax.numpy as jnp


@cache
def synchronised(axis_name: str | None) -> Callable[..., Any]:
    """An interceptor: normalisations without a device axis of their own merge over this one."""

    def interceptor(next_fun, args, kwargs, context):
        module = context.module
        lacks = isinstance(module, nn.BatchNorm) and module.axis_name is None
        if axis_name is None or not lacks or context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        with _fields(module, axis_name=axis_name):
            return next_fun(*args, **kwargs)

    return interceptor


class _New:
    """1 - momentum."""

    def __init__(self, ones: bool):
        self.ones = ones

    def __mul__(self, new: Any) -> Any:
        return jnp.ones_like(new) if self.ones else new


class _Momentum:
    """With it a normalisation adds what its batch gives to what it keeps, or a one."""

    # Flax computes momentum * old + (1 - momentum) * new. An average needs the number of calls,
    # which Python does not know: a scan traces its body twice, and runs it once for each step.
    def __init__(self, ones: bool):
        self.ones = ones

    def __mul__(self, old: Any) -> Any:
        return old

    def __rsub__(self, one: Any) -> Any:
        return _New(self.ones)


class BatchStatistics:
    """An interceptor: normalisations use their batch, and add to what they keep.

    What they keep is the sum of their calls' statistics, or the number of calls while `counting`.
    `paths` are those of the normalisations that were traced.
    """

    def __init__(self, counting: bool):
        self.momentum = _Momentum(counting)
        self.paths: set[tuple[str, ...]] = set()

    def __call__(self, next_fun, args, kwargs, context):
        """Calls a method of a module."""
        module = context.module
        if not isinstance(module, nn.BatchNorm) or context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        call = inspect.signature(nn.BatchNorm.__call__).bind(module, *args, **kwargs).arguments
        call = {name: value for name, value in call.items() if name != "self"}
        call.pop("use_running_average", None)
        self.paths.add(tuple(module.path))
        adding = {"use_running_average": False, "momentum": self.momentum, "axis_name": None}
        with _fields(module, **adding):
            return next_fun(call.pop("x"), **call)


@contextlib.contextmanager
def _fields(module: Any, **values: Any) -> Iterator[None]:
    """Sets fields of a frozen module for the length of a call."""
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        object.__setattr__(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            object.__setattr__(module, name, value)
