"""Encoded images that are read one by one: what folders and TFDS sets have in common."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from bitjax.data.cache import cached
from bitjax.data.images import open_image, pixels

Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)  # a NamedTuple has a length of its own
class Records:
    """Some of the examples of one split.

    Attributes:
      split: The split's name.
      read: From a record's number to (the encoded image, its class); threads may call it.
      where: From a record's number to what an error calls it.
      indices: [N] int64, the numbers of the records that are meant, in order.
      labels: [N] int32, their classes where those are known without reading; or None.
      digest: Changes when the split's files do; '' where nobody can tell.
    """

    split: str
    read: Callable[[int], tuple[bytes, int]]
    where: Callable[[int], str]
    indices: np.ndarray
    labels: np.ndarray | None
    digest: str

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, chosen: np.ndarray | slice) -> "Records":
        """Those of the examples that a mask, a slice or an array of positions selects."""
        labels = None if self.labels is None else self.labels[chosen]
        return dataclasses.replace(self, indices=self.indices[chosen], labels=labels)


class Source(NamedTuple):
    """A data set whose images are encoded, before it is known where they will be decoded.

    Attributes:
      name: What a config calls it.
      splits: The examples by split: 'train', and 'validation', 'test' or both.
      num_classes: Number of classes.
      shape: (H, W, C) of every image; None where they differ or nobody has looked.
      channels: 1, 3 or 4.
    """

    name: str
    splits: Mapping[str, Records]
    num_classes: int
    shape: Shape | None
    channels: int


def example(
    records: Records,
    position: int,
    num_classes: int,
    convert: Callable[..., np.ndarray],
    *arguments: object,
) -> tuple[np.ndarray, int]:
    """One example, decoded.

    Args:
      records: The examples.
      position: In [0, len(records)).
      num_classes: Number of classes.
      convert: From the opened image and `arguments` to pixels.
      *arguments: Of `convert`.

    Returns:
      Its pixels and its class.

    Raises:
      ValueError: If the record cannot be read or decoded, or its class is out of range.
    """
    number = int(records.indices[position])
    try:
        content, label = records.read(number)
        image = convert(open_image(content), *arguments)
    except Exception as error:  # Of any kind: decoders of damaged files raise what they like.
        raise ValueError(
            f"{records.where(number)} is damaged ({type(error).__name__}: {error}); "
            "prepare or copy it again."
        ) from error
    if not 0 <= label < num_classes:
        raise ValueError(
            f"{records.where(number)} has the class {label}, expected [0, {num_classes}); "
            "choose a split with labels."
        )
    return image, label


def decode_all(records: Records, num_classes: int, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """All the examples as arrays; decoded pixels are kept in the user's cache.

    Args:
      records: The examples, a whole split.
      num_classes: Number of classes.
      shape: (H, W, C) of every image.

    Returns:
      Images, uint8 [N, H, W, C], and classes, int32 [N].

    Raises:
      ValueError: If a record is damaged, of another shape, or without a class.
    """
    wanted = (len(records), *shape)
    if not records.digest:
        return _decode_all(records, num_classes, shape)
    made: list[tuple[np.ndarray, np.ndarray]] = []

    def make(which: int) -> np.ndarray:
        if not made:
            made.append(_decode_all(records, num_classes, shape))
        return made[0][which]

    images = cached(f"images-{records.digest}", lambda: make(0))
    labels = cached(f"labels-{records.digest}", lambda: make(1))
    good = images.shape == wanted and images.dtype == np.uint8
    if not (good and labels.shape == wanted[:1] and labels.dtype == np.int32):
        images, labels = make(0), make(1)  # Somebody else's cache entry.
    return images, labels


def _decode_all(records: Records, num_classes: int, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((len(records), *shape), np.uint8)
    labels = np.empty(len(records), np.int32)

    def fill(start: int) -> None:
        for i in range(start, min(start + 256, len(records))):
            images[i], labels[i] = example(records, i, num_classes, exact, shape)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(fill, range(0, len(records), 256)):
            pass
    return images, labels


def exact(image, shape: Shape) -> np.ndarray:
    """The pixels of an image that has its shape already; a ValueError where it has not."""
    found = (image.height, image.width)
    if found != shape[:2]:
        raise ValueError(f"an image of {found[0]}x{found[1]}, expected {shape[0]}x{shape[1]}")
    return pixels(image, shape[2])


def digest_of(*facts: object) -> str:
    """A short hash of what identifies a split's content.

    Example:
      >>> digest_of("cifar10", 3) == digest_of("cifar10", 3)
      True
    """
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
