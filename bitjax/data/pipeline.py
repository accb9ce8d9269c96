"""Cuts data into batches by pure functions of step and seed, so that resuming needs no state."""

import contextlib
from collections.abc import Generator
from typing import NamedTuple

import numpy as np

from bitjax.checks import NONE, SWITCH, checked, either, instance, integer
from bitjax.data.order import BATCH, SHARD, batch_indices, shard_slice
from bitjax.data.prefetch import in_background
from bitjax.data.stream import Batch, StreamedDataset, eval_stream, train_stream


class Dataset(NamedTuple):
    """Training and evaluation examples as NumPy arrays, and what normalises them.

    Attributes:
      name: The data set's name.
      images: [N, H, W, C] uint8, training pixels in [0, max_value].
      labels: [N] int32, classes in [0, num_classes).
      eval_images: [M, H, W, C] uint8, evaluation pixels.
      eval_labels: [M] int32.
      eval_split: Name of the evaluation split: 'test' or 'validation'.
      num_classes: Number of classes.
      mean: Mean of value / max_value over the whole training set, one number per channel.
      std: Standard deviation of value / max_value, one number per channel.
      max_value: The largest value a pixel can take: 255 for bytes, 16 for digits.
      origin: What identifies the files that the examples were read from; '' where nothing does.
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
    origin: str = ""

    @property
    def num_train(self) -> int:
        """Number of training examples."""
        return len(self.labels)

    @property
    def num_eval(self) -> int:
        """Number of evaluation examples."""
        return len(self.eval_labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return self.images.shape[1:]

    def eval_sample(self, count: int) -> np.ndarray:
        """The first `count` evaluation images, uint8 [count, H, W, C]."""
        return self.eval_images[:count]


DATASET = instance(Dataset, StreamedDataset)


@checked(
    dataset=DATASET,
    batch_size=BATCH["batch_size"],
    start=integer(0),
    seed=BATCH["seed"],
    shard=SHARD,
    stop=either(NONE, integer(0)),
    augment=SWITCH,
)
def train_batches(
    dataset: Dataset | StreamedDataset,
    batch_size: int,
    start: int,
    seed: int,
    *,
    shard: tuple[int, int] = (0, 1),
    stop: int | None = None,
    augment: bool = True,
) -> Generator[Batch, None, None]:
    """The training batches from one step on, made in the background before they are asked for.

    What they hold depends on step and seed only: a run may stop at any step and go on with
    another number of hosts, and every example is still seen exactly once per epoch.

    Args:
      dataset: The data.
      batch_size: Examples in a batch over all hosts.
      start: The first step, from 0.
      seed: Seed of the order, in [0, 2**64).
      shard: (index, count): this host's index and the number of hosts.
      stop: The step before which to end; None: never.
      augment: Whether a streamed data set crops at random, where it does; what is in memory is
        augmented on the device.

    Returns:
      A generator of batches as `train_batch` makes them. It holds threads: `close` it, or use
      `contextlib.closing`, where it is left before its end.

    Raises:
      ValueError: If an argument is out of its range, or `batch_size` does not divide by `count`.

    Example:
      >>> from bitjax.data import load
      >>> with contextlib.closing(train_batches(load("digits"), 32, start=7, seed=0)) as batches:
      ...     next(batches)["image"].shape
      (32, 8, 8, 1)
    """
    # The checks run here, not at the iterator's first `next`, where they would be far from home.
    part = shard_slice(batch_size, shard)
    if stop is None or start < stop:
        batch_indices(dataset.num_train, batch_size, start, seed)
    if isinstance(dataset, StreamedDataset):
        return train_stream(dataset, batch_size, int(start), int(seed), part, stop, augment)
    return in_background(
        lambda step: train_batch(dataset, batch_size, step, seed, shard=shard), int(start), stop
    )


@checked(dataset=DATASET, **BATCH, shard=SHARD, augment=SWITCH)
def train_batch(
    dataset: Dataset | StreamedDataset,
    batch_size: int,
    step: int,
    seed: int,
    *,
    shard: tuple[int, int] = (0, 1),
    augment: bool = True,
) -> Batch:
    """The training batch of one step, or one host's part of it; raw pixels.

    Args:
      dataset: The data.
      batch_size: Examples in the batch over all hosts.
      step: The training step, from 0.
      seed: Seed of the order, in [0, 2**64).
      shard: (index, count): this host's index and the number of hosts. The shards of a step,
        concatenated, are the batch that one host would see.
      augment: Whether a streamed data set crops at random, where it does; what is in memory is
        augmented on the device.

    Returns:
      {'image': uint8 [batch_size / count, H, W, C], 'label': int32 [batch_size / count]}.

    Raises:
      ValueError: If an argument is out of its range, or `batch_size` does not divide by `count`.

    Example:
      >>> from bitjax.data import load
      >>> train_batch(load("digits"), 32, step=0, seed=0, shard=(1, 4))["image"].shape
      (8, 8, 8, 1)
    """
    part = shard_slice(batch_size, shard)
    indices = batch_indices(dataset.num_train, batch_size, step, seed)[part]
    if isinstance(dataset, StreamedDataset):
        step, seed = int(step), int(seed)
        batches = train_stream(dataset, batch_size, step, seed, part, step + 1, augment)
        with contextlib.closing(batches):
            return next(batches)
    return {"image": dataset.images[indices], "label": dataset.labels[indices]}


@checked(dataset=DATASET, batch_size=BATCH["batch_size"], shard=SHARD)
def eval_batches(
    dataset: Dataset | StreamedDataset, batch_size: int, *, shard: tuple[int, int] = (0, 1)
) -> Generator[Batch, None, None]:
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
      filling}. Every host gets the same number of batches. `close` it where it is left before its
      end: a streamed data set's holds threads.

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
    part = shard_slice(batch_size, shard)
    if dataset.num_eval == 0:
        raise ValueError(
            f"`dataset` {dataset.name!r} has no evaluation examples; "
            "load it with eval_split='test' or with `validation` > 0."
        )
    if isinstance(dataset, StreamedDataset):
        return eval_stream(dataset, batch_size, part)
    return _eval_batches(dataset, batch_size, part)


def _eval_batches(dataset: Dataset, batch_size: int, part: slice) -> Generator[Batch, None, None]:
    for start in range(0, len(dataset.eval_labels), batch_size):
        window = slice(start + part.start, start + part.stop)
        image, label = dataset.eval_images[window], dataset.eval_labels[window]
        filling = part.stop - part.start - len(label)
        yield {
            "image": np.pad(image, ((0, filling), (0, 0), (0, 0), (0, 0))),
            "label": np.pad(label, (0, filling)),
            "mask": np.pad(np.ones(len(label), np.float32), (0, filling)),
        }
