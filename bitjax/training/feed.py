"""What a run's dispatches take: this host's part of the batches, on its devices."""

import contextlib
from collections.abc import Generator
from typing import Any

import jax
import numpy as np

from bitjax.data import Dataset, StreamedDataset, batch_indices, to_device, train_batches
from bitjax.training.parallel import Placement
from bitjax.training.settings import Settings


def resident(
    dataset: Dataset | StreamedDataset, place: Placement, megabytes: int
) -> dict[str, jax.Array]:
    """The training set on an accelerator's devices, where it is small enough; else {}.

    Example:
      >>> from bitjax.data import load
      >>> from bitjax.training.parallel import placement
      >>> place = placement("none")._replace(accelerator=True)
      >>> sorted(resident(load("digits"), place, 1)), resident(load("digits"), place, 0)
      (['image', 'label'], {})
    """
    if not place.accelerator or isinstance(dataset, StreamedDataset):
        return {}
    if dataset.images.nbytes > megabytes * 2**20:
        return {}
    return place.put_data({"image": dataset.images, "label": dataset.labels})


def feed(
    dataset: Dataset | StreamedDataset,
    settings: Settings,
    place: Placement,
    steps: range,
    *,
    indices: bool,
) -> Generator[tuple[int, Any], None, None]:
    """The batches of some steps of the run, dispatch by dispatch, made and moved ahead of them.

    Args:
      dataset: the data.
      settings: of the run.
      place: where the batches go.
      steps: of the whole run.
      indices: whether a batch is its examples' places in the training set, for `resident` data.

    Returns:
      A generator of (steps, what they take): one batch, or `steps_per_dispatch` of them, stacked,
      and what is left of them at the end. `close` it where it is left before its end.

    Example:
      >>> from bitjax.data import load
      >>> from bitjax.training.parallel import placement
      >>> place = placement("none")._replace(accelerator=True)
      >>> settings = Settings(batch_size=4, steps_per_dispatch=2)
      >>> batches = feed(load("digits"), settings, place, range(3), indices=True)
      >>> [(count, batch["index"].shape) for count, batch in batches]
      [(2, (2, 4)), (1, (1, 4))]
    """
    size, seed, (host, hosts) = settings.batch_size, settings.seed, place.shard
    together = settings.steps_per_dispatch

    def places():
        for step in steps:
            every = batch_indices(dataset.num_train, size, step, seed).astype(np.int32)
            yield {"index": np.split(every, hosts)[host]}

    def dispatches(batches):
        with contextlib.closing(batches):
            for first in range(steps.start, steps.stop, together):
                count = min(together, steps.stop - first)
                group = [next(batches) for _ in range(count)]
                if together == 1:
                    yield 1, group[0]
                else:
                    yield count, {name: np.stack([b[name] for b in group]) for name in group[0]}

    def put(dispatch):
        count, batch = dispatch
        return count, place.put_batch(batch, scanned=together > 1)

    if indices:
        batches = places()
    else:
        batches = train_batches(
            dataset, size, steps.start, seed, shard=place.shard, stop=steps.stop
        )
    return to_device(dispatches(batches), put)
