"""From a deployed model to the arrays of a packed file, and the index of what is in them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from bitjax.export import bits
from bitjax.export.deploy import Deployed
from bitjax.export.forms import TABLE, Form, codes_of, form_of, levels_of, whole_rank
from bitjax.export.index import Entry, check_name, grouped, listed, starred
from bitjax.program.program import Program
from bitjax.rules import quantizer_of
from bitjax.variables import QUANT

# By array of the file, the dtypes of the leaves that it holds, each in 32 bits.
HELD = {
    "floats": ("float32", "float16", "bfloat16"),
    "integers": ("int32", "uint32", "int16", "uint16", "int8", "uint8", "bool"),
}
NAMES, SITES, KERNELS = ("names",), ("sites",), ("sites", "names")  # the keys of groups
Leaves = dict[str, np.ndarray]


def content_of(deployed: Deployed, program: Program) -> tuple[dict[str, Any], Leaves]:
    """The index and the arrays; a ValueError for what is no deployed model."""
    leaves = dict(_leaves(deployed.variables))
    sites = by_site(leaves)
    forms = _forms(deployed, sites)
    kernels = {
        site: f"params/{program.parameters[site]}"
        for site in forms
        if program.sites[site].role == "kernel"
    }
    if len(set(kernels.values())) < len(kernels):
        raise ValueError("a parameter is the kernel of two sites, of which it can hold one")
    known, paths = list(dict.fromkeys(forms.values())), {}
    of_array: dict[str, list[str]] = {"floats": [], "integers": [], "bits": []}
    for name, leaf in leaves.items():
        if name not in kernels.values():
            of_array[_array_of(name, leaf)].append(name)
    groups = {
        key: grouped((_of_leaf(name, leaves[name]) for name in names), NAMES, paths)
        for key, names in of_array.items()
    }
    groups["kernels"] = grouped(
        (_of_site(s, forms[s], known, (n, leaves[n])) for s, n in kernels.items()), KERNELS, paths
    )
    groups["inputs"] = grouped(
        (_of_site(s, form, known) for s, form in forms.items() if s not in kernels), SITES, paths
    )
    layers = list(paths)
    arrays = {
        key: _row(key, (leaves[name] for _, (name,) in listed(groups[key], NAMES, layers)))
        for key in of_array
    }
    order = [site for _, (site, _) in listed(groups["kernels"], KERNELS, layers)]
    arrays["codes"] = bits.join(
        part
        for site in order
        for part in _coded(site, forms[site], sites[site], leaves[kernels[site]])
    )
    index = {"paths": layers, "forms": [said_of(form) for form in known]}
    index |= {key: group for key, group in groups.items() if group}
    return index, {key: array for key, array in arrays.items() if array.size}


def by_site(leaves: Mapping[str, np.ndarray]) -> dict[str, Leaves]:
    """What every site has in `quant`, by the names of its leaves."""
    found: dict[str, Leaves] = {}
    for name, leaf in leaves.items():
        collection, _, path = name.partition("/")
        if collection == QUANT:
            site, _, own = path.rpartition("/")
            found.setdefault(site, {})[own] = leaf
    return found


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of nested dicts by path."""
    if isinstance(tree, Mapping):
        for key in sorted(tree, key=str):
            if not isinstance(key, str) or "/" in key:
                raise ValueError(f"{name or 'variables'} has the key {key!r}, which is no name")
            yield from _leaves(tree[key], f"{name}/{key}" if name else key)
        return
    if not hasattr(tree, "dtype") or not hasattr(tree, "shape"):
        raise ValueError(f"{name} is a {type(tree).__name__}, where a dict or an array must be")
    check_name(name)
    yield name, np.asarray(tree)


def _forms(deployed: Deployed, sites: Iterable[str]) -> dict[str, Form]:
    """The form of every site."""
    found = {}
    for site in sites:
        form = form_of(quantizer_of(deployed.model.rules, site))
        if form is None:
            raise ValueError(f"{site!r} is not deployed")
        found[site] = form
    return found


def _array_of(name, leaf):
    """The array of the file that holds a leaf."""
    if name.startswith(f"{QUANT}/") and name.endswith("/bits"):
        return "bits"
    for key, dtypes in HELD.items():
        if leaf.dtype.name in dtypes:
            return key
    raise ValueError(
        f"{name} is of dtype {leaf.dtype}, which takes more than 32 bits or is no number"
    )


def _of_leaf(name, leaf):
    collection, _, path = name.partition("/")
    layer = _parent(_parent(path)) if collection == QUANT else _parent(path)
    return Entry(layer, (starred(collection, path, layer),), _shape(leaf))


def _of_site(site, form, known, kernel=None):
    layer, shared = _parent(site), {"form": known.index(form)}
    names = (starred("", site, layer),)
    if kernel is not None:
        name, leaf = kernel
        collection, _, path = name.partition("/")
        names, shared = (*names, starred(collection, path, layer)), {**_shape(leaf), **shared}
        if len({"*" in one for one in names}) > 1:  # the parameter lies elsewhere
            layer, names = "", (site, name)
    return Entry(layer, names, shared)


def _shape(leaf):
    dtype = leaf.dtype.name
    held_as = {} if dtype in ("float32", "int32") else {"dtype": dtype}
    return {"shape": list(leaf.shape), **held_as}


def _parent(path):
    return path.rpartition("/")[0]


def said_of(form: Form) -> dict[str, str | None]:
    """A form as JSON has it."""
    return {"coding": form.coding} | ({} if form == TABLE else {"ends": form.ends})


def _row(key: str, leaves: Iterable[np.ndarray]) -> np.ndarray:
    """Leaves behind each other, in the dtype of the file's array."""
    dtype = {"floats": "<f4", "integers": "<i4", "bits": "u1"}[key]
    rows = [
        (leaf.view(np.int32) if leaf.dtype == np.uint32 else leaf).astype(dtype).ravel()
        for leaf in leaves
    ]
    return np.concatenate(rows) if rows else np.zeros(0, dtype)


def _coded(site, form, own, kernel):
    """The codes of a kernel, from which its levels can be had again."""
    codes = codes_of(form, own, kernel)
    if not (levels_of(form, own, codes).astype(kernel.dtype) == kernel).all():
        raise ValueError(f"the kernel {site!r} does not lie on its levels")
    return bits.pieces(codes, whole_rank(own["bits"], kernel.ndim).astype(np.uint8))
