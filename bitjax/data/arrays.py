"""Images and labels as arrays in memory."""

from typing import Any, NamedTuple

import jax
import numpy as np

from bitjax.data.examples import Batch
from bitjax.data.fingerprint import image_identity, sample


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

    @property
    def task(self) -> str:
        """'classification': a label is a class."""
        return "classification"

    @property
    def threads(self) -> int:
        """0: arrays give a batch at once."""
        return 0

    @property
    def fixed(self) -> bool:
        """True: what is drawn anew in every epoch is drawn on the device."""
        return True

    @property
    def about(self) -> dict[str, Any]:
        """What normalises the pixels."""
        return {"mean": list(self.mean), "std": list(self.std), "max_value": self.max_value}

    def specs(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a batch of `count` examples."""
        label = jax.ShapeDtypeStruct((count, *self.labels.shape[1:]), self.labels.dtype)
        return {
            "image": jax.ShapeDtypeStruct((count, *self.image_shape), self.images.dtype),
            "label": label,
        }

    def train_examples(
        self, indices: np.ndarray, *, seed: int, positions: np.ndarray, augment: bool
    ) -> Batch:
        """Images and labels by index; augmented later, on the device."""
        del seed, positions, augment
        return {"image": self.images[indices], "label": self.labels[indices]}

    def eval_examples(self, indices: np.ndarray) -> Batch:
        """Evaluation images and labels by index."""
        return {"image": self.eval_images[indices], "label": self.eval_labels[indices]}

    def eval_sample(self, count: int) -> Batch:
        """The first `count` evaluation examples."""
        return {"image": self.eval_images[:count], "label": self.eval_labels[:count]}

    def first(self, train: int | None, evaluation: int | None) -> "Dataset":
        """The data with at most so many training and evaluation examples, the first ones."""
        return self._replace(
            images=self.images[:train],
            labels=self.labels[:train],
            eval_images=self.eval_images[:evaluation],
            eval_labels=self.eval_labels[:evaluation],
        )

    def identity(self) -> dict[str, Any]:
        """Its form, its labels and its pixels, or the files that they are from."""
        content = self.origin or sample(self.images, self.eval_images)
        labels = (self.labels, self.eval_labels)
        return image_identity(self.image_shape, self.num_classes, labels, content)
