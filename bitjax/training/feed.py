"""Feeds a run's dispatches: this host's part of the batches, moved to its devices."""

import contextlib
from collections.abc import Generator, Sequence
from typing import Any

import jax
import numpy as np

from bitjax.data import DatasetLike, batch_indices, to_device, train_batches
from bitjax.training.parallel import Placement
from bitjax.training.settings import Settings


def resident(dataset: DatasetLike, place: Placement, megabytes: int) -> dict[str, jax.Array]:
    """The training set on an accelerator's devices, where it is small enough; else {}."""
    if not place.accelerator or not dataset.fixed:
        return {}
    count = dataset.num_train
    if sum(s.size * s.dtype.itemsize for s in dataset.specs(count).values()) > megabytes * 2**20:
        return {}
    every = np.arange(count)
    return place.put_data(dataset.train_examples(every, seed=0, positions=every, augment=False))


def feed(
    dataset: DatasetLike,
    settings: Settings,
    place: Placement,
    steps: range,
    *,
    indices: bool,
    seeds: Sequence[int] = (),
) -> Generator[tuple[int, Any], None, None]:
    """The batches of some steps of the run, dispatch by dispatch, made and moved ahead of them.

    A dispatch is (steps, what they take): one batch, or `steps_per_dispatch` of them, stacked, and
    what is left of them at the end. With `indices` a batch is its examples' places in `resident`
    data; with `seeds`, one for each row of a group, batches have a first axis of rows.
    """
    size, together = settings.batch_size, settings.steps_per_dispatch

    def of_seed(seed):
        if indices:
            return _places(dataset, size, place, steps, seed)
        return train_batches(dataset, size, steps.start, seed, shard=place.shard, stop=steps.stop)

    def dispatches():
        with contextlib.ExitStack() as stack:
            rows = [
                stack.enter_context(contextlib.closing(of_seed(seed)))
                for seed in seeds or (settings.seed,)
            ]
            for first in range(steps.start, steps.stop, together):
                count = min(together, steps.stop - first)
                group = [
                    _stacked([next(row) for row in rows]) if seeds else next(rows[0])
                    for _ in range(count)
                ]
                yield count, group[0] if together == 1 else _stacked(group)

    def put(dispatch):
        count, batch = dispatch
        return count, place.put_batch(batch, scanned=together > 1)

    return to_device(dispatches(), put)


def _places(dataset, size, place, steps, seed) -> Generator[dict[str, np.ndarray], None, None]:
    host, hosts = place.shard
    for step in steps:
        every = batch_indices(dataset.num_train, size, step, seed).astype(np.int32)
        yield {"index": np.split(every, hosts)[host]}


def _stacked(batches: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
