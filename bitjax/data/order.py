"""Orders the examples: permutations that follow from seed and epoch, cut into batches."""

import functools

import numpy as np

from bitjax.checks import checked, integer, several

SEED = integer(0, 2**64 - 1)
# What the arguments of a batch may be, here and in `pipeline.py`.
BATCH = {"batch_size": integer(1), "step": integer(0), "seed": SEED}
SHARD = several(integer(0), 2, 2)


@checked(seed=SEED, stream=SEED)
def seeded_order(num_examples: int, seed: int, stream: int) -> np.ndarray:
    """A permutation of range(num_examples), int64, that depends on (seed, stream) only."""
    # NumPy promises that raw words never change between releases, of `Generator.permutation` not.
    words = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(num_examples)
    return np.argsort(words, kind="stable").astype(np.int64)


@functools.lru_cache(maxsize=4)
def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which one epoch sees the examples; read-only, int64 [num_examples]."""
    order = seeded_order(num_examples, seed, epoch)
    order.flags.writeable = False  # It is shared by every batch of the epoch.
    return order


@checked(num_examples=integer(0), **BATCH)
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
        raise ValueError("`num_examples` must be at least 1, got 0: there is nothing to train on.")
    return indices_at(int(step) * batch_size + np.arange(batch_size), num_examples, int(seed))


def indices_at(positions: np.ndarray, num_examples: int, seed: int) -> np.ndarray:
    """Which examples stand at some positions, in ascending order, of the endless stream."""
    epochs, offsets = np.divmod(positions, num_examples)
    indices = np.empty(len(positions), np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        indices[here] = epoch_order(num_examples, seed, epoch)[offsets[here]]
    return indices


@checked(batch_size=BATCH["batch_size"], shard=SHARD)
def shard_slice(batch_size: int, shard: tuple[int, int]) -> slice:
    """Which examples of a batch belong to one host."""
    index, count = shard
    if index >= count:
        raise ValueError(f"`shard` must be (index, count) with 0 <= index < count, got {shard}.")
    if batch_size % count:
        raise ValueError(
            f"`batch_size` must be a multiple of the {count} shards, got {batch_size}; "
            f"use {batch_size - batch_size % count or count}."
        )
    size = batch_size // count
    return slice(index * size, (index + 1) * size)
