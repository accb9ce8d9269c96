"""Keeps what is made once for equal static values: keys that tell 1 from True, a bounded store."""

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import numpy as np

_LOCK = threading.Lock()


class Static:
    """A static argument as part of a key: 1, 1.0 and True are three."""

    def __init__(self, value: Any):
        self.value = value
        self.key = type(value), value, numbers(value)

    def __hash__(self):
        return hash(self.key)

    def __eq__(self, other):
        return isinstance(other, Static) and self.key == other.key


class Same:
    """A value as part of a key that only it is equal to; the key keeps it alive."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self):
        return id(self.value)

    def __eq__(self, other):
        return isinstance(other, Same) and self.value is other.value


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Told:
    """What a trace tells beside its arrays, a hashable value: part of a compiled result."""

    value: Any


def numbers(key: Any) -> tuple[tuple[type, str], ...]:
    """The numbers in a key as text, which tells apart what is equal: 1, 1.0 and True, 0.0 and -0.0.

    They may be in fields, as a model's are, also in those that an equality leaves out.
    """
    found, waiting, seen = [], [key], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, bool | int | float | complex | np.generic):
            found.append((type(value), repr(value)))
            continue
        if id(value) in seen or isinstance(value, type):
            continue
        seen.add(id(value))
        if dataclasses.is_dataclass(value):
            waiting += [getattr(value, f.name, None) for f in dataclasses.fields(value)]
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, tuple | list):
            waiting += value
    return tuple(found)


def is_array(x: Any) -> bool:
    """Whether a leaf is data of a traced function; what is not stays a Python value."""
    if isinstance(x, np.bool_):  # a flag such as `train`, by which a model chooses in Python
        return False
    return isinstance(x, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def split_static(leaves: list[Any]) -> tuple[list[Any], tuple[Static | None, ...]]:
    """The arrays among leaves, and the others as parts of a key, with None for each array."""
    arrays = [x for x in leaves if is_array(x)]
    return arrays, tuple(None if is_array(x) else Static(x) for x in leaves)


def join_static(arrays: Any, static: tuple[Static | None, ...]) -> list[Any]:
    """The leaves that `split_static` took apart."""
    rest = iter(arrays)
    return [next(rest) if x is None else x.value for x in static]


class Kept:
    """The last `most` values by key."""

    def __init__(self, most: int):
        self.most = most
        self.found: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """What was made for a key before, or now; nothing is kept where it cannot be hashed."""
        try:
            hash(key)
        except TypeError:
            return make()
        if key is None:
            return make()
        value = self.found.get(key)
        if value is None:
            value = make()
        with _LOCK:  # another thread may have dropped it meanwhile
            self.found[key] = value
            self.found.move_to_end(key)
            while len(self.found) > self.most:
                self.found.popitem(last=False)
        return value

    def drop(self, key: Any) -> None:
        """Forgets a key; one that cannot be hashed was never kept."""
        try:
            self.found.pop(key, None)
        except TypeError:
            return
