"""Leaves of a model's variables by path, in trees of any kind, and as a program's arguments."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.tree_util import DictKey, SequenceKey

from bitjax.program.naming import path_of
from bitjax.program.trace import Call


def paths_of(call: Call, variables: Mapping[str, Any]) -> tuple[str | None, ...]:
    """The paths of a program's flat arguments in `variables`; None of those that are not there."""
    return tuple(
        _path(path, variables) for path, _ in jax.tree_util.tree_leaves_with_path(call.arguments)
    )


def _path(path, variables):
    what, *rest = path
    if what.idx == 0:
        return "/".join(p for p in ("params", path_of(rest)) if p)
    # Neutral arrays are the other collections; Linen has random keys beside them, and a function
    # arguments, which are no variables.
    if what.idx == 1:
        own = rest[1:] if rest[0] == SequenceKey(0) else rest
        if own and isinstance(own[0], DictKey) and own[0].key in variables:
            return path_of(own)
    return None


def read_leaf(variables: Mapping[str, Any], path: str) -> Any:
    """The array at a path such as `params/conv1/kernel` or `params/layers/0/weight`."""
    for own, leaf in jax.tree_util.tree_leaves_with_path(variables, is_leaf=_is_box):
        if path_of(own) == path:
            return nn.meta.unbox(leaf)
    raise KeyError(f"the variables have no leaf {path!r}.")


def shapes_of(variables: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every array by its path, as `read_leaf` takes it."""
    found = jax.tree_util.tree_leaves_with_path(variables, is_leaf=_is_box)
    return {path_of(path): np.shape(nn.meta.unbox(leaf)) for path, leaf in found}


def write_leaf(variables: Mapping[str, Any], path: str, value: Any) -> Any:
    """A copy with the array at a path replaced; all else stays the same object."""

    def leaf(own, old):
        if path_of(own) != path:
            return old
        return old.replace_boxed(value) if _is_box(old) else value

    return jax.tree_util.tree_map_with_path(leaf, variables, is_leaf=_is_box)


def _is_box(leaf):
    return isinstance(leaf, nn.meta.AxisMetadata)
