"""Reads a user's own arrays from one .npz file."""

import zipfile
from pathlib import Path

import numpy as np

from bitjax.data.pipeline import Dataset
from bitjax.data.statistics import measured

_FORM = (
    "expected x_train, y_train, x_test and y_test, or images and labels: pixels uint8 [N, H, W] "
    "or [N, H, W, C], classes integers [N] from 0"
)


def npz(name: str, path: Path) -> Dataset:
    """The examples in an .npz file, in the arrays that `_FORM` lists."""
    if not path.is_file():
        raise FileNotFoundError(f"{name}: {path.absolute()} is missing.")
    try:
        with path.open("rb") as content:
            file = np.load(content, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("one array, not an archive")
            keys = set(file.files)
            pairs = [("x_train", "y_train"), ("x_test", "y_test")]
            if not {name for pair in pairs for name in pair} <= keys:
                pairs = [("images", "labels")]
            if not {*pairs[0]} <= keys:
                raise ValueError(f"it has {sorted(keys)}")
            arrays = [(file[x], file[y]) for x, y in pairs]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{name}: {path} cannot be read ({error}); {_FORM}.") from error
    parts = [_checked(name, *pair, *found) for pair, found in zip(pairs, arrays, strict=True)]
    images, labels = parts[0]
    if len(parts) == 1:
        parts.append((images[:0], labels[:0]))
    eval_images, eval_labels = parts[1]
    if eval_images.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"{name}: x_test must have the shape of x_train, {images.shape[1:]} an image, got "
            f"{eval_images.shape[1:]}."
        )
    if len(labels) == 0:
        raise ValueError(f"{name}: {path} has no training examples; {_FORM}.")
    classes = int(max(labels.max(), eval_labels.max(initial=0))) + 1
    return measured(name, (images, labels), (eval_images, eval_labels), "test", classes)


def _checked(
    name: str, x: str, y: str, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"{name}: {x} must be uint8 [N, H, W] or [N, H, W, C], got {images.dtype} "
            f"{images.shape}."
        )
    if labels.shape == (len(images), 1):  # Keras' CIFAR files.
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise ValueError(
            f"{name}: {y} must be integers [{len(images)}], got {labels.dtype} {labels.shape}."
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < 2**31:
        raise ValueError(f"{name}: {y} must be classes from 0, got {labels.min()}.")
    return images, labels.astype(np.int32)
