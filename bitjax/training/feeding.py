"""What a stage's steps are fed with: batches on their way to the devices, or indices of rows."""

from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np

from bitjax.data import Dataset, StreamedDataset, batch_indices, to_device, train_batches
from bitjax.training.parallel import Placement
from bitjax.training.settings import Settings


def resident(
    dataset: Dataset | StreamedDataset, place: Placement, settings: Settings
) -> dict[str, Any]:
    """The training set on the accelerator's devices, where it is small enough; else {}.

    Example:
      >>> from bitjax.data import load
      >>> from bitjax.training.parallel import placement
      >>> resident(load("digits"), placement()._replace(accelerator=False), Settings())
      {}
    """
    if not place.accelerator or isinstance(dataset, StreamedDataset):
        return {}
    if dataset.images.nbytes > settings.device_data_mb * 2**20:
        return {}
    return place.put_data({"image": dataset.images, "label": dataset.labels})


def feed(
    dataset: Dataset | StreamedDataset,
    place: Placement,
    settings: Settings,
    start: int,
    stop: int,
    *,
    indices: bool = False,
) -> Generator[Any, None, None]:
    """What one dispatch after the other takes, on the devices before it is asked for.

    Args:
      dataset: the data.
      place: whose host's part is read, and where it is put.
      settings: batch size, seed, and steps of a dispatch; the last dispatch may have fewer.
      start: the first step, counted over the whole run.
      stop: the step before which to end.
      indices: of the resident training set's rows, instead of the rows.

    Returns:
      A generator; `close` it where it is left before its end.

    Example:
      >>> from bitjax.data import load
      >>> from bitjax.training.parallel import placement
      >>> batches = feed(load("digits"), placement("none"), Settings(batch_size=32), 0, 3)
      >>> [batch["image"].shape for batch in batches]
      [(32, 8, 8, 1), (32, 8, 8, 1), (32, 8, 8, 1)]
    """
    size, seed = settings.batch_size, settings.seed
    if indices:
        batches = _indices(dataset.num_train, size, seed, place.shard, start, stop)
    else:
        batches = train_batches(dataset, size, start, seed, shard=place.shard, stop=stop)
    if settings.steps_per_dispatch == 1:
        return to_device(batches, place.put_batch)
    groups = _stacked(batches, settings.steps_per_dispatch)
    return to_device(groups, _scanned(place.put_batch))


def _indices(count, size, seed, shard, start, stop):
    for step in range(start, stop):
        every = batch_indices(count, size, step, seed).astype(np.int32)
        yield {"index": np.split(every, shard[1])[shard[0]]}


def _stacked(batches: Iterator[dict[str, np.ndarray]], together: int):
    try:
        group = []
        for batch in batches:
            group.append(batch)
            if len(group) == together:
                yield {name: np.stack([one[name] for one in group]) for name in batch}
                group = []
        if group:
            yield {name: np.stack([one[name] for one in group]) for name in group[0]}
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()


def _scanned(put: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda batches: put(batches, scanned=True)
