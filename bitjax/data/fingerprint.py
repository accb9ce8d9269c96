"""Tells whether a data set is still the one that a run began with, without reading its files."""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bitjax.data.examples import DatasetLike

_SAMPLE = 2**26  # bytes of an array that are looked at, 30 ms: whole rows, evenly spread


def fingerprint(dataset: DatasetLike) -> dict[str, Any]:
    """What is the same as long as a data set is, for a file of JSON.

    A set of files is known by their paths below its root, their sizes and the order of its classes.
    So it is the same on another machine or in another place, and another one if a file is removed,
    added, renamed, replaced by one of another size or moved to another class. An npz file is known
    by the checksums that it stores, and arrays by a sample of their rows.

    Args:
      dataset: The data, as `load` returns it or made by hand.

    Returns:
      Numbers and strings by key: 'train' and 'evaluation', the counts of examples; 'content', what
      identifies the files, the pixels or the tokens. Of images 'image_shape', 'classes' and
      'labels', a checksum of all labels, '' where they are unknown until they are read.

    Example:
      >>> from bitjax.data import load
      >>> found = fingerprint(load("digits"))
      >>> found["train"], found["classes"], found == fingerprint(load("digits", validation=10))
      (1437, 10, False)
    """
    return {
        "train": dataset.num_train,
        "evaluation": dataset.num_eval,
        **dataset.identity(),
    }


def image_identity(
    shape: Sequence[int], classes: int, labels: Sequence[np.ndarray | None], content: str
) -> dict[str, Any]:
    """The identity of a set of images: of their form, their labels and their content."""
    # Of a task of one's own they may be floats, which an integer would cut off.
    known = [
        each.astype("<i4") if each.dtype.kind in "biu" else each
        for each in labels
        if each is not None
    ]
    return {
        "image_shape": list(shape),
        "classes": classes,
        "labels": sample(*known) if len(known) == len(labels) else "",
        "content": content,
    }


def sample(*arrays: np.ndarray) -> str:
    """A checksum of rows of each array, of all if they are few."""
    crc = 0
    for array in arrays:
        step = -(-array.nbytes // _SAMPLE) or 1
        rows = np.ascontiguousarray(array[::step])
        crc = zlib.crc32(rows.view(np.uint8).data if array.size else b"", crc)
    return f"{crc:08x}"
