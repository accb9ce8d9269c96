"""The collections of a model's variables, and nodes in them by a path such as `stage1/conv1`."""

from collections.abc import Iterable, Mapping
from typing import Any

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
    return f"{layer}/{role}" if layer else role


def floats_of(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The collections of the float model, without what quantizers learned and observed."""
    return {name: tree for name, tree in variables.items() if name not in (QUANT, STATS)}


def as_args(batch: Any) -> tuple:
    """A batch as the arguments that the model is called with."""
    return batch if isinstance(batch, tuple) else (batch,)


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
