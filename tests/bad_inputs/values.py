"""Wrong values for an argument, made from its annotation and from a value that is right."""

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

NAN, INF = float("nan"), float("inf")
OBJECT = type("Thing", (), {"__repr__": lambda self: "Thing()"})()

INTEGER = (-7, 2.5, NAN, INF, "3", "", True, [], [3], {}, 1 << 70, OBJECT)
NUMBER = (-1.0, NAN, INF, -INF, "0.5", "a\nb", [], [0.5], {}, 1j, 10**400, OBJECT)
SWITCH = ("yes", "false", "", 2, -1, NAN, [], {}, OBJECT)
TEXT = (3, NAN, True, b"abc", [], {}, OBJECT)
CHOICE = ("", "no such\nname", "Nearly", *TEXT)
PATTERN = ("(", "*", "[a", *TEXT)
LIST = (3, NAN, "abc", True, {"a": 1}, [OBJECT], OBJECT)
MAPPING = (3, "abc", [], [1], {"no/such": 1.0}, {3: 4}, OBJECT)
CALLABLE = (3, "abc", [], {}, OBJECT)


def kinds_of(annotation: Any) -> tuple[set[Any], bool]:
    """The plain types of an annotation, and whether it takes None."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    parts = typing.get_args(annotation) if union else (annotation,)
    plain = {typing.get_origin(part) or part for part in parts}
    return plain - {type(None), None}, type(None) in plain or None in plain


def wrong_values(name: str, annotation: Any, right: Any) -> Iterator[Any]:
    """Values that an argument of an annotation and a right value cannot have, whatever it means."""
    kinds, optional = kinds_of(annotation)
    if not optional and right is not None:
        yield None
    if isinstance(right, jax.Array | np.ndarray) or jax.Array in kinds:
        yield from wrong_arrays(name, right)
    elif bool in kinds:
        yield from SWITCH
    elif float in kinds or isinstance(right, float):
        yield from (value for value in NUMBER if not (str in kinds and isinstance(value, str)))
    elif int in kinds:
        yield from INTEGER
    elif str in kinds and isinstance(right, str) and right.isidentifier() and name != "name":
        yield from CHOICE
        yield right.upper()
        yield right + "s"
    elif str in kinds and name in ("layers", "sites", "pattern"):
        yield from PATTERN
    elif str in kinds:
        yield from TEXT
    elif name == "batches":
        yield from ([], *LIST)
    elif kinds & {Mapping, dict} or isinstance(right, Mapping):
        yield from MAPPING
    elif kinds & {Callable, typing.Callable} or inspect.isfunction(right):
        yield from CALLABLE
    elif kinds & {Sequence, tuple, list} or isinstance(right, tuple | list):
        yield from LIST
    else:
        yield from (3, "abc", [], OBJECT)


def wrong_arrays(name: str, right: Any) -> Iterator[Any]:
    """Arrays of another rank, another kind, without elements, or not finite."""
    array = np.asarray(right)
    yield from ("abc", {}, OBJECT, np.array(["a"]), np.array([OBJECT]))
    if array.ndim:
        yield array[None]
        yield array[:0]
        if name != "batch":  # whether the numbers of an input may be complex, its model says
            yield array.astype(complex)
        if array.dtype.kind == "f":
            broken = array.copy()
            broken.reshape(-1)[0] = NAN
            yield broken


def shown(value: Any) -> str:
    """A value for a case's name."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else text[:37] + "..."
