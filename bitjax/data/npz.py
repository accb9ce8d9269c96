"""Reads a user's own arrays from one .npz file."""

from pathlib import Path

import numpy as np

from bitjax.data.arrays import Dataset
from bitjax.data.check import LABELS, PIXELS, check_layout
from bitjax.data.statistics import measured
from bitjax.files.npz import npz_names, read_npz
from bitjax.files.reading import FileError, printable

_FORM = (
    "copy it again, or give an .npz file of x_train, y_train, x_test and y_test, or of images and "
    "labels: pixels uint8 [N, H, W] or [N, H, W, C], classes integers [N] from 0"
)


def npz(name: str, path: Path) -> Dataset:
    """The examples in an .npz file, in the arrays that `_FORM` lists."""
    name, there = printable(name), {*npz_names(path, _FORM)}
    pairs = [("x_train", "y_train"), ("x_test", "y_test")]
    if not {key for pair in pairs for key in pair} <= there:
        pairs = [("images", "labels")]
    if not {*pairs[0]} <= there:
        raise FileError(path, f"holds {sorted(there)}", _FORM)
    arrays = read_npz(path, [key for pair in pairs for key in pair], _FORM)
    parts = [_checked(name, x, y, arrays[x], arrays[y]) for x, y in pairs]
    images, labels = parts[0]
    if len(labels) == 0:
        raise ValueError(f"{name}: {printable(path)} has no training examples; {_FORM}.")
    eval_images, eval_labels = parts[1] if len(parts) == 2 else (images[:0], labels[:0])
    if eval_images.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"{name}: x_test must have the shape of x_train, {images.shape[1:]} an image, got "
            f"{eval_images.shape[1:]}."
        )
    if unknown := {*np.unique(eval_labels).tolist()} - {*np.unique(labels).tolist()}:
        raise ValueError(
            f"{name}: y_test has the class {min(unknown)}, of which y_train has no example; "
            "leave such examples out, or train on some."
        )
    classes = int(labels.max()) + 1
    return measured(name, (images, labels), (eval_images, eval_labels), "test", classes)


def _checked(
    name: str, x: str, y: str, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(
            f"{name}: {x} must be uint8 [N, H, W] or [N, H, W, C], got {images.dtype} "
            f"{images.shape}; {PIXELS}."
        )
    check_layout(f"{name}: {x}", images.shape)
    if labels.shape == (len(images), 1):  # Keras' CIFAR files.
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise ValueError(
            f"{name}: {y} must be integers [{len(images)}], got {labels.dtype} {labels.shape}; "
            f"{LABELS}."
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < 2**31:
        raise ValueError(
            f"{name}: {y} must be classes from 0, got {labels.min()} to {labels.max()}; number "
            "them from 0, and leave out examples without a class."
        )
    return images, labels.astype(np.int32)
