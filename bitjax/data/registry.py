"""Loads a data set by its name, cut into training and evaluation examples."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bitjax.checks import NONE, SWITCH, TEXT, checked, choice, either, instance, integer, several
from bitjax.data.arrays import Dataset
from bitjax.data.augment import AUGMENTATIONS
from bitjax.data.check import check_dataset
from bitjax.data.decoding import (
    MEMORY_LIMIT,
    RANDOM_CROP,
    evaluation_split,
    fits_memory,
    in_memory,
    streamed,
)
from bitjax.data.digits import digits
from bitjax.data.files import cifar10, fashion_mnist
from bitjax.data.folder import open_folder
from bitjax.data.npz import npz
from bitjax.data.records import Source
from bitjax.data.split import VALIDATION_SEED, held_out
from bitjax.data.stream import StreamedDataset
from bitjax.data.tfds import open_tfds

SOURCES: Mapping[str, Callable[..., Dataset]] = {
    "digits": digits,
    "cifar10": cifar10,
    "fashion_mnist": fashion_mnist,
}
KINDS = ("tfds", "folder", "npz")  # tfds:NAME, folder:PATH, npz:PATH


def is_known(name: str) -> bool:
    """Whether `load` knows a data set of this name or this kind.

    Example:
      >>> is_known("digits"), is_known("tfds:cifar10"), is_known("tfds:"), is_known("mnist")
      (True, True, False, False)
    """
    kind, _, rest = name.partition(":")
    return name in SOURCES or (rest != "" and kind in KINDS)


@checked(
    name=TEXT,
    root=either(NONE, instance(str, os.PathLike)),
    validation=integer(0),
    eval_split=choice("test", "validation"),
    limit=either(NONE, integer(1)),
    train=SWITCH,
    image_size=integer(0, 2**15),
    augmentation=choice(*AUGMENTATIONS),
    splits=several(TEXT),
    memory_limit=integer(0, 2**62),
)
def load(
    name: str,
    *,
    root: str | Path | None = None,
    validation: int = 0,
    eval_split: str = "test",
    limit: int | None = None,
    train: bool = True,
    image_size: int = 0,
    augmentation: str = "none",
    splits: Sequence[str] = (),
    memory_limit: int = MEMORY_LIMIT,
) -> Dataset | StreamedDataset:
    """Load a data set.

    The same `validation` always holds out the same examples, equally many of every class. (The
    classes of a streamed TFDS set are unknown before all of it is read: its choice is fixed too,
    but not balanced.) Examples that are held out are never among the training images, whichever
    split is evaluated. So a number tuned on 'validation' and reported on 'test' comes from one
    training set.

    A `tfds:` or `folder:` set whose images have one shape and fit into memory becomes a `Dataset`
    with its own mean and deviation; any other is streamed, and normalised with ImageNet's.

    Args:
      name: 'digits' (needs no files), 'cifar10' or 'fashion_mnist' (local files); 'tfds:NAME',
        an image classification of TensorFlow Datasets, prepared; 'folder:PATH', a folder of
        images for each class; 'npz:PATH', arrays.
      root: The folder that contains the data set's folder. None stands for `$BITJAX_DATA`, for a
        `tfds:` set `$TFDS_DATA_DIR` or `~/tensorflow_datasets`, for a PATH the working folder.
      validation: How many training examples to hold out.
      eval_split: The split to evaluate. 'test' is the set's test split, or the validation split of
        a set that has no (labelled) test split. 'validation' is what `validation` holds out, or
        the set's own if that is 0.
      limit: Keep at most this many training and this many evaluation examples, the first ones;
        for trials. None: all.
      train: False leaves the training images empty, and reads fewer files.
      image_size: Height and width of the images of a `tfds:` or `folder:` set in a batch. 0 keeps
        the set's own shape, or takes 224 where images differ in theirs.
      augmentation: Name of the augmentation. 'random_resized_crop' cuts random parts out of the
        training images of a `tfds:` or `folder:` set while it decodes them; others happen on the
        device and change nothing here.
      splits: The training and the evaluation split of a `tfds:` set in TFDS's language.
      memory_limit: Bytes of pixels above which a `tfds:` or `folder:` set is streamed.

    Returns:
      The data. The mean and the standard deviation are those of the whole training set,
      whatever `validation` and `limit`.

    Raises:
      FileNotFoundError: If a file is missing, or a `tfds:` set is not prepared.
      ValueError: If an argument is out of its range, or a file is damaged.

    Example:
      >>> data = load("digits", validation=100, eval_split="validation")
      >>> data.num_train, data.num_eval
      (1337, 100)
    """
    kind = name.partition(":")[0]
    if not is_known(name):
        raise ValueError(
            f"`name` must be one of {', '.join(map(repr, SOURCES))}, got {name!r}; or 'tfds:NAME', "
            "'folder:PATH' or 'npz:PATH'."
        )
    if splits and kind != "tfds":
        raise ValueError(
            f"`splits` is for tfds: sets, got {tuple(splits)} for {name}; leave it empty."
        )
    if kind not in ("tfds", "folder"):
        _check_arrays(name, image_size, augmentation)
        dataset = _arrays(name, root, train, validation, eval_split)
    else:
        source = _open(name, root, splits)
        evaluation = evaluation_split(name, source.splits, validation, eval_split)
        _check_validation(name, validation, len(source.splits["train"]))
        if fits_memory(source, evaluation, image_size, augmentation, memory_limit):
            dataset = in_memory(source, evaluation)
        else:
            stream = streamed(source, evaluation, validation, image_size, augmentation)
            stream = stream._replace(
                train=stream.train.subset(slice(limit if train else 0)),
                evaluation=stream.evaluation.subset(slice(limit)),
            )
            check_dataset(stream)
            return stream
    if validation and len(dataset.labels):
        _check_validation(name, validation, len(dataset.labels))
        dataset = _hold_out(dataset, validation, eval_split)
    kept = slice(limit)
    trained = kept if train else slice(0)
    dataset = dataset._replace(
        images=dataset.images[trained],
        labels=dataset.labels[trained],
        eval_images=dataset.eval_images[kept],
        eval_labels=dataset.eval_labels[kept],
    )
    check_dataset(dataset)
    return dataset


def _check_arrays(name: str, image_size: int, augmentation: str) -> None:
    """Refuses what only encoded images can do."""
    if image_size:
        raise ValueError(
            f"`image_size` is for tfds: and folder: sets, got {image_size} for {name}; leave it 0."
        )
    if augmentation == RANDOM_CROP:
        raise ValueError(
            f"`augmentation` {RANDOM_CROP!r} is for tfds: and folder: sets, got it for {name}; "
            "use 'crop_flip'."
        )


def _check_validation(name: str, validation: int, count: int) -> None:
    if validation >= max(count, 1):
        raise ValueError(
            f"`validation` must be less than the {count} training examples of {name}, "
            f"got {validation}."
        )


def _arrays(
    name: str, root: str | Path | None, train: bool, validation: int, eval_split: str
) -> Dataset:
    """A data set that is arrays from the start."""
    if name in SOURCES:
        evaluation_split(name, ("train", "test"), validation, eval_split)
        needed = {"train": train or eval_split == "validation", "test": eval_split == "test"}
        return SOURCES[name](root, splits=[split for split, is_ in needed.items() if is_])
    dataset = npz(name, _path(name, root))
    there = ("train", "test") if dataset.num_eval else ("train",)
    evaluation_split(name, there, validation, eval_split)
    return dataset


def _open(name: str, root: str | Path | None, splits: Sequence[str]) -> Source:
    if name.startswith("tfds:"):
        return open_tfds(name.removeprefix("tfds:"), root, splits=splits)
    return open_folder(name, _path(name, root))


def _path(name: str, root: str | Path | None) -> Path:
    # Not Path's, which raises a RuntimeError where it does not know a user.
    return Path(root or "", os.path.expanduser(name.partition(":")[2]))


def _hold_out(dataset: Dataset, validation: int, eval_split: str) -> Dataset:
    mask = held_out(dataset.labels, validation, dataset.num_classes, VALIDATION_SEED)
    if eval_split == "validation":
        dataset = dataset._replace(
            eval_images=dataset.images[mask],
            eval_labels=dataset.labels[mask],
            eval_split="validation",
        )
    return dataset._replace(images=dataset.images[~mask], labels=dataset.labels[~mask])
