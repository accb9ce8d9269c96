"""Streams data sets that do not fit into memory: threads decode records in the steps' order."""

import os
from collections.abc import Generator
from typing import NamedTuple

import numpy as np

from bitjax.data.images import WORDS, centre_crop, random_resized_crop
from bitjax.data.order import epoch_order
from bitjax.data.records import Records, Shape, exact
from bitjax.data.records import example as read_example
from bitjax.extras import extra

Batch = dict[str, np.ndarray]

_CROP_SEED = 0xC209  # keeps the words of crops apart from those of the epochs' orders
_ENDLESS = 2**62  # examples; a range must have an end


class StreamedDataset(NamedTuple):
    """Training and evaluation examples that are read and decoded when a batch needs them.

    It has the attributes of `Dataset` that are not arrays, and goes where a `Dataset` goes.

    Attributes:
      name: The data set's name.
      train: The training examples.
      evaluation: The evaluation examples.
      image_shape: (H, W, C) of the images in a batch.
      shorter: Length of an evaluation image's shorter side before it is cropped; 0 if images have
        the shape `image_shape` already.
      random_crop: Whether training images are random-resized crops, mirrored half the time. If not,
        they are prepared as evaluation images are.
      eval_split: Name of the evaluation split: 'test', 'validation', ...
      num_classes: Number of classes.
      mean: Mean of value / max_value, one number per channel.
      std: Standard deviation of value / max_value, one number per channel.
      max_value: The largest value a pixel can take.
      threads: How many threads decode. The batches do not depend on it.
      origin: What identifies the files that the examples are read from; '' where nothing does.
    """

    name: str
    train: Records
    evaluation: Records
    image_shape: Shape
    shorter: int
    random_crop: bool
    eval_split: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_value: float = 255.0
    threads: int = min(32, 2 * (os.cpu_count() or 1))  # more only wait for Python's lock
    origin: str = ""

    @property
    def num_train(self) -> int:
        """Number of training examples."""
        return len(self.train)

    @property
    def num_eval(self) -> int:
        """Number of evaluation examples."""
        return len(self.evaluation)

    def eval_sample(self, count: int) -> np.ndarray:
        """The first `count` evaluation images, uint8 [count, H, W, C]."""
        images = [_plain(self, self.evaluation, i)[0] for i in range(min(count, self.num_eval))]
        return np.stack(images) if images else np.zeros((0, *self.image_shape), np.uint8)


def crop_words(seed: int, position: int) -> np.ndarray:
    """The random words of the crop and flip at one position of the endless stream of examples."""
    key = np.array([seed, position], np.uint64)
    counter = np.array([0, 0, 0, _CROP_SEED], np.uint64)  # the orders begin at counter 0
    return np.random.Philox(key=key, counter=counter).random_raw(WORDS)


def train_stream(
    dataset: StreamedDataset,
    batch_size: int,
    start: int,
    seed: int,
    part: slice,
    stop: int | None,
    augment: bool,
) -> Generator[Batch, None, None]:
    """This host's `part` of the training batches, as `bitjax.data.train_batches` says."""
    size = part.stop - part.start

    def read(i: int) -> Batch:
        step, place = divmod(i, size)
        position = step * batch_size + part.start + place
        epoch, offset = divmod(position, dataset.num_train)
        chosen = int(epoch_order(dataset.num_train, seed, epoch)[offset])
        if augment and dataset.random_crop:
            image, label = read_example(
                dataset.train,
                chosen,
                dataset.num_classes,
                random_resized_crop,
                crop_words(seed, position),
                *dataset.image_shape,
            )
        else:
            image, label = _plain(dataset, dataset.train, chosen)
        return {"image": image, "label": np.asarray(label, np.int32)}

    end = _ENDLESS if stop is None else stop * size
    return _batches(read, start * size, end, size, dataset.threads)


def eval_stream(
    dataset: StreamedDataset, batch_size: int, part: slice
) -> Generator[Batch, None, None]:
    """This host's `part` of the evaluation batches, as `bitjax.data.eval_batches` says."""
    size = part.stop - part.start

    def read(i: int) -> Batch:
        step, place = divmod(i, size)
        position = step * batch_size + part.start + place
        there = position < dataset.num_eval
        if there:
            image, label = _plain(dataset, dataset.evaluation, position)
        else:
            image, label = np.zeros(dataset.image_shape, np.uint8), 0
        return {
            "image": image,
            "label": np.asarray(label, np.int32),
            "mask": np.asarray(there, np.float32),
        }

    steps = -(-dataset.num_eval // batch_size)
    return _batches(read, 0, steps * size, size, dataset.threads)


def _plain(dataset: StreamedDataset, records: Records, position: int) -> tuple[np.ndarray, int]:
    """One example as evaluation sees it."""
    classes, shape = dataset.num_classes, dataset.image_shape
    if dataset.shorter:
        return read_example(records, position, classes, centre_crop, dataset.shorter, *shape)
    return read_example(records, position, classes, exact, shape)


def _batches(read, start: int, stop: int, size: int, threads: int) -> Generator[Batch, None, None]:
    with extra("data", "A streamed data set"):
        import grain  # 2 s to import: only who streams pays.

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 2 * size))
    examples = grain.MapDataset.range(start, stop).map(read)
    iterator = iter(examples.to_iter_dataset(options).batch(size))
    try:
        yield from iterator
    finally:
        iterator.close()
