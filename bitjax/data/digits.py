"""The 1,797 handwritten digits that scikit-learn has: real data, inside the package."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from bitjax.data.arrays import Dataset
from bitjax.data.split import held_out

NUM_TEST = 360
_TEST_SEED = 0
# Of value / 16 over the 1,437 training images.
MEAN = (0.304951,)
STD = (0.375789,)


def digits(root: str | Path | None = None, *, splits: Sequence[str] = ("train", "test")) -> Dataset:
    """8x8 grey digits with pixels in 0..16: 1,437 for training, 360 (36 per class) for test.

    The authors publish no split of these images; this one is fixed here. scikit-learn mixes the
    13 writers, so a test digit's writer is in the training set too.

    Args:
      root: Not used: the file lies beside this one.
      splits: Which of 'train' and 'test' to keep; the other one comes back empty.

    Returns:
      The data, evaluation split 'test', images [N, 8, 8, 1].

    Example:
      >>> data = digits()
      >>> data.images.shape, data.eval_images.shape, int(data.images.max())
      ((1437, 8, 8, 1), (360, 8, 8, 1), 16)

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
      Learning Repository, 1998 (its test part, which is what scikit-learn carries).
    """
    del root  # Every source takes it, so that `load` treats them alike.
    with (resources.files("bitjax.data") / "digits.npz").open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        images, labels = arrays["images"], arrays["labels"].astype(np.int32)
    is_test = held_out(labels, NUM_TEST, num_classes=10, seed=_TEST_SEED)
    keep_train = ~is_test if "train" in splits else np.zeros_like(is_test)
    keep_test = is_test if "test" in splits else np.zeros_like(is_test)
    return Dataset(
        name="digits",
        images=images[keep_train],
        labels=labels[keep_train],
        eval_images=images[keep_test],
        eval_labels=labels[keep_test],
        eval_split="test",
        num_classes=10,
        mean=MEAN,
        std=STD,
        max_value=16.0,
    )
