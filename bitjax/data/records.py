"""Reads encoded images one by one, from a folder or a TFDS set."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from bitjax.data.cache import cached
from bitjax.data.images import open_image, pixels
from bitjax.files.reading import FileError, reason_of

Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)  # a NamedTuple has a length of its own
class Records:
    """Some of the examples of one split."""

    split: str
    read: Callable[[int], tuple[bytes, int]]  # a record's image and class; threads may call it
    where: Callable[[int], str]  # what an error calls a record
    indices: np.ndarray  # [N] int64, the records that are meant, in order
    labels: np.ndarray | None  # [N] int32, if they are known without reading
    digest: str  # changes when the split's files do; '' where nobody can tell
    files: str = ""  # the same for the same files elsewhere; '' where nobody can tell

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, chosen: np.ndarray | slice) -> "Records":
        """The examples that a mask, a slice or an array of positions selects."""
        labels = None if self.labels is None else self.labels[chosen]
        return dataclasses.replace(self, indices=self.indices[chosen], labels=labels)


class Source(NamedTuple):
    """A data set whose images are encoded, before it is known where they will be decoded."""

    name: str
    splits: Mapping[str, Records]  # 'train', and 'validation', 'test' or both
    num_classes: int
    shape: Shape | None  # of every image; None where they differ or nobody has looked
    channels: int


def read_record(records: Records, number: int) -> tuple[bytes, int]:
    """A record's image and class; a ValueError if it cannot be read."""
    try:
        return records.read(number)
    except FileError:  # It says which file.
        raise
    except Exception as error:  # Of any kind: readers of damaged files raise what they like.
        raise _damaged(records, number, error) from error


def _damaged(records: Records, number: int, error: Exception) -> ValueError:
    return ValueError(
        f"{records.where(number)} is damaged ({reason_of(error)}); prepare or copy it again."
    )


def example(
    records: Records,
    position: int,
    num_classes: int,
    convert: Callable[..., np.ndarray],
    *arguments: object,
) -> tuple[np.ndarray, int]:
    """The pixels and the class of one example; a ValueError if it cannot be read or decoded."""
    number = int(records.indices[position])
    content, label = read_record(records, number)
    try:
        image = convert(open_image(content), *arguments)
    except Exception as error:  # Of any kind: decoders of damaged files raise what they like.
        raise _damaged(records, number, error) from error
    if not 0 <= label < num_classes:
        raise ValueError(
            f"{records.where(number)} has the class {label}, expected [0, {num_classes}); "
            "choose a split with labels."
        )
    return image, label


def decode_all(records: Records, num_classes: int, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 [N, H, W, C], and classes, int32 [N], of a whole split; cached."""
    decode = functools.cache(lambda: _decode_all(records, num_classes, shape))
    if not records.digest:
        return decode()
    images = cached(f"images-{records.digest}", lambda: decode()[0])
    labels = cached(f"labels-{records.digest}", lambda: decode()[1])
    good = images.shape == (len(records), *shape) and images.dtype == np.uint8
    if good and labels.shape == (len(records),) and labels.dtype == np.int32:
        return images, labels
    return decode()  # Somebody else's cache entry.


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
    """The pixels of an image that has `shape` already; a ValueError if it has not."""
    found = (image.height, image.width)
    if found != shape[:2]:
        raise ValueError(f"an image of {found[0]}x{found[1]}, expected {shape[0]}x{shape[1]}")
    return pixels(image, shape[2])


def origin_of(*splits: Records) -> str:
    """What identifies the files of some splits, wherever they lie."""
    return digest_of([each.files for each in splits]) if all(e.files for e in splits) else ""


def digest_of(*facts: object) -> str:
    """A short hash of what identifies a split's content."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
