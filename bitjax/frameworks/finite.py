"""Finds the first tensor of a forward pass that is not finite."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.frameworks.compiled import compile_quickly, jit_arrays
from bitjax.frameworks.models import unboxed
from bitjax.frameworks.probe import probe
from bitjax.program.kept import Told
from bitjax.program.naming import path_of
from bitjax.program.state import Seen
from bitjax.variables import QUANT, STATS, site_name

_SMALL = 1 << 16  # elements up to which a leaf is cheap to copy
# Data before the kernel: what is wrong there came from further ahead.
_SPREADING = ("input", "left", "right", "kernel")


def is_finite(tree: Any) -> jax.Array:
    """Whether no floating leaf of a tree holds NaN or inf; a scalar bool."""
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(tree)]
    leaves = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]
    # Small leaves are tested as one vector, because a test of each takes long to compile. Large
    # ones are not copied.
    small = [jnp.ravel(x) for x in leaves if x.size <= _SMALL]
    groups = [x for x in leaves if x.size > _SMALL] + ([jnp.concatenate(small)] if small else [])
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in groups] or [True]))


def finite_flags(seen: Seen) -> dict[str, jax.Array]:
    """Whether a layer's tensors and its output are finite, for `first_bad`."""
    flags = {role: is_finite(seen.raw(role)) for role in seen.tensors}
    return {**flags, "output": is_finite(seen.out)}


def _module_flags(scope: str, out: Any) -> dict[str, jax.Array]:
    """As `finite_flags`, of a module that is no product's layer."""
    del scope
    return {"output": is_finite(out)}


def first_nonfinite(
    model: Any, variables: Mapping[str, Any], *args: Any, **kwargs: Any
) -> str | None:
    """The path of a forward pass's first tensor or variable with NaN or inf; None without."""

    # In loops and branches, only variables are checked.
    plain = unboxed(variables)
    told, flags, finite, whole = jit_arrays(
        _all_flags, plain, args, kwargs, static=(model,), **compile_quickly()
    )
    names, finite = told.value, jax.device_get(finite)
    leaves = zip(jax.tree_util.tree_leaves_with_path(plain), finite, strict=True)
    bad = {tuple(path_of((part,)) for part in path) for (path, _), flag in leaves if not flag}
    found = first_bad(list(zip(names, jax.device_get(flags), strict=True)), bad)
    if found or whole:
        return found
    # What is behind the last layer has no name of its own.
    return f"output, behind {names[-1]}" if names and names[-1] else "output"


def _all_flags(model, variables, args, kwargs):
    """Whether every site, every variable and the output are finite, and the layers' names."""
    # Sites are looked at before quantization, which would turn NaN into a level.
    probed = probe(model, variables, args, kwargs, finite_flags, _module_flags)
    flags = [flags for _, flags in probed.records]
    leaves = [is_finite(leaf) for leaf in jax.tree.leaves(variables)]
    return Told(tuple(name for name, _ in probed.records)), flags, leaves, is_finite(probed.out)


def first_bad(
    records: Iterable[tuple[str, Mapping[str, jax.Array]]], bad: Iterable[tuple[str, ...]]
) -> str | None:
    """The first name that is not finite, of flags in forward order and of variables' paths."""
    records = list(records)
    owner = {path: _owner(path, records) for path in bad}
    for path, name in owner.items():
        if name is None:  # unplaced, it would blame a tensor that it made non-finite
            return "/".join(path[1:])
    for name, flags in _steps(records):
        for role in _SPREADING:
            if not flags.get(role, True):
                return site_name(name, role)
        for path in owner:
            if owner[path] == name:
                return "/".join(path[1:])
        if not flags["output"]:
            return site_name(name, "output")
    return None


def _steps(records):
    """The records with one flag per tensor, a scanned layer's as often as it runs, in order."""

    def length(record):
        return np.size(record[1]["output"]) if np.ndim(record[1]["output"]) else 0

    for count, group in itertools.groupby(records, length):
        group = list(group)
        for step in range(max(1, count)):
            for name, flags in group:
                yield name, {key: np.ravel(flag)[step] for key, flag in flags.items()}


def _owner(path, records):
    """The module whose variable this is, or whose site learned or observed it."""
    inside, whole = "/".join(path[1:-1]), "/".join(path[1:])
    for name, flags in records:
        sites = [site_name(name, role) for role in flags if path[0] in (QUANT, STATS)]
        if name in (inside, whole) or inside in sites:
            return name
    return None
