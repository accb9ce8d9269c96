"""Opens a user's own images: PATH/{train,test}/CLASS/*.jpg, or PATH/CLASS/*.jpg."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bitjax.data.cache import cached
from bitjax.data.images import check_decoder, open_image
from bitjax.data.records import Records, Shape, Source, digest_of, read_record
from bitjax.files.reading import find_file, printable, read_bytes, reading, reason_of

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_EVALUATION = {"validation": ("validation", "val"), "test": ("test",)}
_AGAIN = "copy it again or remove it"
_FORM = "expected PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, or PATH/CLASS/*.jpg"


def open_folder(name: str, path: Path) -> Source:
    """The images of a folder that holds a folder for each class, classes in alphabetical order."""
    name = printable(name)
    if not os.path.isdir(path):
        raise FileNotFoundError(f"{name}: {printable(path.absolute())} is not a folder; {_FORM}.")
    check_decoder(name)
    splits = _splits(name, path)
    classes = _folders(splits["train"])
    if not classes:
        raise ValueError(f"{name}: {printable(splits['train'])} holds no folder; {_FORM}.")
    for folder in splits.values():
        found = _folders(folder)
        if found != classes:
            extra, missing = sorted({*found} - {*classes}), sorted({*classes} - {*found})
            raise ValueError(
                f"{name}: {printable(folder)} and {printable(splits['train'])} must have the "
                f"same folders, one a class; {folder.name} lacks {missing} and has {extra} besides."
            )
    records = {split: _records(folder, classes, split) for split, folder in splits.items()}
    for label, each in enumerate(classes):
        labels = records["train"].labels
        if labels is not None and not (labels == label).any():
            raise ValueError(
                f"{name}: {printable(splits['train'] / each)} holds no image "
                f"({', '.join(SUFFIXES)}); put some into it or remove it."
            )
    shape, channels = _shape(records)
    return Source(name, records, len(classes), shape, channels)


def _splits(name: str, path: Path) -> dict[str, Path]:
    """The folder of each split."""
    there = [each for each in ("train", "val", "validation", "test") if os.path.isdir(path / each)]
    if not there:
        return {"train": path}
    if "train" not in there:
        raise FileNotFoundError(f"{name}: {printable(path / 'train')} is missing; {_FORM}.")
    splits = {"train": path / "train"}
    for split, names in _EVALUATION.items():
        found = [path / each for each in names if each in there]
        if len(found) > 1:
            both = " and ".join(map(printable, found))
            raise ValueError(f"{name}: {both} are both there; keep one.")
        if found:
            splits[split] = found[0]
    return splits


def _folders(folder: Path) -> list[str]:
    found = []
    for each in _inside(folder):
        with reading(each, "make it a folder of images, or remove it"):
            if stat.S_ISDIR(os.stat(each).st_mode):  # A link to nowhere was a class.
                found.append(each.name)
    return found


def _inside(folder: Path) -> list[Path]:
    """What lies in a folder and is not hidden, by name."""
    with reading(folder, _FORM):
        return sorted(each for each in folder.iterdir() if not each.name.startswith("."))


def _records(folder: Path, classes: list[str], split: str) -> Records:
    files, labels = [], []
    for label, each in enumerate(classes):
        found = [f for f in _inside(folder / each) if f.suffix.lower() in SUFFIXES]
        files += found
        labels += [label] * len(found)
    facts = [(f.relative_to(folder).as_posix(), find_file(f, _AGAIN)) for f in files]
    sizes = [(name, found.st_size) for name, found in facts]
    return Records(
        split,
        lambda number: (read_bytes(files[number], _AGAIN), labels[number]),
        lambda number: printable(files[number]),
        np.arange(len(files)),
        np.asarray(labels, np.int32),
        # The classes are in both: with one more, a split that has no image of it has other labels.
        digest_of(
            str(folder.absolute()), classes, sizes, [found.st_mtime_ns for _, found in facts]
        ),
        digest_of(classes, sizes),
    )


def _shape(records: Mapping[str, Records]) -> tuple[Shape | None, int]:
    """The one shape of all images, or None; and the channels: 3, or 1 if every one is grey."""
    digest = digest_of(*(each.digest for each in records.values()))
    # Every file is opened, 0.1 ms each, so the answer is kept.
    found = cached(f"form-{digest}", lambda: np.asarray(_look(records), np.int64))
    if found.shape != (3,) or found.dtype != np.int64:  # Somebody else's cache entry.
        found = np.asarray(_look(records), np.int64)
    height, width, channels = found.tolist()
    return (height, width, channels) if height else None, channels


def _look(records: Mapping[str, Records]) -> Shape:
    """The one shape of all images; height and width 0 where they differ."""
    sizes, channels = set(), 1
    for each in records.values():
        for number in each.indices.tolist():
            content, _ = read_record(each, number)
            try:
                image = open_image(content)
            except Exception as error:  # Of any kind: damaged headers raise what they like.
                raise ValueError(
                    f"{each.where(number)} is no image ({reason_of(error)}); {_AGAIN}."
                ) from error
            sizes.add((image.height, image.width))
            if image.mode not in ("1", "L"):
                channels = 3
            if len(sizes) > 1 and channels == 3:  # What is left can change nothing.
                return (0, 0, channels)
    return (*sizes.pop(), channels) if len(sizes) == 1 else (0, 0, channels)
