"""Reads CIFAR-10 and Fashion-MNIST from local files, each checked before it is used."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bitjax.data.archives import read_idx
from bitjax.data.arrays import Dataset
from bitjax.data.cache import cached
from bitjax.data.images import check_decoder
from bitjax.data.verify import Checksum, read_verified, verify_file
from bitjax.files.reading import reading

CIFAR10_FILES: Mapping[str, Checksum] = {
    "cifar10_train_1.npz": Checksum(
        16_223_494, "sha256", "79777e5b96ad160d6ee78ea7ef78e4a94ce443dc544ff6a1d99c590a9d248afb"
    ),
    "cifar10_train_2.npz": Checksum(
        16_265_344, "sha256", "90b896733095f150b6dff1d992bb59276a2d301d083583599d19c5ad6d652238"
    ),
    "cifar10_train_3.npz": Checksum(
        16_268_012, "sha256", "a3041d8ced200feee6374ddb994ee2760decd9a44a7f234f965a36e3590cae6f"
    ),
    "cifar10_train_4.npz": Checksum(
        16_238_484, "sha256", "79971902a6a31aab610f754c19c1dd5db7eda088a09e815fd6d2ed28fa61c6ef"
    ),
    "cifar10_train_5.npz": Checksum(
        16_211_800, "sha256", "04a9b3e0e126e8b432e5b5d70de261f505a7639088a87341900a473351fae23c"
    ),
    "cifar10_test.npz": Checksum(
        16_249_194, "sha256", "b89b0bfd3c04c5ae61c93e758121491505e0071bb7d0248cfdeb0350bf0e4c8c"
    ),
}

FASHION_MNIST_FILES: Mapping[str, Checksum] = {  # The MD5 are the ones its authors publish.
    "train-images-idx3-ubyte.gz": Checksum(26_421_880, "md5", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
    "train-labels-idx1-ubyte.gz": Checksum(29_515, "md5", "25c81989df183df01b3e8a0aad5dffbe"),
    "t10k-images-idx3-ubyte.gz": Checksum(4_422_102, "md5", "bef4ecab320f06d8554ea6380940ec79"),
    "t10k-labels-idx1-ubyte.gz": Checksum(5_148, "md5", "bb300cfdad3c16e7a12a480ee83cd310"),
}


def data_folder(root: str | Path | None, name: str) -> Path:
    """The folder that holds a data set's files: `name` under `root`, or under `$BITJAX_DATA`."""
    root = root if root is not None else os.environ.get("BITJAX_DATA")
    if not root:
        raise ValueError(
            f"`root` is not given and BITJAX_DATA is not set; point one of them at the folder "
            f"that contains {name}/."
        )
    return Path(root) / name


def cifar10(
    root: str | Path | None = None,
    *,
    splits: Sequence[str] = ("train", "test"),
    files: Mapping[str, Checksum] = CIFAR10_FILES,
) -> Dataset:
    """CIFAR-10, 50,000 + 10,000 colour images of 32x32, in the original order and split.

    Each file is an .npz of `webp` (uint8, lossless WebP images one after the other), `offsets`
    (where each begins, and the end) and `labels`; a WebP image is a column of 32x32 pictures.
    Decoded pixels are kept in the user's cache.

    Args:
      root: The folder that contains `cifar10/`; None: `$BITJAX_DATA`.
      splits: Which of 'train' and 'test' to read; the other one comes back empty.
      files: What each file must be.

    Returns:
      The data, evaluation split 'test', images [N, 32, 32, 3].

    Raises:
      FileNotFoundError: If a file is missing.
      ValueError: If a file is damaged, or no folder is given.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    folder = data_folder(root, "cifar10")
    remedy = "copy it again from where this data folder came from"
    check_decoder("cifar10")
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"train": [], "test": []}
    for name, expected in files.items():
        split = "test" if "test" in name else "train"
        if split in splits:
            content = read_verified(folder / name, expected, remedy)
            with reading(folder / name, remedy):
                parts[split].append(_decode_cifar10(content, expected.digest))
    return Dataset(
        "cifar10",
        *joined(parts["train"], (32, 32, 3)),
        *joined(parts["test"], (32, 32, 3)),
        eval_split="test",
        num_classes=10,
        mean=(0.49140, 0.48216, 0.44653),
        std=(0.24703, 0.24348, 0.26159),
        max_value=255.0,
    )


def fashion_mnist(
    root: str | Path | None = None,
    *,
    splits: Sequence[str] = ("train", "test"),
    files: Mapping[str, Checksum] = FASHION_MNIST_FILES,
) -> Dataset:
    """Fashion-MNIST, 60,000 + 10,000 grey images of 28x28, from the four original .gz files.

    Args:
      root: The folder that contains `fashion_mnist/`; None: `$BITJAX_DATA`.
      splits: Which of 'train' and 'test' to read; the other one comes back empty.
      files: What each file must be.

    Returns:
      The data, evaluation split 'test', images [N, 28, 28, 1].

    Raises:
      FileNotFoundError: If a file is missing.
      ValueError: If a file is damaged, or no folder is given.

    Source: Xiao, Rasul and Vollgraf, Fashion-MNIST, 2017, arXiv 1708.07747.
    """
    folder = data_folder(root, "fashion_mnist")
    remedy = "download it again from github.com/zalandoresearch/fashion-mnist"

    def read(prefix: str) -> list[tuple[np.ndarray, np.ndarray]]:
        arrays = []
        for name in (f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"):
            verify_file(folder / name, files[name], remedy)
            arrays.append(read_idx(folder / name, remedy))
        return [(arrays[0][..., None], arrays[1])]

    return Dataset(
        "fashion_mnist",
        *joined(read("train") if "train" in splits else [], (28, 28, 1)),
        *joined(read("t10k") if "test" in splits else [], (28, 28, 1)),
        eval_split="test",
        num_classes=10,
        mean=(0.28604,),
        std=(0.35302,),
        max_value=255.0,
    )


def _decode_cifar10(content: bytes, digest: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        stream, offsets, labels = arrays["webp"], arrays["offsets"], arrays["labels"]
    shape = (len(labels), 32, 32, 3)
    images = cached(f"cifar10-{digest}", lambda: _decode_webp(stream.tobytes(), offsets))
    if images.shape != shape or images.dtype != np.uint8:  # Somebody else's cache entry.
        images = _decode_webp(stream.tobytes(), offsets).reshape(shape)
    return images, labels


def _decode_webp(stream: bytes, offsets: np.ndarray) -> np.ndarray:
    from PIL import Image

    columns = (
        np.asarray(Image.open(io.BytesIO(stream[start:end])).convert("RGB"))
        for start, end in zip(offsets[:-1], offsets[1:], strict=True)
    )
    return np.concatenate([column.reshape(-1, 32, 32, 3) for column in columns])


def joined(
    parts: list[tuple[np.ndarray, np.ndarray]], shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of all parts; none of such a shape where there is no part."""
    if not parts:
        return np.zeros((0, *shape), np.uint8), np.zeros(0, np.int32)
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels).astype(np.int32)
