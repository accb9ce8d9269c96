"""Chooses examples to hold out of a training set: always the same, balanced over classes."""

import numpy as np

from bitjax.data.order import seeded_order

# Every validation split of the project is this one, so that results of different runs compare.
VALIDATION_SEED = 1


def held_out(labels: np.ndarray, count: int, num_classes: int, seed: int) -> np.ndarray:
    """Choose `count` examples, equally many of every class.

    Where `count` does not divide by the classes, the first classes give one more. A larger
    choice contains every smaller one of the same seed.

    Args:
      labels: [N] classes in [0, num_classes).
      count: How many to choose, in [0, N).
      num_classes: Number of classes.
      seed: Seed of the choice, in [0, 2**64).

    Returns:
      bool [N], True for the examples that are held out.

    Raises:
      ValueError: If `count` is out of range or a class has too few examples.

    Example:
      >>> mask = held_out(np.array([0, 0, 0, 1, 1, 1]), 2, num_classes=2, seed=0)
      >>> int(mask[:3].sum()), int(mask[3:].sum())
      (1, 1)
    """
    if not 0 <= count < len(labels):
        raise ValueError(f"`count` must be in [0, {len(labels)}), got {count}.")
    share, extra = divmod(count, num_classes)
    mask = np.zeros(len(labels), bool)
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        wanted = share + (label < extra)
        if wanted > len(members):
            raise ValueError(
                f"`count` = {count} needs {wanted} examples of class {label}, which has "
                f"{len(members)}; hold out fewer."
            )
        mask[members[seeded_order(len(members), seed, label)[:wanted]]] = True
    return mask
