"""How a packed file names its arrays: those that differ in nothing but their layer share an entry.

A group such as `{"names": ["params/*/scale", "params/*/bias"], "shape": [16], "at": [1, 4]}` stands
for the leaves of which `*` is the path of layer 1 and then of layer 4. Without `at` there is no
`*`. ResNet-20 has 260 leaves, whose names and shapes alone would take 20 kB one by one.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from bitjax.files.reading import one_line

_MOST_LEAVES = 100_000  # a header of a megabyte could name a million times a million
_MOST_LETTERS = 1000  # of a name
_MOST_AXES = 32


class Entry(NamedTuple):
    """What a file lists of one leaf or one kernel."""

    layer: str  # the path of its module, perhaps empty
    names: tuple[str, ...]  # one for each key, with `*` for the layer
    shared: Mapping[str, Any]  # what a group has once


def starred(head: str, path: str, layer: str) -> str:
    """The name of what lies at a path in a collection, with `*` for its layer."""
    if layer and (path == layer or path.startswith(f"{layer}/")):
        path = f"*{path[len(layer) :]}"
    return f"{head}/{path}" if head else path


def grouped(
    entries: Iterable[Entry], keys: tuple[str, ...], paths: dict[str, int]
) -> list[dict[str, Any]]:
    """The groups of some entries; `paths` takes the layers' paths and gives their numbers."""
    of_layer: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for layer, names, shared in entries:
        of_layer.setdefault((layer if "*" in names[-1] else "", json.dumps(shared)), []).append(
            names
        )
    alike: dict[tuple[tuple[tuple[str, ...], ...], str], list[str]] = {}
    for (layer, shared), names in of_layer.items():
        alike.setdefault((tuple(names), shared), []).append(layer)
    groups = []
    for (names, shared), layers in alike.items():
        columns = zip(*names, strict=True)
        group = {key: list(column) for key, column in zip(keys, columns, strict=True)}
        group |= json.loads(shared)
        if layers != [""]:
            group["at"] = [paths.setdefault(layer, len(paths)) for layer in layers]
        groups.append(group)
    return groups


def listed(
    groups: Any, keys: tuple[str, ...], paths: Any
) -> Iterator[tuple[Mapping[str, Any], tuple[str, ...]]]:
    """The names that groups stand for, in the order of their arrays; else a ValueError."""
    _need(_is_list(paths, str), "its layers' paths are no list of texts")
    _need(_is_list(groups, dict), "its groups are no list")
    for path in paths:
        check_name(path)
    count = 0
    for group in groups:
        columns = [group.get(key) for key in keys]
        _need(
            all(_is_list(column, str) for column in columns), f"a group lacks {' or '.join(keys)}"
        )
        _need(len(set(map(len, columns))) == 1, f"a group's {' and '.join(keys)} do not match")
        at = group.get("at", [None])
        known = "at" not in group or (
            _is_list(at, int) and all(type(i) is int and 0 <= i < len(paths) for i in at)
        )
        _need(known, "a group is at a layer that is not there")
        count += len(at) * len(columns[0])
        _need(count <= _MOST_LEAVES, f"it names more than {_MOST_LEAVES} leaves")
        for names in columns:
            for name in names:
                _need(name.count("*") == ("at" in group), f"{_short(name)} names no layer, or two")
        for i in at:
            for names in zip(*columns, strict=True):
                found = tuple(n if i is None else n.replace("*", paths[i]) for n in names)
                for name in found:
                    check_name(name)
                yield group, found


def check_name(name: str) -> None:
    """A ValueError for what is no path of a leaf."""
    for part in name.split("/"):
        _need(
            part not in ("", ".", "..") and part.isprintable() and "*" not in part,
            f"{_short(name)} is no name of a leaf",
        )
    _need(len(name) <= _MOST_LETTERS, f"{_short(name)} is too long a name")


def shape_of(group: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of a group's leaves, else a ValueError."""
    shape = group.get("shape")
    if not isinstance(shape, list) or len(shape) > _MOST_AXES:
        raise ValueError("a group has no shape")
    _need(all(type(n) is int and 0 <= n < 2**48 for n in shape), "a group has no sizes as shape")
    return tuple(shape)


def tree_of(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from leaves by path; a ValueError where a leaf lies in another one."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        node, parts = tree, name.split("/")
        for part in parts[:-1]:
            node = node.setdefault(part, {})
            _need(isinstance(node, dict), f"{_short(name)} lies in another leaf")
        _need(parts[-1] not in node, f"{_short(name)} is in the way of another leaf")
        node[parts[-1]] = leaf
    return tree


def _is_list(value, kind):
    return isinstance(value, list) and all(isinstance(one, kind) for one in value)


def _need(holds, otherwise):
    if not holds:
        raise ValueError(otherwise)


def _short(name):
    return one_line(repr(name), 80)
