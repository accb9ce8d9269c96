"""Cuts data into batches by pure functions of step and seed, so that resuming needs no state."""

import contextlib
from collections.abc import Callable, Generator

import numpy as np

from bitjax.checks import NONE, SWITCH, checked, either, instance, integer
from bitjax.data.examples import Batch, DatasetLike
from bitjax.data.order import BATCH, SHARD, batch_indices, indices_at, shard_slice
from bitjax.data.prefetch import in_background, in_threads

DATASET = instance(DatasetLike)


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
    dataset: DatasetLike,
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
    read = _reader(dataset, int(seed), augment)
    return _batches(dataset, read, batch_size, part, int(start), stop)


@checked(dataset=DATASET, **BATCH, shard=SHARD, augment=SWITCH)
def train_batch(
    dataset: DatasetLike,
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
    batch_indices(dataset.num_train, batch_size, step, seed)
    read, step = _reader(dataset, int(seed), augment), int(step)
    with contextlib.closing(_batches(dataset, read, batch_size, part, step, step + 1)) as batches:
        return next(batches)


@checked(dataset=DATASET, batch_size=BATCH["batch_size"], shard=SHARD)
def eval_batches(
    dataset: DatasetLike, batch_size: int, *, shard: tuple[int, int] = (0, 1)
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
    steps = -(-dataset.num_eval // batch_size)
    return _batches(dataset, lambda at: _evaluated(dataset, at), batch_size, part, 0, steps)


def _reader(dataset: DatasetLike, seed: int, augment: bool) -> Callable[[np.ndarray], Batch]:
    """Of positions in the endless stream of epochs, the examples that stand there."""

    def read(positions: np.ndarray) -> Batch:
        indices = indices_at(positions, dataset.num_train, seed)
        return dataset.train_examples(indices, seed=seed, positions=positions, augment=augment)

    return read


def _evaluated(dataset: DatasetLike, positions: np.ndarray) -> Batch:
    """The evaluation examples at some positions, and zeros beyond the last one."""
    there = positions[positions < dataset.num_eval]
    filling = (0, len(positions) - len(there))
    found = {**dataset.eval_examples(there), "mask": np.ones(len(there), np.float32)}
    return {
        name: np.pad(rows, (filling, *[(0, 0)] * (rows.ndim - 1))) for name, rows in found.items()
    }


def _batches(
    dataset: DatasetLike,
    read: Callable[[np.ndarray], Batch],
    batch_size: int,
    part: slice,
    start: int,
    stop: int | None,
) -> Generator[Batch, None, None]:
    """What `read` gives of a host's part of each step's positions, made before it is asked for."""
    if not dataset.threads:
        own = np.arange(part.start, part.stop)
        return in_background(lambda step: read(step * batch_size + own), start, stop)
    size = part.stop - part.start

    def one(number: int) -> Batch:
        step, place = divmod(number, size)
        found = read(np.array([step * batch_size + part.start + place]))
        return {name: rows[0] for name, rows in found.items()}

    end = None if stop is None else stop * size
    return in_threads(one, start * size, end, size, dataset.threads)
