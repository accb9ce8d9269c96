"""The collections of a model's variables, and nodes in them by a path such as `stage1/conv1`."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from bitjax.checks import mapping

QUANT, STATS = "quant", "quant_stats"
VARIABLES = mapping()  # of a function, a collection may be any tree


def read_site(tree: Mapping[str, Any], site: str, *missing: Any) -> Any:
    """The node at a path, the tree itself at the empty one; `missing`, if given, where none is."""
    for name in site.split("/") if site else ():
        if missing and not (isinstance(tree, Mapping) and name in tree):
            return missing[0]
        tree = tree[name]
    return tree


def read_path(tree: Any, path: Iterable[Any]) -> Any:
    """The node at a path that is given by its parts."""
    for part in path:
        tree = tree[part]
    return tree


def write_site(tree: Mapping[str, Any], site: str, value: Any) -> Any:
    """A copy with the node at a path replaced."""
    if not site:
        return value
    head, _, rest = site.partition("/")
    return {**tree, head: write_site(tree[head], rest, value)}


def site_name(layer: str, role: str) -> str:
    """The name of a layer's site; a model that is a layer itself has the empty path."""
    if role == "cache":  # a mark has a name of its own
        return layer
    return f"{layer}/{role}" if layer else role


def floats_of(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The collections of the float model, without what quantizers learned and observed."""
    return {name: tree for name, tree in variables.items() if name not in (QUANT, STATS)}


class Inputs(NamedTuple):
    """What a model is called with for one batch, where that is more than a tuple of arguments.

    It is one of the batches that tools such as `bitjax.calibrate` and `bitjax.solve_layers` take.
    What is the same for every batch, or is no array, goes by the tool's own keyword arguments.

    Attributes:
      args: the positional arguments.
      kwargs: the keyword arguments, arrays or trees of arrays.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import bitjax as bj
      >>> function = bj.Function(lambda w, x, *, mask: (x * mask) @ w)
      >>> batch = Inputs((jnp.ones((2, 3)),), {"mask": jnp.ones((2, 1))})
      >>> sorted(bj.attach(function, {"params": jnp.ones((3, 2))}, *batch.args, **batch.kwargs))
      ['params']
    """

    args: tuple = ()
    kwargs: Mapping[str, Any] = {}


def as_call(batch: Any, kwargs: Mapping[str, Any] | None = None) -> Inputs:
    """What the model is called with for a batch: `Inputs`, a tuple of arguments, or one array."""
    # `kwargs` are those of all batches.
    if isinstance(batch, Inputs):
        return Inputs(tuple(batch.args), {**(kwargs or {}), **batch.kwargs})
    return Inputs(batch if isinstance(batch, tuple) else (batch,), dict(kwargs or {}))


def as_batch(args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """The plainest form of what a model is called with, which `as_call` takes apart again."""
    plain = len(args) == 1 and not isinstance(args[0], tuple)
    return Inputs(args, kwargs) if kwargs else args[0] if plain else args


def pick(tree: Mapping[str, Any], sites: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`{site: its leaves}` of the sites that a collection has."""
    found = {site: read_site(tree, site, None) for site in sites}
    # A layer may be called `input` or `kernel`: what lies deeper is not this site's.
    return {
        site: {name: x for name, x in leaves.items() if not isinstance(x, Mapping)}
        for site, leaves in found.items()
        if leaves is not None
    }


def nest(flat: Mapping[str, Any], tree: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A collection from `{site: its leaves}`, within the sites of another one."""
    nested = dict(tree or {})
    for site, leaves in flat.items():
        *layers, role = site.split("/")
        node = nested
        for name in layers:
            node[name] = dict(node.get(name, {}))
            node = node[name]
        deeper = {n: x for n, x in node.get(role, {}).items() if isinstance(x, Mapping)}
        node[role] = {**deeper, **leaves}
    return nested
