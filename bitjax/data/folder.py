"""Opens a user's own images: PATH/{train,test}/CLASS/*.jpg, or PATH/CLASS/*.jpg."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bitjax.data.cache import cached
from bitjax.data.images import check_decoder, open_image
from bitjax.data.records import Records, Shape, Source, digest_of

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_EVALUATION = {"validation": ("validation", "val"), "test": ("test",)}
_FORM = "expected PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, or PATH/CLASS/*.jpg"


def open_folder(name: str, path: Path) -> Source:
    """The images of a folder that holds a folder for each class, classes in alphabetical order."""
    if not path.is_dir():
        raise FileNotFoundError(f"{name}: {path.absolute()} is not a folder; {_FORM}.")
    check_decoder(name)
    train = path / "train"
    one_level = not train.is_dir()
    if one_level and any((path / each).is_dir() for each in ("val", "validation", "test")):
        raise FileNotFoundError(f"{name}: {train} is missing; {_FORM}.")
    splits = {"train": path if one_level else train}
    for split, names in _EVALUATION.items():
        there = [path / each for each in names if (path / each).is_dir()]
        if len(there) > 1:
            raise ValueError(f"{name}: {' and '.join(map(str, there))} are both there; keep one.")
        if there and not one_level:
            splits[split] = there[0]
    classes = _folders(splits["train"])
    if not classes:
        raise ValueError(f"{name}: {splits['train']} holds no folder; {_FORM}.")
    for folder in splits.values():
        found = _folders(folder)
        if found != classes:
            extra, missing = sorted({*found} - {*classes}), sorted({*classes} - {*found})
            raise ValueError(
                f"{name}: {folder} and {splits['train']} must have the same folders, one a "
                f"class; {folder.name} lacks {missing} and has {extra} besides."
            )
    records = {split: _records(folder, classes, split) for split, folder in splits.items()}
    for label, each in enumerate(classes):
        labels = records["train"].labels
        if labels is not None and not (labels == label).any():
            raise ValueError(
                f"{name}: {splits['train'] / each} holds no image ({', '.join(SUFFIXES)})."
            )
    shape, channels = _shape(records)
    return Source(name, records, len(classes), shape, channels)


def _folders(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _records(folder: Path, classes: list[str], split: str) -> Records:
    files, labels = [], []
    for label, each in enumerate(classes):
        inside = (f for f in (folder / each).iterdir() if not f.name.startswith("."))
        found = sorted(f for f in inside if f.suffix.lower() in SUFFIXES)
        files += found
        labels += [label] * len(found)
    facts = [(f.relative_to(folder).as_posix(), f.stat()) for f in files]
    sizes = [(name, stat.st_size) for name, stat in facts]
    return Records(
        split,
        lambda number: (files[number].read_bytes(), labels[number]),
        lambda number: str(files[number]),
        np.arange(len(files)),
        np.asarray(labels, np.int32),
        # The classes are in both: with one more, a split that has no image of it has other labels.
        digest_of(str(folder.absolute()), classes, sizes, [stat.st_mtime_ns for _, stat in facts]),
        digest_of(classes, sizes),
    )


def _shape(records: Mapping[str, Records]) -> tuple[Shape | None, int]:
    """The one shape of all images, or None; and the channels: 3, or 1 if the first one is grey."""
    digest = digest_of(*(each.digest for each in records.values()))
    # Every file is opened, 0.1 ms each, so the answer is kept.
    found = cached(f"shape-{digest}", lambda: np.asarray(_look(records), np.int64)).tolist()
    shape = (found[0], found[1], found[2]) if found[0] else None
    return shape, found[2]


def _look(records: Mapping[str, Records]) -> Shape:
    """The one shape of all images; height and width 0 where they differ."""
    shape: Shape = (0, 0, 3)
    for each in records.values():
        for number in each.indices.tolist():
            try:
                image = open_image(each.read(number)[0])
            except Exception as error:  # Of any kind: damaged headers raise what they like.
                raise ValueError(
                    f"{each.where(number)} is no image ({type(error).__name__}: {error}); "
                    "copy it again or remove it."
                ) from error
            here = (image.height, image.width)
            if shape[0] == 0:
                shape = (*here, 1 if image.mode in ("1", "L") else 3)
            elif here != shape[:2]:
                return (0, 0, shape[2])
    return shape
