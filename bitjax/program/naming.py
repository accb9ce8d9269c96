"""Names of layers: paths of parameters, and the scopes that a framework gives operations."""

import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import Any

from bitjax.program.values import LEAF_NAMES, Leaf

_WRAPPED = re.compile(r"^(?:\w+\()+([^()]*)\)+$")  # `vmap(jvp(attention))`


def path_of(path: Sequence[Any]) -> str:
    """A key path of a pytree as text: dict keys, attributes and indices alike."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


def layers_of(leaves: Iterable[Leaf]) -> dict[str, str]:
    """`{leaf's path: layer}`: the path without a last part such as `kernel`."""
    # Where two leaves would name the same layer, each of them keeps its whole path.
    paths = [leaf.path for leaf in leaves]
    twice = next((path for path, count in Counter(paths).items() if count > 1), None)
    if twice is not None:
        raise ValueError(
            f"two parameters have the path {twice!r}, by which rules and variables would take one "
            "for the other: let no key hold a '/', and no two keys be the same as text."
        )
    short = {path: _short(path) for path in paths}
    claims: dict[str, int] = {}
    for path in paths:
        if short[path] != path:
            claims[short[path]] = claims.get(short[path], 0) + 1
    return {path: path if claims.get(name, 0) > 1 else name for path, name in short.items()}


def _short(path):
    head, _, last = path.rpartition("/")
    return head if last in LEAF_NAMES else path


def prefixes(paths: Iterable[str]) -> frozenset[str]:
    """The paths of all modules around these parameters."""
    split = [path.split("/") for path in paths]
    return frozenset("/".join(parts[:n]) for parts in split for n in range(1, len(parts)))


def scope_of(stack: str, root: int, modules: Container[str]) -> str:
    """The module path in a name stack, without its first `root` parts and without einsums."""
    names: list[str] = []
    for part in _split(stack):
        part = _WRAPPED.sub(r"\1", part)
        # A name with more dots than one is that of a class, as Equinox gives it.
        if "->" in part or "(" in part or part.count(".") > 1:
            continue
        # `encoder.encode` is another method than `__call__`: of a child `encoder`, or of the module
        # itself, which stands in front of it already.
        name, _, method = part.partition(".")
        path = "/".join([*names[root:], name])
        if name and not (method and names[-1:] == [name] and path not in modules):
            names.append(name)
    return "/".join(names[root:])


def _split(stack):
    """The parts of a name stack; a slash inside brackets parts nothing."""
    found, depth, part = [], 0, ""
    for letter in stack:
        depth += (letter == "(") - (letter == ")")
        if letter == "/" and not depth:
            found.append(part)
            part = ""
        else:
            part += letter
    return [*found, part] if stack else []


def common(paths: Iterable[str]) -> str:
    """The longest path that all of these lie in."""
    split = [path.split("/") for path in paths]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared)
