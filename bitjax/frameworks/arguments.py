"""Whether a call trains, read from its arguments however the model calls them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def split_train(
    function: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], bool]:
    """The function's keyword arguments, and whether this call trains."""
    kwargs, train = said_train(function, args, kwargs)
    return kwargs, bool(train)


def said_train(
    function: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], bool | None]:
    """As `split_train`, with None where the call does not say whether it trains."""
    # `train=`, `training=` or `deterministic=`, or their defaults. `train` is taken off where the
    # function does not accept it.
    kwargs = dict(kwargs)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C have no signature
        signature = inspect.signature(lambda *args: None)
    parameters = signature.parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    train = None if takes_any or "train" in parameters else kwargs.pop("train", None)
    try:
        bound = signature.bind_partial(*args, **kwargs)
        bound.apply_defaults()
        given = {**kwargs, **bound.arguments}
    except TypeError:
        given = kwargs  # the call itself will say what is wrong
    for name in ("train", "training", "deterministic"):
        if train is None and given.get(name) is not None:
            train = not given[name] if name == "deterministic" else given[name]
    return kwargs, None if train is None else bool(train)
