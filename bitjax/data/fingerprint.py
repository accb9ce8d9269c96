"""Tells whether a data set is still the one that a run began with, without reading its files."""

import zlib
from typing import Any

import numpy as np

from bitjax.data.pipeline import Dataset
from bitjax.data.stream import StreamedDataset

_SAMPLE = 2**26  # bytes of pixels that are looked at, 30 ms: whole rows, evenly spread


def fingerprint(dataset: Dataset | StreamedDataset) -> dict[str, Any]:
    """What is the same as long as a data set is, for a file of JSON.

    A set of files is known by their paths below its root, their sizes and the order of its classes.
    So it is the same on another machine or in another place, and another one if a file is removed,
    added, renamed, replaced by one of another size or moved to another class. An npz file is known
    by the checksums that it stores, and arrays by a sample of their rows.

    Args:
      dataset: The data, as `load` returns it or made by hand.

    Returns:
      Numbers and strings by key: 'image_shape' and 'classes'; 'train' and 'evaluation', the counts
      of examples; 'labels', a checksum of all labels, '' where they are unknown until they are
      read; 'content', what identifies the files or the pixels.

    Example:
      >>> from bitjax.data import load
      >>> found = fingerprint(load("digits"))
      >>> found["train"], found["classes"], found == fingerprint(load("digits", validation=10))
      (1437, 10, False)
    """
    if isinstance(dataset, StreamedDataset):
        labels = [dataset.train.labels, dataset.evaluation.labels]
        content = dataset.origin
    else:
        labels = [dataset.labels, dataset.eval_labels]
        content = dataset.origin or _sample(dataset.images, dataset.eval_images)
    # Of a task of one's own they may be floats, which an integer would cut off.
    known = [
        each.astype("<i4") if each.dtype.kind in "biu" else each
        for each in labels
        if each is not None
    ]
    return {
        "image_shape": list(dataset.image_shape),
        "classes": dataset.num_classes,
        "train": dataset.num_train,
        "evaluation": dataset.num_eval,
        "labels": _sample(*known) if len(known) == len(labels) else "",
        "content": content,
    }


def _sample(*arrays: np.ndarray) -> str:
    """A checksum of rows of each array, of all if they are few."""
    crc = 0
    for array in arrays:
        step = -(-array.nbytes // _SAMPLE) or 1
        rows = np.ascontiguousarray(array[::step])
        crc = zlib.crc32(rows.view(np.uint8).data if array.size else b"", crc)
    return f"{crc:08x}"
