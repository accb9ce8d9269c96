"""Whether a call trains, read from its arguments however the model calls them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

# Arguments that say whether a call trains, and their values where it does.
_NAMES = {"train": True, "training": True, "deterministic": False}
_OF_APPLY = "capture_intermediates"  # a keyword of Linen's `apply`, of no call


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
    # Or whether its defaults say so. Where the function does not accept `train`, the argument that
    # it has for it takes its place, or none does.
    kwargs = dict(kwargs)
    signature = _signature(function)
    parameters = signature.parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    train = None if takes_any or "train" in parameters else kwargs.pop("train", None)
    try:
        bound = signature.bind_partial(*args, **kwargs)
        for name, training in _NAMES.items():
            if train is not None and name in parameters and name not in bound.arguments:
                kwargs[name] = training if train else not training
        bound.apply_defaults()
        given = {**kwargs, **bound.arguments}
    except TypeError as error:
        if _OF_APPLY not in kwargs:
            raise TypeError(
                f"`args` and `kwargs` do not go with the model's call: {error}."
            ) from error
        given = kwargs
    for name, training in _NAMES.items():
        if train is None and given.get(name) is not None:
            train = bool(given[name]) == training
    return kwargs, None if train is None else bool(train)


def as_training(
    function: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]
) -> tuple[tuple, dict[str, Any]] | None:
    """The arguments with which a function trains; None if these do, or it is not told by them."""
    signature = _signature(function)
    name = next((name for name in _NAMES if name in signature.parameters), None)
    if name is None or split_train(function, args, kwargs)[1]:
        return None
    try:
        bound = signature.bind_partial(*args, **kwargs)
    except TypeError:
        return None
    bound.arguments[name] = _NAMES[name]
    return bound.args, bound.kwargs


def check_inputs(name: str, inputs: Any) -> None:
    """A TypeError where a model's inputs hold no array, or one that JAX does not compute with."""
    arrays = [leaf for leaf in jax.tree.leaves(inputs) if hasattr(leaf, "dtype")]
    # Other leaves may be what a model's call is told: a number, a name.
    strange = [a.dtype for a in arrays if isinstance(a.dtype, np.dtype) and a.dtype.kind in "OUSMm"]
    if strange or not any(a.size for a in arrays):
        found = f"an array of {strange[0]}" if strange else f"a {type(inputs).__name__} without any"
        raise TypeError(f"`{name}` must hold arrays of numbers, got {found}.")


def _signature(function):
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C have no signature
        return inspect.signature(lambda *args: None)
