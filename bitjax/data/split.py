"""Chooses examples to hold out of a training set: always the same, balanced over classes."""

import numpy as np

from bitjax.checks import ARRAY, checked, integer
from bitjax.data.order import SEED, seeded_order

# Every validation split of the project is this one, so that results of different runs compare.
VALIDATION_SEED = 1


@checked(labels=ARRAY, count=integer(0), num_classes=integer(1), seed=SEED)
def held_out(labels: np.ndarray, count: int, num_classes: int, seed: int) -> np.ndarray:
    """Choose `count` examples, equally many of every class.

    Classes without an example give none. Where `count` does not divide by the others, the first of
    them give one more. A larger choice contains every smaller one of the same seed.

    Args:
      labels: [N] classes in [0, num_classes).
      count: How many to choose, in [0, N).
      num_classes: Number of classes.
      seed: Seed of the choice, in [0, 2**64).

    Returns:
      bool [N], True for the examples that are held out.

    Raises:
      ValueError: If `count` or a label is out of range, or a class has too few examples.

    Example:
      >>> mask = held_out(np.array([0, 0, 0, 1, 1, 1]), 2, num_classes=2, seed=0)
      >>> int(mask[:3].sum()), int(mask[3:].sum())
      (1, 1)
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"`labels` must be integers [N], got {labels.dtype} {labels.shape}.")
    if count >= len(labels):
        raise ValueError(f"`count` must be in [0, {len(labels)}), got {count}.")
    classes, sizes = np.unique(labels, return_counts=True)
    if not 0 <= classes[0] <= classes[-1] < num_classes:
        raise ValueError(
            f"`labels` must be in [0, {num_classes}), got [{classes[0]}, {classes[-1]}]."
        )
    share, extra = divmod(count, len(classes))
    smallest = int(sizes.argmin())
    most = len(classes) * int(sizes[smallest]) + smallest  # the first ones give one more
    if count > most:
        raise ValueError(
            f"Holding out {count} examples, equally many of {len(classes)} classes, takes more of "
            f"class {classes[smallest]} than its {sizes[smallest]}; hold out at most {most}."
        )
    mask = np.zeros(len(labels), bool)
    for place, label in enumerate(classes.tolist()):
        members = np.flatnonzero(labels == label)
        wanted = share + (place < extra)
        mask[members[seeded_order(len(members), seed, label)[:wanted]]] = True
    return mask
