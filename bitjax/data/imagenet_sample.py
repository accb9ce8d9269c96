"""Reads a sample of ImageNet, one image of each class, from local files that are checked first."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bitjax.data.arrays import Dataset
from bitjax.data.files import data_folder, joined
from bitjax.data.images import check_decoder, open_image, pixels
from bitjax.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from bitjax.data.verify import Checksum, read_verified
from bitjax.files.reading import reading

IMAGENET_SAMPLE_FILES: Mapping[str, Checksum] = {
    "images_1.npz": Checksum(
        11_540_815, "sha256", "ecc310118b6ab1b14664dfdbfc89d78b126463b6e15f254f41737fd9b501f3f3"
    ),
    "images_2.npz": Checksum(
        10_812_681, "sha256", "86833d47282b6262256f56e266ad385a96d13dd4020949420d4bc377d4b3ed8f"
    ),
}
_FIRST, _SIZE = 14, 227  # the part of 256x256 pixels that networks of that time read


def imagenet_sample(
    root: str | Path | None = None,
    *,
    splits: Sequence[str] = ("train", "test"),
    files: Mapping[str, Checksum] = IMAGENET_SAMPLE_FILES,
) -> Dataset:
    """1,000 images of ImageNet, one of each class: even labels calibrate, odd labels judge.

    Each file is an .npz of `jpeg` (uint8, JPEGs of 256x256 one after the other), `offsets` (where
    each begins, and the end), `labels` (0 to 999 in the order of sorted wnids) and `wnids`. An
    image is pixels 14 to 240 of these, both ways. 500 images of even labels are too few to train
    from; they are `images`, so that what calibrates takes them.

    Args:
      root: The folder that contains `imagenet_sample/`; None: `$BITJAX_DATA`.
      splits: Which of 'train' and 'test' to keep; the other one comes back empty.
      files: What each file must be.

    Returns:
      The data, evaluation split 'test', images [N, 227, 227, 3], normalised as ImageNet's.

    Raises:
      FileNotFoundError: If a file is missing.
      ValueError: If a file is damaged, or no folder is given.

    Source: github.com/EliSchwartz/imagenet-sample-images; Russakovsky et al., ImageNet Large Scale
      Visual Recognition Challenge, 2015.
    """
    folder = data_folder(root, "imagenet_sample")
    remedy = "copy it again from where this data folder came from"
    check_decoder("imagenet_sample")
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"train": [], "test": []}
    for name, expected in files.items():
        content = read_verified(folder / name, expected, remedy)
        with reading(folder / name, remedy):
            for split in splits:
                parts[split].append(_decoded(content, odd=split == "test"))
    return Dataset(
        "imagenet_sample",
        *joined(parts["train"], (_SIZE, _SIZE, 3)),
        *joined(parts["test"], (_SIZE, _SIZE, 3)),
        eval_split="test",
        num_classes=1000,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        max_value=255.0,
    )


def _decoded(content: bytes, *, odd: bool) -> tuple[np.ndarray, np.ndarray]:
    """The images and the labels of a file that have odd labels, or even ones."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        stream, offsets, labels = (arrays[name] for name in ("jpeg", "offsets", "labels"))
    own = np.flatnonzero(labels % 2 == odd)
    end = _FIRST + _SIZE
    images = np.empty((len(own), _SIZE, _SIZE, 3), np.uint8)
    for image, i in zip(images, own, strict=True):
        whole = pixels(open_image(stream[offsets[i] : offsets[i + 1]].tobytes()), 3)
        if whole.shape != (256, 256, 3):
            raise ValueError(f"image {i} has the shape {whole.shape}, expected (256, 256, 3)")
        image[:] = whole[_FIRST:end, _FIRST:end]
    return images, labels[own]
