"""Loads a data set by its name, cut into training and evaluation examples."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
from bitjax.data.imagenet_sample import imagenet_sample
from bitjax.data.npz import npz
from bitjax.data.split import VALIDATION_SEED, held_out
from bitjax.data.stream import StreamedDataset
from bitjax.data.tfds import open_tfds
from bitjax.data.token_files import MARKER, load_tokens
from bitjax.data.token_streams import FORMS
from bitjax.data.tokens import TokenDataset

SOURCES: Mapping[str, Callable[..., Dataset]] = {
    "digits": digits,
    "cifar10": cifar10,
    "fashion_mnist": fashion_mnist,
    "imagenet_sample": imagenet_sample,
}
KINDS = ("tfds", "folder", "npz", "tokens", "text")  # tfds:NAME, the others with a path
_ENCODED, _TEXTS = ("tfds", "folder"), ("tokens", "text")


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
    eval_limit=integer(0),
    train=SWITCH,
    image_size=integer(0, 2**15),
    augmentation=choice(*AUGMENTATIONS),
    splits=several(TEXT),
    memory_limit=integer(0, 2**62),
    context=integer(0, 2**24),
    train_context=integer(0, 2**24),
    marker=integer(-1),
    form=choice(*FORMS),
    train_from=either(NONE, instance(str, os.PathLike)),
)
def load(
    name: str,
    *,
    root: str | Path | None = None,
    validation: int = 0,
    eval_split: str = "test",
    limit: int | None = None,
    eval_limit: int = 0,
    train: bool = True,
    image_size: int = 0,
    augmentation: str = "none",
    splits: Sequence[str] = (),
    memory_limit: int = MEMORY_LIMIT,
    context: int = 0,
    train_context: int = 0,
    marker: int = MARKER,
    form: str = "",
    train_from: str | os.PathLike | None = None,
) -> Dataset | StreamedDataset | TokenDataset:
    """Load a data set.

    The same `validation` always holds out the same examples, equally many of every class. (The
    classes of a streamed TFDS set are unknown before all of it is read: its choice is fixed too,
    but not balanced.) Examples that are held out are never among the training images, whichever
    split is evaluated. So a number tuned on 'validation' and reported on 'test' comes from one
    training set.

    A `tfds:` or `folder:` set whose images have one shape and fit into memory becomes a `Dataset`
    with its own mean and deviation; any other is streamed, and normalised with ImageNet's.

    Args:
      name: 'digits' (needs no files), 'cifar10', 'fashion_mnist' or 'imagenet_sample' (local
        files); 'tfds:NAME', an image classification of TensorFlow Datasets, prepared;
        'folder:PATH', a folder of images for each class; 'npz:PATH', arrays; 'tokens:PATH', an npz
        file of streams of tokens, 'train' and 'test', or an npy file of one; 'text:PATH', the bytes
        of a file.
      root: The folder that contains the data set's folder. None stands for `$BITJAX_DATA`, for a
        `tfds:` set `$TFDS_DATA_DIR` or `~/tensorflow_datasets`, for a PATH the working folder, and
        `$BITJAX_DATA` for tokens and texts that are not there.
      validation: How many training examples to hold out.
      eval_split: The split to evaluate. 'test' is the set's test split, or the validation split of
        a set that has no (labelled) test split. 'validation' is what `validation` holds out, or
        the set's own if that is 0.
      limit: Keep at most this many training and this many evaluation examples, the first ones;
        for trials. None: all.
      eval_limit: Keep at most this many evaluation examples, the first ones; 0: all.
      train: False leaves the training images empty, and reads fewer files.
      image_size: Height and width of the images of a `tfds:` or `folder:` set in a batch. 0 keeps
        the set's own shape, or takes 224 where images differ in theirs.
      augmentation: Name of the augmentation. 'random_resized_crop' cuts random parts out of the
        training images of a `tfds:` or `folder:` set while it decodes them; others happen on the
        device and change nothing here.
      splits: The training and the evaluation split of a `tfds:` set in TFDS's language.
      memory_limit: Bytes of pixels above which a `tfds:` or `folder:` set is streamed.
      context: Tokens of an example of `tokens:` or `text:`; 0 stands for 512.
      train_context: Tokens of a training example of such a set; 0 stands for `context`.
      marker: The token of a `tokens:` set that begins a document; -1: there is none. The bytes of a
        `text:` have none unless another than 1 is given.
      form: 'documents' or 'windows', see `token_dataset`; '' takes documents where there is a
        marker.
      train_from: A file like that of PATH, and found like it, whose training stream takes the
        place of the set's own: text that a model has drawn itself, say. What is evaluated stays.

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
            "'folder:PATH', 'npz:PATH', 'tokens:PATH' or 'text:PATH'."
        )
    _check_keys(
        name,
        kind,
        image_size,
        augmentation,
        splits,
        (context, train_context, marker, form, train_from),
    )
    split = {"validation": validation, "eval_split": eval_split}
    if kind in _TEXTS:
        dataset = load_tokens(
            name,
            root,
            context=context,
            train_context=train_context,
            marker=marker,
            form=form,
            train_from=train_from,
            **split,
        )
    elif kind in _ENCODED:
        wanted = {"image_size": image_size, "augmentation": augmentation}
        dataset = _decoded(name, root, splits, memory_limit, **wanted, **split)
    else:
        dataset = _arrays(name, root, train, **split)
    dataset = dataset.first(limit if train else 0, min(limit or 2**31, eval_limit or 2**31))
    check_dataset(dataset)
    return dataset


def _check_keys(
    name: str,
    kind: str,
    image_size: int,
    augmentation: str,
    splits: Sequence[str],
    of_tokens: tuple[Any, ...],
) -> None:
    """Refuses keys of another kind of data, which would do nothing."""
    encoded = "tfds: and folder: sets"
    if splits and kind != "tfds":
        raise ValueError(
            f"`splits` is for tfds: sets, got {tuple(splits)} for {name}; leave it empty."
        )
    if image_size and kind not in _ENCODED:
        raise ValueError(f"`image_size` is for {encoded}, got {image_size} for {name}; leave it 0.")
    if kind in _TEXTS and augmentation != "none":
        raise ValueError(
            f"`augmentation` is for images, got {augmentation!r} for {name}; leave it 'none'."
        )
    if augmentation == RANDOM_CROP and kind not in _ENCODED:
        raise ValueError(
            f"`augmentation` {RANDOM_CROP!r} is for {encoded}, got it for {name}; use 'crop_flip'."
        )
    usual = {"context": 0, "train_context": 0, "marker": MARKER, "form": "", "train_from": None}
    for (key, default), given in zip(usual.items(), of_tokens, strict=True):
        if kind not in _TEXTS and given != default:
            raise ValueError(
                f"`{key}` is for tokens: and text: sets, got {given!r} for {name}; leave it "
                f"{default!r}."
            )


def _arrays(
    name: str, root: str | Path | None, train: bool, validation: int, eval_split: str
) -> Dataset:
    """A data set that is arrays from the start."""
    if name in SOURCES:
        evaluation_split(name, ("train", "test"), validation, eval_split)
        needed = {"train": train or eval_split == "validation", "test": eval_split == "test"}
        dataset = SOURCES[name](root, splits=[split for split, is_ in needed.items() if is_])
    else:
        dataset = npz(name, _path(name, root))
        there = ("train", "test") if dataset.num_eval else ("train",)
        evaluation_split(name, there, validation, eval_split)
    return _hold_out(dataset, validation, eval_split)


def _decoded(
    name: str,
    root: str | Path | None,
    splits: Sequence[str],
    memory_limit: int,
    *,
    image_size: int,
    augmentation: str,
    validation: int,
    eval_split: str,
) -> Dataset | StreamedDataset:
    """A data set of encoded images, decoded now where they fit into memory."""
    if name.startswith("tfds:"):
        source = open_tfds(name.removeprefix("tfds:"), root, splits=splits)
    else:
        source = open_folder(name, _path(name, root))
    evaluation = evaluation_split(name, source.splits, validation, eval_split)
    _check_validation(name, validation, len(source.splits["train"]))
    if fits_memory(source, evaluation, image_size, augmentation, memory_limit):
        return _hold_out(in_memory(source, evaluation), validation, eval_split)
    return streamed(source, evaluation, validation, image_size, augmentation)


def _check_validation(name: str, validation: int, count: int) -> None:
    if validation >= max(count, 1):
        raise ValueError(
            f"`validation` must be less than the {count} training examples of {name}, "
            f"got {validation}."
        )


def _path(name: str, root: str | Path | None) -> Path:
    # Not Path's, which raises a RuntimeError where it does not know a user.
    return Path(root or "", os.path.expanduser(name.partition(":")[2]))


def _hold_out(dataset: Dataset, validation: int, eval_split: str) -> Dataset:
    if not validation or not len(dataset.labels):  # they may not have been read
        return dataset
    _check_validation(dataset.name, validation, len(dataset.labels))
    mask = held_out(dataset.labels, validation, dataset.num_classes, VALIDATION_SEED)
    if eval_split == "validation":
        dataset = dataset._replace(
            eval_images=dataset.images[mask],
            eval_labels=dataset.labels[mask],
            eval_split="validation",
        )
    return dataset._replace(images=dataset.images[~mask], labels=dataset.labels[~mask])
