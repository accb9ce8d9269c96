"""`load`: a data set by its name, cut into training and evaluation examples."""

from collections.abc import Callable, Mapping
from pathlib import Path

from bitjax.data.check import check_dataset
from bitjax.data.digits import digits
from bitjax.data.files import cifar10, fashion_mnist
from bitjax.data.pipeline import Dataset
from bitjax.data.split import VALIDATION_SEED, held_out

SOURCES: Mapping[str, Callable[..., Dataset]] = {
    "digits": digits,
    "cifar10": cifar10,
    "fashion_mnist": fashion_mnist,
}


def load(
    name: str,
    *,
    root: str | Path | None = None,
    validation: int = 0,
    eval_split: str = "test",
    limit: int | None = None,
    train: bool = True,
) -> Dataset:
    """Load a data set.

    The same `validation` always holds out the same examples, equally many of every class, and
    they are never among the training images, whichever split is evaluated: a number tuned on
    'validation' and reported on 'test' comes from one training set.

    Args:
      name: 'digits' (needs no files), 'cifar10' or 'fashion_mnist'.
      root: The folder that contains the data set's folder; None: `$BITJAX_DATA`.
      validation: How many training examples to hold out.
      eval_split: What to evaluate on: 'test' or 'validation'.
      limit: Keep at most this many training and this many evaluation examples, the first ones;
        for trials. None: all.
      train: False leaves the training images empty, and reads fewer files.

    Returns:
      The data. The mean and the standard deviation are those of the whole training set,
      whatever `validation` and `limit`.

    Raises:
      FileNotFoundError: If a file is missing.
      ValueError: If an argument is out of its range, or a file is damaged.

    Example:
      >>> data = load("digits", validation=100, eval_split="validation")
      >>> len(data.labels), len(data.eval_labels)
      (1337, 100)
    """
    if name not in SOURCES:
        raise ValueError(f"`name` must be one of {', '.join(map(repr, SOURCES))}, got {name!r}.")
    if eval_split not in ("test", "validation"):
        raise ValueError(f"`eval_split` must be 'test' or 'validation', got {eval_split!r}.")
    if validation < 0:
        raise ValueError(f"`validation` must be at least 0, got {validation}.")
    if eval_split == "validation" and validation == 0:
        raise ValueError(
            "`eval_split` is 'validation' but `validation` is 0; "
            "set `validation` to the number of training examples to hold out."
        )
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` must be at least 1 or None, got {limit}.")

    splits = [
        split
        for split, needed in (
            ("train", train or eval_split == "validation"),
            ("test", eval_split == "test"),
        )
        if needed
    ]
    dataset = SOURCES[name](root, splits=splits)
    if validation and "train" in splits:
        if validation >= len(dataset.labels):
            raise ValueError(
                f"`validation` must be less than the {len(dataset.labels)} training examples of "
                f"{name}, got {validation}."
            )
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


def _hold_out(dataset: Dataset, validation: int, eval_split: str) -> Dataset:
    mask = held_out(dataset.labels, validation, dataset.num_classes, VALIDATION_SEED)
    if eval_split == "validation":
        dataset = dataset._replace(
            eval_images=dataset.images[mask],
            eval_labels=dataset.labels[mask],
            eval_split="validation",
        )
    return dataset._replace(images=dataset.images[~mask], labels=dataset.labels[~mask])
