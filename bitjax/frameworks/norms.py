"""Flax's batch normalisations: synchronised over devices, and their statistics averaged anew."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import flax.linen as nn


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


def batch_statistics() -> Callable[..., Any]:
    """An interceptor: normalisations use their batch, and keep the mean over their calls."""
    calls: dict[tuple[str, ...], int] = {}

    def interceptor(next_fun, args, kwargs, context):
        module = context.module
        if not isinstance(module, nn.BatchNorm) or context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        call = inspect.signature(nn.BatchNorm.__call__).bind(module, *args, **kwargs).arguments
        call = {name: value for name, value in call.items() if name != "self"}
        call.pop("use_running_average", None)
        before = calls.get(module.path, 0)
        calls[module.path] = before + 1
        # The k-th call has the weight 1/k: what is kept is the plain mean of the calls.
        momentum = before / (before + 1)
        with _fields(module, use_running_average=False, momentum=momentum, axis_name=None):
            return next_fun(call.pop("x"), **call)

    return interceptor


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
