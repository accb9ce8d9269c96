"""Decodes a folder's or a TFDS set's images: all of them into memory, or batch by batch."""

import math
from collections.abc import Collection

import numpy as np

from bitjax.data.arrays import Dataset
from bitjax.data.order import seeded_order
from bitjax.data.records import Records, Source, decode_all, origin_of
from bitjax.data.split import VALIDATION_SEED, held_out
from bitjax.data.statistics import measured, usual_moments
from bitjax.data.stream import StreamedDataset

MEMORY_LIMIT = 2**30  # bytes of decoded pixels, training and evaluation together
DEFAULT_SIZE = 224  # pixels, of images that have no one shape
RANDOM_CROP = "random_resized_crop"  # the augmentation that happens while records are decoded


def evaluation_split(name: str, splits: Collection[str], validation: int, eval_split: str) -> str:
    """The split to evaluate, for `load`; 'train' where its examples are held out of that."""
    if eval_split == "validation":
        if validation == 0 and "validation" not in splits:
            raise ValueError(
                "`eval_split` is 'validation' but `validation` is 0; "
                "set `validation` to the number of training examples to hold out."
            )
        return "train" if validation else "validation"
    for split in ("test", "validation"):
        if split in splits:
            return split
    raise ValueError(
        f"{name} has training examples only; set `eval_split` to 'validation' and "
        "`validation` to the number of training examples to hold out."
    )


def fits_memory(
    source: Source, evaluation: str, image_size: int, augmentation: str, memory_limit: int
) -> bool:
    """Whether all images have the shape that is wanted and take at most `memory_limit` bytes."""
    if source.shape is None or augmentation == RANDOM_CROP:
        return False
    if image_size and source.shape[:2] != (image_size, image_size):
        return False
    count = sum(len(source.splits[split]) for split in {"train", evaluation})
    return count * math.prod(source.shape) <= memory_limit


def in_memory(source: Source, evaluation: str) -> Dataset:
    """All examples, decoded; none for evaluation where those are to be held out of training."""
    assert source.shape is not None
    images, labels = decode_all(source.splits["train"], source.num_classes, source.shape)
    if len(labels) == 0:
        raise ValueError(f"{source.name} has no training examples.")
    held = images[:0], labels[:0]
    if evaluation != "train":
        held = decode_all(source.splits[evaluation], source.num_classes, source.shape)
    split = source.splits[evaluation].split
    dataset = measured(source.name, (images, labels), held, split, source.num_classes)
    return dataset._replace(origin=origin_of(source.splits["train"], source.splits[evaluation]))


def streamed(
    source: Source, evaluation: str, validation: int, image_size: int, augmentation: str
) -> StreamedDataset:
    """A data set whose examples are decoded when a batch needs them; arguments as of `load`."""
    train, shape = source.splits["train"], source.shape
    if len(train) == 0:
        raise ValueError(f"{source.name} has no training examples.")
    mask = _held_out(train, validation, source.num_classes)
    held = evaluation == "train"
    if image_size or shape is None:
        size = image_size or DEFAULT_SIZE
        wanted = (size, size, source.channels)
        # 256 for 224, as everybody has it; where all images have one shape nothing is cut off.
        shorter = round(size * 256 / 224) if shape is None else size
    else:
        wanted, shorter = shape, 0
    mean, std = usual_moments(source.channels)
    return StreamedDataset(
        name=source.name,
        train=train.subset(~mask),
        evaluation=train.subset(mask) if held else source.splits[evaluation],
        image_shape=wanted,
        shorter=0 if wanted == shape else shorter,
        random_crop=augmentation == RANDOM_CROP,
        eval_split="validation" if held else source.splits[evaluation].split,
        num_classes=source.num_classes,
        mean=mean,
        std=std,
        origin=origin_of(train, source.splits[evaluation]),
    )


def _held_out(records: Records, count: int, num_classes: int) -> np.ndarray:
    if records.labels is not None:
        return held_out(records.labels, count, num_classes, VALIDATION_SEED)
    mask = np.zeros(len(records), bool)
    mask[seeded_order(len(records), VALIDATION_SEED, 0)[:count]] = True
    return mask
