"""Findings on the batch and its labels: constant data, labels that are no class."""

from collections.abc import Iterator

import jax
import numpy as np

from bitjax.diagnostics.findings import Found
from bitjax.diagnostics.measure import Measured

_BY_CHANCE = 1e-3  # a class that is missing with less than this is said to be


def batch(m: Measured) -> Iterator[Found]:
    """Data that hold nothing to learn from."""
    arrays = [np.asarray(x) for x in jax.tree.leaves(m.args) if getattr(x, "ndim", 0) > 0]
    arrays = [x for x in arrays if x.size > 1 and x.dtype.kind in "fiub"]
    if not arrays:
        return
    remedy = "look at what loads and normalises the data"
    if all(np.all(x == x.flat[0]) for x in arrays):
        message = f"has the number {arrays[0].flat[0]:g} everywhere: {remedy}"
        yield Found("warning", "batch", message, blocks=True)
    elif len(arrays[0]) > 1 and all(x.ndim > 1 and np.all(x == x[:1]) for x in arrays):
        message = f"has {len(arrays[0])} examples, all of them the same: {remedy}"
        yield Found("warning", "batch", message, blocks=True)


def labels(m: Measured) -> Iterator[Found]:
    """Integer labels that are no class of the output, and classes that no example has."""
    if m.labels is None or m.classes is None:
        return
    given, classes = np.asarray(m.labels), m.classes
    outside = (given < 0) | (given >= classes)
    if np.any(outside):
        message = (
            f"are {int(given.min())} to {int(given.max())}, but the model gives {classes} numbers "
            f"for classes 0 to {classes - 1}: {int(outside.sum())} of {given.size} are no class; "
            "number the classes from 0, or set the model's number of classes"
        )
        yield Found("error", "labels", message)
        return
    counts = np.bincount(given.ravel(), minlength=classes)
    missing = np.flatnonzero(counts == 0)
    by_chance = classes * (1.0 - 1.0 / classes) ** given.size
    if classes > 1 and missing.size and by_chance < _BY_CHANCE:
        names = ", ".join(map(str, missing[:5])) + (", ..." if missing.size > 5 else "")
        message = (
            f"never are {names}: {missing.size} of the {classes} classes are in none of the "
            f"{given.size} examples, of which each should be in about {given.size / classes:.0f}: "
            "shuffle the data, number the classes from 0, or set the model's number of classes"
        )
        yield Found("warning", "labels", message)


def examples_with_nan(args: tuple) -> str:
    """Which of the batch's examples hold NaN or inf, as text; empty if none does."""
    arrays = [np.asarray(x) for x in jax.tree.leaves(args) if getattr(x, "ndim", 0) > 0]
    arrays = [x for x in arrays if jax.numpy.issubdtype(x.dtype, jax.numpy.floating)]
    for x in arrays:
        bad = ~np.isfinite(x.astype(np.float32).reshape(len(x), -1)).all(axis=1)
        if np.any(bad):
            where = f"the first is number {np.argmax(bad)}"
            return f"{bad.sum()} of {len(x)} examples of the batch ({where})"
    return ""
