"""Streams data sets that do not fit into memory: threads decode records in the steps' order."""

import os
from typing import Any, NamedTuple

import jax
import numpy as np

from bitjax.data.examples import Batch
from bitjax.data.fingerprint import image_identity
from bitjax.data.images import WORDS, centre_crop, random_resized_crop
from bitjax.data.records import Records, Shape, exact
from bitjax.data.records import example as read_example

_CROP_SEED = 0xC209  # keeps the words of crops apart from those of the epochs' orders


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

    @property
    def task(self) -> str:
        """'classification': a label is a class."""
        return "classification"

    @property
    def fixed(self) -> bool:
        """False: examples are read because no memory holds all of them."""
        return False

    @property
    def about(self) -> dict[str, Any]:
        """What normalises the pixels."""
        return {"mean": list(self.mean), "std": list(self.std), "max_value": self.max_value}

    def specs(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a batch of `count` examples."""
        image = jax.ShapeDtypeStruct((count, *self.image_shape), np.uint8)
        return {"image": image, "label": jax.ShapeDtypeStruct((count,), np.int32)}

    def train_examples(
        self, indices: np.ndarray, *, seed: int, positions: np.ndarray, augment: bool
    ) -> Batch:
        """The examples of some indices, read and cropped; a crop follows from seed and position."""
        if not (augment and self.random_crop):
            return self._batch([_plain(self, self.train, int(index)) for index in indices])
        return self._batch(
            [
                read_example(
                    self.train,
                    int(index),
                    self.num_classes,
                    random_resized_crop,
                    crop_words(seed, int(position)),
                    *self.image_shape,
                )
                for index, position in zip(indices, positions, strict=True)
            ]
        )

    def eval_examples(self, indices: np.ndarray) -> Batch:
        """The evaluation examples of some indices, read and cropped in their centre."""
        return self._batch([_plain(self, self.evaluation, int(index)) for index in indices])

    def eval_sample(self, count: int) -> Batch:
        """The first `count` evaluation examples."""
        return self.eval_examples(np.arange(min(count, self.num_eval)))

    def first(self, train: int | None, evaluation: int | None) -> "StreamedDataset":
        """The data with at most so many training and evaluation examples, the first ones."""
        return self._replace(
            train=self.train.subset(slice(train)),
            evaluation=self.evaluation.subset(slice(evaluation)),
        )

    def identity(self) -> dict[str, Any]:
        """Its form, the labels that are known, and its files."""
        labels = (self.train.labels, self.evaluation.labels)
        return image_identity(self.image_shape, self.num_classes, labels, self.origin)

    def _batch(self, examples: list[tuple[np.ndarray, int]]) -> Batch:
        images = np.zeros((len(examples), *self.image_shape), np.uint8)
        for place, (image, _) in enumerate(examples):
            images[place] = image
        return {"image": images, "label": np.array([label for _, label in examples], np.int32)}


def crop_words(seed: int, position: int) -> np.ndarray:
    """The random words of the crop and flip at one position of the endless stream of examples."""
    key = np.array([seed, position], np.uint64)
    counter = np.array([0, 0, 0, _CROP_SEED], np.uint64)  # the orders begin at counter 0
    return np.random.Philox(key=key, counter=counter).random_raw(WORDS)


def _plain(dataset: StreamedDataset, records: Records, position: int) -> tuple[np.ndarray, int]:
    """One example as evaluation sees it."""
    classes, shape = dataset.num_classes, dataset.image_shape
    if dataset.shorter:
        return read_example(records, position, classes, centre_crop, dataset.shorter, *shape)
    return read_example(records, position, classes, exact, shape)
