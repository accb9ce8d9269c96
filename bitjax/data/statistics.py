"""Measures the mean and the standard deviation of pixels, exactly: by sums of integers."""

import math

import numpy as np

from bitjax.data.arrays import Dataset

# Of ImageNet-2012's training images as everybody uses them since 2016; their source is
# github.com/facebookarchive/fb.resnet.torch, datasets/imagenet.lua.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


Examples = tuple[np.ndarray, np.ndarray]  # images and labels


def measured(
    name: str, train: Examples, evaluation: Examples, eval_split: str, num_classes: int
) -> Dataset:
    """A data set of bytes, normalised by its own training pixels."""
    mean, std = _mean_and_std(train[0])
    return Dataset(name, *train, *evaluation, eval_split, num_classes, mean, std, 255.0)


def _mean_and_std(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of value / 255 by channel; a constant channel has the deviation 1."""
    total = np.zeros(images.shape[-1], np.int64)
    squares = np.zeros(images.shape[-1], np.int64)
    for start in range(0, len(images), 256):  # The squares need eight times the memory.
        part = images[start : start + 256].astype(np.int64).reshape(-1, images.shape[-1])
        total += part.sum(axis=0)
        squares += (part * part).sum(axis=0)
    count = images.size // images.shape[-1]
    mean, std = [], []
    for t, s in zip(total.tolist(), squares.tolist(), strict=True):  # Python's own: no overflow.
        mean.append(t / count / 255)
        std.append(math.sqrt((s * count - t * t) / count**2) / 255 or 1.0)
    return tuple(mean), tuple(std)


def usual_moments(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """ImageNet's mean and deviation, for sets too large to be measured at every start."""
    if channels == 1:
        return (sum(IMAGENET_MEAN) / 3,), (sum(IMAGENET_STD) / 3,)
    extra = channels - 3  # a fourth channel stays as it is, in [0, 1]
    return IMAGENET_MEAN + (0.0,) * extra, IMAGENET_STD + (1.0,) * extra
