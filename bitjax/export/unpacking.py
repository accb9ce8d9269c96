"""From the arrays of a packed file and their index to variables, nothing of which is believed."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from bitjax.export import bits
from bitjax.export.forms import FORMS, Form, check_leaves, levels_of, whole_rank
from bitjax.export.index import listed, shape_of, tree_of
from bitjax.export.packing import HELD, KERNELS, NAMES, SITES, Leaves, by_site, said_of
from bitjax.variables import QUANT

DTYPES = {"floats": "<f4", "integers": "<i4", "bits": "u1", "codes": "u1"}
_KEYS = ("paths", "forms", "floats", "integers", "bits", "kernels", "inputs")


def variables_of(
    index: Any, arrays: Mapping[str, np.ndarray], most: int | None
) -> tuple[dict[str, Any], dict[str, Form]]:
    """The variables and the form of every site; a ValueError where the file is not what it says.

    `most` is the memory in bytes that its kernels may take.
    """
    if not isinstance(index, dict) or not set(index) <= set(_KEYS):
        raise ValueError("its index is of another form")
    paths = index.get("paths")
    leaves: Leaves = {}
    for key in ("floats", "integers", "bits"):
        _read(key, index.get(key, []), paths, _row(arrays, key), leaves)
    known = _known(index.get("forms", []))
    forms: dict[str, Form] = {}
    kernels: dict[str, tuple[str, tuple[int, ...], str]] = {}
    for group, (site, name) in listed(index.get("kernels", []), KERNELS, paths):
        _put(forms, site, _form(group, known))
        if not name.startswith("params/"):
            raise ValueError(f"the kernel {site!r} is no parameter")
        kernels[site] = name, shape_of(group), _dtype(group, "floats")
    for group, (site,) in listed(index.get("inputs", []), SITES, paths):
        _put(forms, site, _form(group, known))
    sites = by_site(leaves)
    _check_sites(forms, kernels, sites)
    codes = _row(arrays, "codes")
    for name, levels in _kernels(forms, kernels, sites, codes, most).items():
        _put(leaves, name, levels)
    tree = tree_of({name: jnp.asarray(leaf) for name, leaf in leaves.items()})
    return tree, forms


def _row(arrays, key):
    row = arrays.get(key, np.zeros(0, DTYPES[key]))
    if row.ndim != 1 or row.dtype != np.dtype(DTYPES[key]):
        raise ValueError(f"its array {key!r} must be a row of {np.dtype(DTYPES[key])}")
    return row


def _put(found, name, value):
    if name in found:
        raise ValueError(f"{name!r} is there twice")
    found[name] = value


def _read(key, groups, paths, row, leaves):
    """Puts the leaves that an array of the file holds."""
    at = 0
    for group, (name,) in listed(groups, NAMES, paths):
        shape = shape_of(group)
        if "/" not in name:
            raise ValueError(f"{name!r} is in no collection")
        end = at + math.prod(shape)
        if end > row.size:
            raise ValueError(f"{name!r} of shape {shape} goes beyond the end of {key!r}")
        found = row[at:end].reshape(shape)
        if key == "bits":
            found = found.astype(np.float32)
        else:
            dtype = _dtype(group, key)
            found = found.view(np.uint32) if dtype == "uint32" else found.astype(jnp.dtype(dtype))
        _put(leaves, name, found)
        at = end
    if at != row.size:
        raise ValueError(f"{key!r} holds {row.size:,} numbers, of which {at:,} have a name")


def _dtype(group, key):
    dtype = group.get("dtype", HELD[key][0])
    if dtype not in HELD[key]:
        raise ValueError("a group has an unknown dtype")
    return dtype


def _known(said):
    if not isinstance(said, list):
        raise ValueError("its forms are no list")
    found = []
    for one in said:
        form = next((form for form in FORMS if said_of(form) == one), None)
        if form is None:
            raise ValueError("it has a form that this version does not know")
        found.append(form)
    return found


def _form(group, known):
    number = group.get("form")
    if type(number) is not int or not 0 <= number < len(known):
        raise ValueError("a site has no form")
    return known[number]


def _check_sites(forms, kernels, sites):
    """Every site has the leaves of its form and no others."""
    for site, form in forms.items():
        shape = kernels[site][1] if site in kernels else None
        try:
            check_leaves(form, sites.get(site, {}), shape)
        except ValueError as error:
            raise ValueError(f"{site!r} {error}") from None
    if others := set(sites) - set(forms):
        raise ValueError(f"{QUANT!r} has the leaves of {min(others)!r}, which is no site")


def _kernels(forms, kernels, sites, stream, most):
    """The kernels by name, at the levels that their codes stand for."""
    widths = {
        site: whole_rank(sites[site]["bits"], len(shape)).astype(np.uint8)
        for site, (_, shape, _) in kernels.items()
    }
    sizes = {s: bits.count_bits(shape, widths[s]) for s, (_, shape, _) in kernels.items()}
    end = sum(sizes.values())
    if -(-end // 8) != stream.size:
        raise ValueError(f"its codes take {end:,} bits, and {stream.size:,} bytes are there")
    if end % 8 and stream[-1] >> (end % 8):
        raise ValueError("its last code is followed by something")
    taken = sum(4 * math.prod(shape) for _, shape, _ in kernels.values())
    if most is not None and taken > most:  # codes of no bits take no room in the file
        raise ValueError(f"its kernels would take {taken:,} bytes of memory")
    found, at = {}, 0
    for site, (name, shape, dtype) in kernels.items():
        codes = bits.codes_in(stream, at, shape, widths[site])
        try:
            levels = levels_of(forms[site], sites[site], codes)
        except ValueError as error:
            raise ValueError(f"{site!r}: {error}") from None
        _put(found, name, levels.astype(jnp.dtype(dtype)))
        at += sizes[site]
    return found
