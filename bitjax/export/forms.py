"""The two forms of a deployed site in NumPy: from a kernel's levels to its codes, and back.

`quantizers/deployed.py` has the same in JAX. A file is read without compiling anything, and by
programs that have no JAX.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bitjax.export.bits import MOST
from bitjax.quantizers import deployed
from bitjax.quantizers.base import Quantizer

Leaves = Mapping[str, np.ndarray]


class Form(NamedTuple):
    """How a site's codes, integers and levels belong together."""

    coding: str  # `table`, or how codes hold integers
    ends: str | None = None  # how the first and the last integer follow from the bits


TABLE = Form("table")
TABLES = ("levels", "edges")  # leaves whose last axis is no axis of the tensor
_LARGEST = 1 << 24  # of an integer that float32 holds
# Codes with a sign have the same ends on both sides.
SIGNED = (Form("sign_magnitude", "symmetric"), Form("signs", "symmetric"))
FORMS = (TABLE, *(Form("offset", ends) for ends in deployed.ENDS), *SIGNED)


def quantizer_of(form: Form) -> Quantizer:
    """The quantizer of a deployed site."""
    return deployed.table() if form == TABLE else deployed.affine(*form)


def form_of(quantizer: Quantizer | None) -> Form | None:
    """The form of a deployed site's quantizer; None of any other quantizer."""
    return next((form for form in FORMS if quantizer_of(form) is quantizer), None)


def spread(leaf: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A leaf against a tensor's shape: each entry serves a block of neighbours."""
    # A scanned layer has its steps in front, and may have one number for each of them.
    leaf = whole_rank(leaf, len(shape))
    for axis, n in enumerate(leaf.shape):
        if n not in (1, shape[axis]):
            leaf = np.repeat(leaf, shape[axis] // n, axis)
    return leaf


def whole_rank(leaf: np.ndarray, rank: int) -> np.ndarray:
    """A leaf with as many axes as its tensor."""
    return leaf.reshape((*leaf.shape, *(1,) * (rank - leaf.ndim)))


def check_leaves(form: Form, leaves: Leaves, shape: tuple[int, ...] | None) -> None:
    """A ValueError where a site's leaves are not those of its form; `shape` is a kernel's."""
    kernel = shape is not None
    needed = {"bits", "levels" if form == TABLE else "scale"}
    needed |= {"first"} if form.ends == "stored" else set()
    needed |= {"edges"} if form == TABLE and not kernel else set()
    free = set() if kernel or form == TABLE else {"rate", "edges"}
    if not needed <= set(leaves) <= needed | free:
        raise ValueError(
            f"has the leaves {', '.join(sorted(leaves))}, and needs {', '.join(sorted(needed))}"
        )
    for name, leaf in leaves.items():
        if leaf.dtype != np.float32 or np.isnan(leaf).any():
            raise ValueError(f"has a {name!r} that is no number")
        if name != "edges" and np.isinf(leaf).any():
            raise ValueError(f"has a {name!r} that is not finite")
        if name in TABLES and not leaf.ndim:
            raise ValueError(f"has a {name!r} that is no table")
    _check_blocks(leaves, shape)
    _check_numbers(form, leaves)


def _check_blocks(leaves, shape):
    """A ValueError where leaves are of blocks that do not fit each other, or the kernel."""
    blocks = {n: x.shape[:-1] if n in TABLES else x.shape for n, x in leaves.items()}
    if shape is not None:
        for name, block in blocks.items():
            if not _divides(block, shape):
                raise ValueError(f"has a {name!r} of blocks {block} for a kernel of shape {shape}")
    rank = max(map(len, blocks.values()))
    try:
        np.broadcast_shapes(*((*block, *(1,) * (rank - len(block))) for block in blocks.values()))
    except ValueError:
        raise ValueError(f"has leaves of blocks that do not fit, {blocks}") from None
    if 0 in (size for block in blocks.values() for size in block):
        raise ValueError("has a leaf without numbers")


def _check_numbers(form, leaves):
    """A ValueError for numbers that no site has."""
    if leaves["bits"].max() > MOST or leaves["bits"].min() < 0:
        raise ValueError(f"has bits beyond 0 to {MOST}")
    if form != TABLE and leaves["scale"].min() < 0:
        raise ValueError("has a scale below 0")
    if "first" in leaves and (leaves["first"] != np.rint(leaves["first"])).any():
        raise ValueError("has a first integer that is none")
    if "first" in leaves and np.abs(leaves["first"]).max() > _LARGEST:
        raise ValueError(f"has a first integer beyond {_LARGEST:,}")
    if "edges" in leaves and not (leaves["edges"][..., 1:] >= leaves["edges"][..., :-1]).all():
        raise ValueError("has edges that do not rise")
    levels = leaves["levels"].shape[-1] if form == TABLE else 1
    if not 1 <= levels <= 1 << MOST:
        raise ValueError(f"has {levels} levels")
    if form == TABLE and "edges" in leaves and leaves["edges"].shape[-1] != levels - 1:
        raise ValueError(f"has {leaves['edges'].shape[-1]} edges between {levels} levels")


def _divides(block, shape):
    """Whether each entry of a leaf serves as many neighbours as any other."""
    fits = len(block) <= len(shape) and all(block)
    return fits and not any(n % m for m, n in zip(block, shape, strict=False))


def ends_of(form: Form, leaves: Leaves) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last integer of each block."""
    bits = leaves["bits"].astype(np.int32)
    if form.coding == "signs":
        first, last = -np.ones_like(bits), np.ones_like(bits)
    elif form.coding == "sign_magnitude" or form.ends == "narrow":
        last = (1 << np.maximum(bits - 1, 0)) - 1
        first = -last
    else:
        count = (1 << bits) - 1
        first = -((count + 1) // 2) if form.ends == "symmetric" else np.zeros_like(count)
        last = first + count
    if form.ends == "stored":
        rank = max(leaves["first"].ndim, last.ndim)
        begin = whole_rank(leaves["first"].astype(np.int32), rank)
        return begin, begin + whole_rank(last, rank)
    return first, last


def codes_of(form: Form, leaves: Leaves, kernel: np.ndarray) -> np.ndarray:
    """The codes, uint16, of a kernel that lies on its levels."""
    kernel = kernel.astype(np.float32)
    if form == TABLE:
        levels = leaves["levels"]
        found = np.zeros(kernel.shape, np.uint16)
        for n in range(1, levels.shape[-1]):
            found += kernel >= spread(levels[..., n], kernel.shape)
        most = (1 << leaves["bits"].astype(np.int32)) - 1
        return np.minimum(found, spread(most, kernel.shape)).astype(np.uint16)
    if form.coding == "signs":
        return (kernel >= 0).astype(np.uint16)
    scale = spread(leaves["scale"], kernel.shape)
    first, last = (spread(end, kernel.shape) for end in ends_of(form, leaves))
    usable = np.divide(kernel, scale, out=np.zeros_like(kernel), where=scale > 0)
    whole = np.clip(np.rint(usable), first, last).astype(np.int32)
    return _coded(form, whole, first, last).astype(np.uint16)


def _coded(form, whole, first, last):
    if form.coding == "sign_magnitude":
        return np.where(whole < 0, last + 1 - whole, whole)
    return whole - first


def levels_of(form: Form, leaves: Leaves, codes: np.ndarray) -> np.ndarray:
    """The levels, float32, that codes stand for; a ValueError where a code stands for none."""
    if form == TABLE:
        levels = leaves["levels"]
        if codes.size and codes.max() >= levels.shape[-1]:
            raise ValueError(f"code {codes.max()} is beyond its {levels.shape[-1]} levels")
        found = np.zeros(codes.shape, np.float32)
        for n in range(levels.shape[-1]):
            np.copyto(found, spread(levels[..., n], codes.shape), where=codes == n)
        return found + np.float32(0)  # -0.0 is 0.0, as integers have it
    whole = integers_of(form, leaves, codes)
    return spread(leaves["scale"], codes.shape) * whole.astype(np.float32)


def integers_of(form: Form, leaves: Leaves, codes: np.ndarray) -> np.ndarray:
    """The integers, int32, that codes stand for; a ValueError where a code stands for none."""
    first, last = (spread(end, codes.shape) for end in ends_of(form, leaves))
    code = codes.astype(np.int32)
    if form.coding == "signs":
        whole, wrong = 2 * code - 1, code > 1
    elif form.coding == "sign_magnitude":
        whole = np.where(code > last, last + 1 - code, code)
        wrong = (code == last + 1) | (whole < first)
    else:
        whole = code + first
        wrong = whole > last
    if wrong.any():
        raise ValueError(f"code {code[wrong][0]} stands for no integer")
    return whole
