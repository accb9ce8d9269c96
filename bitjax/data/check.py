"""Checks what a `Dataset` promises, before anything is trained on it."""

import numpy as np

from bitjax.data.pipeline import Dataset
from bitjax.data.stream import StreamedDataset


def check_dataset(dataset: Dataset | StreamedDataset) -> None:
    """Raise a ValueError where a data set breaks what `Dataset` promises.

    Args:
      dataset: The data. `load` checks its own; records of a streamed set are checked when they are
        read.

    Raises:
      ValueError: If a shape, a dtype, a label, a pixel or a statistic is not as promised.

    Example:
      >>> from bitjax.data import load
      >>> check_dataset(load("digits")._replace(num_classes=9))
      Traceback (most recent call last):
      ValueError: `labels` of digits must be in [0, 9), got [0, 9].
    """
    name, channels = dataset.name, dataset.image_shape[-1]
    if isinstance(dataset, Dataset):
        _check_examples(dataset, name, channels)
    if len(dataset.mean) != channels or len(dataset.std) != channels:
        raise ValueError(
            f"`mean` and `std` of {name} must have {channels} numbers, one a channel, "
            f"got {dataset.mean} and {dataset.std}."
        )
    if not (np.isfinite(dataset.mean).all() and np.all(np.asarray(dataset.std) > 0)):
        raise ValueError(
            f"`mean` of {name} must be finite and `std` positive, "
            f"got {dataset.mean} and {dataset.std}."
        )


def _check_examples(dataset: Dataset, name: str, channels: int) -> None:
    for prefix in ("", "eval_"):
        images = getattr(dataset, f"{prefix}images")
        labels = getattr(dataset, f"{prefix}labels")
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] != channels:
            raise ValueError(
                f"`{prefix}images` of {name} must be uint8 [N, H, W, {channels}], "
                f"got {images.dtype} {images.shape}."
            )
        if labels.shape != images.shape[:1] or labels.dtype != np.int32:
            raise ValueError(
                f"`{prefix}labels` of {name} must be int32 [{len(images)}], "
                f"got {labels.dtype} {labels.shape}."
            )
        if len(labels) == 0:
            continue
        if labels.min() < 0 or labels.max() >= dataset.num_classes:
            raise ValueError(
                f"`{prefix}labels` of {name} must be in [0, {dataset.num_classes}), "
                f"got [{labels.min()}, {labels.max()}]."
            )
        if images.max() > dataset.max_value:
            raise ValueError(
                f"`{prefix}images` of {name} must be at most {dataset.max_value}, "
                f"got {images.max()}; correct `max_value`."
            )
