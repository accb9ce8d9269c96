"""Checks what a `Dataset` promises, before anything is trained on it."""

import numpy as np

from bitjax.checks import checked
from bitjax.data.arrays import Dataset
from bitjax.data.examples import DatasetLike
from bitjax.data.pipeline import DATASET
from bitjax.data.stream import StreamedDataset
from bitjax.data.tokens import TokenDataset

PIXELS = (
    "give bytes: (255 * x).round().astype('uint8') of pixels in [0, 1], x.astype('uint8') of "
    "whole numbers"
)
TOKENS = "give whole numbers from 0, a stream of one axis: x.astype('uint16')"
LABELS = "give a class each: y.argmax(-1) of one-hot rows, y.astype('int32') of whole numbers"


@checked(dataset=DATASET)
def check_dataset(dataset: DatasetLike) -> None:
    """Raise a ValueError where a data set breaks what `Dataset` promises.

    Args:
      dataset: The data. `load` checks its own; records of a streamed set are checked when they are
        read.

    Raises:
      ValueError: If a shape, a dtype, a label, a pixel, a statistic or a token is not as promised.

    Example:
      >>> from bitjax.data import load
      >>> check_dataset(load("digits")._replace(num_classes=9))
      Traceback (most recent call last):
      ValueError: `labels` of digits must be in [0, 9), got [0, 9].
    """
    if isinstance(dataset, Dataset):
        _check_images(dataset, dataset.name)
        check_labels(dataset)
    if isinstance(dataset, Dataset | StreamedDataset):
        _check_moments(dataset)
    if isinstance(dataset, TokenDataset):
        _check_tokens(dataset)


def _check_moments(dataset: Dataset | StreamedDataset) -> None:
    name, channels = dataset.name, dataset.image_shape[-1]
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


def check_layout(label: str, shape: tuple[int, ...]) -> None:
    """Refuses [N, C, H, W], which would train as images of W channels."""
    _, height, width, channels = shape
    if channels > 4 and (height <= 4 or height < width == channels):
        raise ValueError(
            f"{label} must be [N, H, W, C], got {shape}, which looks like [N, C, H, W]; "
            "give x.transpose(0, 2, 3, 1)."
        )


def check_labels(dataset: Dataset) -> None:
    """Refuses labels that are no classes: one of -1 would count as the last class."""
    for prefix in ("", "eval_"):
        count, labels = (
            len(getattr(dataset, f"{prefix}images")),
            getattr(dataset, f"{prefix}labels"),
        )
        label = f"`{prefix}labels` of {dataset.name}"
        if labels.shape != (count,) or labels.dtype != np.int32:
            raise ValueError(
                f"{label} must be int32 [{count}], got {labels.dtype} {labels.shape}; {LABELS}."
            )
        if count and not 0 <= labels.min() <= labels.max() < dataset.num_classes:
            raise ValueError(
                f"{label} must be in [0, {dataset.num_classes}), "
                f"got [{labels.min()}, {labels.max()}]."
            )


def _check_images(dataset: Dataset, name: str) -> None:
    for prefix in ("", "eval_"):
        images = getattr(dataset, f"{prefix}images")
        if images.ndim != 4 or 0 in images.shape[1:] or images.dtype != np.uint8:
            raise ValueError(
                f"`{prefix}images` of {name} must be uint8 [N, H, W, C], "
                f"got {images.dtype} {images.shape}; {PIXELS}."
            )
        if images.shape[1:] != dataset.image_shape:
            raise ValueError(
                f"`{prefix}images` of {name} must have the shape of `images`, "
                f"{dataset.image_shape} an image, got {images.shape[1:]}."
            )
        check_layout(f"`{prefix}images` of {name}", images.shape)
        if len(images) and images.max() > dataset.max_value:
            raise ValueError(
                f"`{prefix}images` of {name} must be at most {dataset.max_value}, "
                f"got {images.max()}; correct `max_value`."
            )


def _check_tokens(dataset: TokenDataset) -> None:
    name, marker = dataset.name, dataset.marker
    if dataset.form not in (("windows",) if marker is None else ("documents", "windows")):
        raise ValueError(
            f"`form` of {name} must be 'windows', or 'documents' where there is a marker, got "
            f"{dataset.form!r} with the marker {marker}."
        )
    if dataset.context < 2:
        raise ValueError(f"`context` of {name} must be at least 2, got {dataset.context}.")
    for prefix in ("", "eval_"):
        tokens, spans = getattr(dataset, f"{prefix}tokens"), getattr(dataset, f"{prefix}spans")
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise ValueError(
                f"`{prefix}tokens` of {name} must be integers [N], got {tokens.dtype} "
                f"{tokens.shape}; {TOKENS}."
            )
        right = spans.ndim == 2 and spans.shape[1] == 2 and spans.dtype == np.int64
        if not right or (len(spans) and not _are_parts(spans, len(tokens))):
            raise ValueError(
                f"`{prefix}spans` of {name} must be int64 [K, 2], parts of {len(tokens)} tokens in "
                f"order, got {spans.dtype} {spans.shape}; let `token_dataset` find them."
            )
        # `token_dataset`, which says where tokens are from, has looked at every one.
        if (
            not dataset.origin
            and len(tokens)
            and not 0 <= tokens.min() <= tokens.max() < (dataset.vocabulary)
        ):
            raise ValueError(
                f"`{prefix}tokens` of {name} must be in [0, {dataset.vocabulary}), got "
                f"[{tokens.min()}, {tokens.max()}]."
            )


def _are_parts(spans: np.ndarray, length: int) -> bool:
    """Whether spans are not empty, do not overlap, and end within so many tokens."""
    edges = spans.reshape(-1)
    inner = (spans[:, 0] < spans[:, 1]).all() and (spans[1:, 0] >= spans[:-1, 1]).all()
    return bool(inner and edges[0] >= 0 and edges[-1] <= length)
