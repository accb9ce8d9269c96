"""What a run's dispatches take: this host's part of the batches, on its devices."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from bitjax.data import Dataset, batch_indices, train_batch
from bitjax.training.parallel import Placement
from bitjax.training.settings import Settings


def resident(dataset: Dataset, place: Placement, megabytes: int) -> dict[str, jax.Array]:
    """The training set on an accelerator's devices, where it is small enough; else {}.

    Example:
      >>> from bitjax.data import load
      >>> from bitjax.training.parallel import placement
      >>> place = placement("none")._replace(accelerator=True)
      >>> sorted(resident(load("digits"), place, 1)), resident(load("digits"), place, 0)
      (['image', 'label'], {})
    """
    if not place.accelerator or dataset.images.nbytes > megabytes * 2**20:
        return {}
    return place.put_data({"image": dataset.images, "label": dataset.labels})


def feed(
    dataset: Dataset, settings: Settings, place: Placement, steps: range, *, indices: bool
) -> Iterator[tuple[int, Any]]:
    """The batches of some steps of the run, dispatch by dispatch.

    Args:
      dataset: the data.
      settings: of the run.
      place: where the batches go.
      steps: of the whole run.
      indices: whether a batch is its examples' places in the training set, for `resident` data.

    Returns:
      An iterator of (steps, what they take): one batch, or `steps_per_dispatch` of them, stacked,
      and what is left of them at the end.

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

    def batch_of(step):
        if not indices:
            return train_batch(dataset, size, step, seed, shard=place.shard)
        every = batch_indices(len(dataset.labels), size, step, seed).astype(np.int32)
        return {"index": np.split(every, hosts)[host]}

    together = settings.steps_per_dispatch
    for first in range(steps.start, steps.stop, together):
        batches = [batch_of(step) for step in range(first, min(first + together, steps.stop))]
        if together == 1:
            yield 1, place.put_batch(batches[0])
        else:
            stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
            yield len(batches), place.put_batch(stacked, scanned=True)
