"""Reads the examples inside published archives as TFDS's own builders would give them.

Those builders read and encode with TensorFlow. Here tarfile, gzip and Pillow do it: the same
names, the same keys (they decide the order on disk), the same pixels.
"""

import gzip
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Example = tuple[int | str, dict[str, Any]]
Splits = dict[str, Iterator[Example]]


class Archive(NamedTuple):
    """The files that a data set is made from, and how they are read."""

    files: tuple[str, ...]
    url: str  # the address of the files' folder; '' where a person must ask for them
    splits: Callable[[Any, Mapping[str, Path]], Splits]  # of (builder, paths by file name)


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 pixels [H, W, C], without loss."""
    from PIL import Image  # TFDS, for which this is, has brought it

    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def decode_idx(content: bytes) -> np.ndarray:
    """The uint8 array of an idx file: byte 3 counts the dimensions, each a big-endian int32."""
    rank = content[3]
    shape = np.frombuffer(content, ">i4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _cifar(folder: str, train: tuple[str, ...], test: tuple[str, ...], names: Mapping[str, str]):
    """The binary version: a byte for each label, then the red, green and blue pixels."""

    def splits(builder: Any, paths: Mapping[str, Path]) -> Splits:
        (path,) = paths.values()
        with tarfile.open(path) as archive:
            members = (*train, *test, *names.values())
            content = {name: _member(archive, f"{folder}/{name}") for name in members}
        for label, name in names.items():
            classes = content[name].decode().split("\n")
            builder.info.features[label].names = [each for each in classes if each]

        def examples(split: str, files: tuple[str, ...]) -> Iterator[Example]:
            number = 0
            for file in files:
                rows = np.frombuffer(content[file], np.uint8).reshape(-1, len(names) + 3072)
                for row in rows:
                    image = row[len(names) :].reshape(3, 32, 32).transpose(1, 2, 0)
                    labels = {name: int(row[i]) for i, name in enumerate(names)}
                    yield (
                        number,
                        {"id": f"{split}_{number:05d}", "image": encode_png(image), **labels},
                    )
                    number += 1

        return {"train": examples("train", train), "test": examples("test", test)}

    return splits


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        file = archive.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise ValueError(f"{archive.name} holds no {name}; expected the binary version.")
    return file.read()


def _mnist(builder: Any, paths: Mapping[str, Path]) -> Splits:
    del builder

    def examples(prefix: str) -> Iterator[Example]:
        images, labels = (
            decode_idx(gzip.decompress(paths[f"{prefix}-{kind}-ubyte.gz"].read_bytes()))
            for kind in ("images-idx3", "labels-idx1")
        )
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield number, {"image": encode_png(image[..., None]), "label": int(label)}

    return {"train": examples("train"), "test": examples("t10k")}


def _imagenet(builder: Any, paths: Mapping[str, Path]) -> Splits:
    """JPEG files as they are; 22 in CMYK and a PNG, which TFDS converts, Pillow converts later."""
    import tensorflow_datasets as tfds

    del builder

    def train() -> Iterator[Example]:
        with tarfile.open(paths["ILSVRC2012_img_train.tar"]) as archive:
            for member in archive:  # an archive for each class
                with tarfile.open(fileobj=archive.extractfile(member)) as images:
                    for image in images:
                        yield _jpeg(images, image, Path(member.name).stem)

    def validation() -> Iterator[Example]:
        text = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text()
        classes = text.split()
        with tarfile.open(paths["ILSVRC2012_img_val.tar"]) as archive:
            names = sorted(archive.getnames())
            if len(names) != len(classes):
                raise ValueError(
                    f"{archive.name} holds {len(names)} files, expected {len(classes)}; "
                    "download it again."
                )
            label_of = dict(zip(names, classes, strict=True))
            for image in archive:
                yield _jpeg(archive, image, label_of[image.name])

    return {"train": train(), "validation": validation()}


def _jpeg(archive: tarfile.TarFile, member: tarfile.TarInfo, label: str) -> Example:
    file = archive.extractfile(member)
    if file is None:
        raise ValueError(f"{archive.name} holds {member.name}, which is no file.")
    return member.name, {"file_name": member.name, "image": file.read(), "label": label}


_IDX = tuple(f"{s}-{k}-ubyte.gz" for s in ("train", "t10k") for k in ("images-idx3", "labels-idx1"))
_BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_TORONTO = "https://www.cs.toronto.edu/~kriz/"

ARCHIVES: Mapping[str, Archive] = {
    "cifar10": Archive(
        ("cifar-10-binary.tar.gz",),
        _TORONTO,
        _cifar(
            "cifar-10-batches-bin", _BATCHES, ("test_batch.bin",), {"label": "batches.meta.txt"}
        ),
    ),
    "cifar100": Archive(
        ("cifar-100-binary.tar.gz",),
        _TORONTO,
        _cifar(
            "cifar-100-binary",
            ("train.bin",),
            ("test.bin",),
            {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
        ),
    ),
    "mnist": Archive(_IDX, "https://storage.googleapis.com/cvdf-datasets/mnist/", _mnist),
    "fashion_mnist": Archive(
        _IDX, "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/", _mnist
    ),
    "kmnist": Archive(_IDX, "http://codh.rois.ac.jp/kmnist/dataset/kmnist/", _mnist),
    "imagenet2012": Archive(("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"), "", _imagenet),
}
