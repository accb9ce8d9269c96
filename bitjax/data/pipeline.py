"""Data in memory, cut into batches by pure functions of step and seed; resuming needs no state."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

Batch = dict[str, np.ndarray]


class Dataset(NamedTuple):
    """Training and evaluation examples as NumPy arrays, and what normalises them.

    Attributes:
      name: The data set's name.
      images: [N, H, W, C] uint8, training pixels in [0, max_value].
      labels: [N] int32, classes in [0, num_classes).
      eval_images: [M, H, W, C] uint8, evaluation pixels.
      eval_labels: [M] int32.
      eval_split: What the evaluation examples are: 'test' or 'validation'.
      num_classes: Number of classes.
      mean: Mean of value / max_value over the whole training set, one number per channel.
      std: Standard deviation of value / max_value, one number per channel.
      max_value: The largest value a pixel can take: 255 for bytes, 16 for digits.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    eval_images: np.ndarray
    eval_labels: np.ndarray
    eval_split: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_value: float


def seeded_order(num_examples: int, seed: int, stream: int) -> np.ndarray:
    """A permutation of range(num_examples) that depends on (seed, stream) only.

    It sorts raw Philox words: NumPy promises that those never change between releases, and does
    not promise it of `Generator.permutation`.

    Args:
      num_examples: How many numbers to permute.
      seed: In [0, 2**64).
      stream: Which of the seed's permutations, in [0, 2**64): the epoch, say.

    Returns:
      int64 [num_examples].

    Example:
      >>> sorted(seeded_order(4, seed=0, stream=0).tolist())
      [0, 1, 2, 3]
    """
    for name, value in (("seed", seed), ("stream", stream)):
        if not 0 <= value < 2**64:
            raise ValueError(f"`{name}` must be in [0, 2**64), got {value}.")
    words = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(num_examples)
    return np.argsort(words, kind="stable").astype(np.int64)


@functools.lru_cache(maxsize=4)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    order = seeded_order(num_examples, seed, epoch)
    order.flags.writeable = False  # It is shared by every batch of the epoch.
    return order


def batch_indices(num_examples: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Which examples the batch of one step holds.

    The epochs' permutations form one endless stream, and step `s` takes the positions from
    `s * batch_size` on. A batch may cross the border of two epochs, so that no example is
    dropped: each is seen exactly once per epoch, whatever the batch size.

    Args:
      num_examples: Size of the training set, at least 1.
      batch_size: Examples in the batch over all hosts, at least 1.
      step: The training step, from 0.
      seed: Seed of the order, in [0, 2**64).

    Returns:
      int64 [batch_size], each in [0, num_examples).

    Raises:
      ValueError: If an argument is out of its range.

    Example:
      >>> epoch = [batch_indices(6, 2, step, seed=0) for step in range(3)]
      >>> sorted(np.concatenate(epoch).tolist())
      [0, 1, 2, 3, 4, 5]
    """
    if num_examples < 1:
        raise ValueError(
            f"`num_examples` must be at least 1, got {num_examples}: there is nothing to train on."
        )
    _check_batch_size(batch_size)
    if step < 0:
        raise ValueError(f"`step` must be at least 0, got {step}.")
    epochs, offsets = np.divmod(int(step) * batch_size + np.arange(batch_size), num_examples)
    indices = np.empty(batch_size, np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        indices[here] = _epoch_order(num_examples, int(seed), epoch)[offsets[here]]
    return indices


def train_batch(
    dataset: Dataset, batch_size: int, step: int, seed: int, *, shard: tuple[int, int] = (0, 1)
) -> Batch:
    """The training batch of one step, or one host's part of it; raw pixels, not augmented.

    Args:
      dataset: The data.
      batch_size: Examples in the batch over all hosts.
      step: The training step, from 0.
      seed: Seed of the order, in [0, 2**64).
      shard: (index, count): this host's index and the number of hosts. The shards of a step,
        concatenated, are the batch that one host would see.

    Returns:
      {'image': uint8 [batch_size / count, H, W, C], 'label': int32 [batch_size / count]}.

    Raises:
      ValueError: If an argument is out of its range, or `batch_size` does not divide by `count`.

    Example:
      >>> from bitjax.data import load
      >>> train_batch(load("digits"), 32, step=0, seed=0, shard=(1, 4))["image"].shape
      (8, 8, 8, 1)
    """
    part = _shard_slice(batch_size, shard)
    indices = batch_indices(len(dataset.labels), batch_size, step, seed)[part]
    return {"image": dataset.images[indices], "label": dataset.labels[indices]}


def eval_batches(
    dataset: Dataset, batch_size: int, *, shard: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """All evaluation examples, in order, in batches of one shape.

    The last batch is filled up with black images whose mask is 0. Multiply by the mask and
    every example counts once; one shape means one compilation and divides over the devices.

    Args:
      dataset: The data.
      batch_size: Examples in a batch over all hosts.
      shard: (index, count): this host's index and the number of hosts.

    Returns:
      An iterator of {'image': uint8 [batch_size / count, H, W, C], 'label': int32
      [batch_size / count], 'mask': float32 [batch_size / count], 1 for an example and 0 for
      filling}. Every host gets the same number of batches.

    Raises:
      ValueError: If there are no evaluation examples, an argument is out of its range, or
        `batch_size` does not divide by `count`.

    Example:
      >>> from bitjax.data import load
      >>> batches = list(eval_batches(load("digits"), 256))
      >>> [int(batch["mask"].sum()) for batch in batches]
      [256, 104]
    """
    # The checks run here, not at the iterator's first `next`, where they would be far from home.
    part = _shard_slice(batch_size, shard)
    if len(dataset.eval_labels) == 0:
        raise ValueError(
            f"`dataset` {dataset.name!r} has no evaluation examples; "
            "load it with eval_split='test' or with `validation` > 0."
        )
    return _eval_batches(dataset, batch_size, part)


def _eval_batches(dataset: Dataset, batch_size: int, part: slice) -> Iterator[Batch]:
    for start in range(0, len(dataset.eval_labels), batch_size):
        window = slice(start + part.start, start + part.stop)
        image, label = dataset.eval_images[window], dataset.eval_labels[window]
        filling = part.stop - part.start - len(label)
        yield {
            "image": np.pad(image, ((0, filling), (0, 0), (0, 0), (0, 0))),
            "label": np.pad(label, (0, filling)),
            "mask": np.pad(np.ones(len(label), np.float32), (0, filling)),
        }


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")


def _shard_slice(batch_size: int, shard: tuple[int, int]) -> slice:
    index, count = shard
    _check_batch_size(batch_size)
    if not 0 <= index < count:
        raise ValueError(f"`shard` must be (index, count) with 0 <= index < count, got {shard}.")
    if batch_size % count:
        raise ValueError(
            f"`batch_size` must be a multiple of the {count} shards, got {batch_size}; "
            f"use {batch_size - batch_size % count or count}."
        )
    size = batch_size // count
    return slice(index * size, (index + 1) * size)
