"""Reads the examples inside published archives as TFDS's own builders would give them.

Those builders read and encode with TensorFlow. Here tarfile, gzip and Pillow do it: the same
names, the same keys (they decide the order on disk), the same pixels.
"""

import contextlib
import gzip
import io
import math
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitjax.files.reading import FileError, one_line, open_file, reading

_MOST = 2**30  # bytes of one array or file in an archive
_AGAIN = "download it again"

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


def read_idx(path: Path, remedy: str) -> np.ndarray:
    """The uint8 array of a gzipped idx file: byte 3 counts the dimensions, each a big-endian int32.

    No more is unpacked than its header says.
    """
    with reading(path, remedy), open_file(path, remedy) as file, gzip.open(file) as content:
        header = content.read(4)
        if len(header) < 4 or header[:3] != b"\0\0\x08":
            raise FileError(path, "is no idx file of bytes", remedy)
        shape = np.frombuffer(content.read(4 * header[3]), ">i4").tolist()
        size = math.prod(shape)
        if len(shape) != header[3] or min(shape, default=0) < 1 or size > _MOST:
            raise FileError(path, f"has a damaged header, shape {shape}", remedy)
        pixels = content.read(size + 1)
        if len(pixels) != size:
            more = "more" if len(pixels) > size else "fewer"
            raise FileError(path, f"has {more} than the {size} bytes that its header says", remedy)
        return np.frombuffer(pixels, np.uint8).reshape(shape)


def _cifar(folder: str, train: tuple[str, ...], test: tuple[str, ...], names: Mapping[str, str]):
    """The binary version: a byte for each label, then the red, green and blue pixels."""

    def splits(builder: Any, paths: Mapping[str, Path]) -> Splits:
        (path,) = paths.values()
        with _opened(path) as archive:
            for label, name in names.items():
                classes = _member(archive, path, f"{folder}/{name}").decode().split("\n")
                builder.info.features[label].names = [each for each in classes if each]
            rows = {name: rows_of(builder, archive, path, name) for name in (*train, *test)}

        def examples(split: str, files: tuple[str, ...]) -> Iterator[Example]:
            for number, row in enumerate(row for file in files for row in rows[file]):
                image = row[len(names) :].reshape(3, 32, 32).transpose(1, 2, 0)
                labels = {name: int(row[i]) for i, name in enumerate(names)}
                yield (
                    number,
                    {"id": f"{split}_{number:05d}", "image": encode_png(image), **labels},
                )

        return {"train": examples("train", train), "test": examples("test", test)}

    def rows_of(builder: Any, archive: tarfile.TarFile, path: Path, file: str) -> np.ndarray:
        content = np.frombuffer(_member(archive, path, f"{folder}/{file}"), np.uint8)
        if content.size % (len(names) + 3072):
            raise FileError(
                path, f"holds {folder}/{file} of {content.size} bytes, cut short", _AGAIN
            )
        rows = content.reshape(-1, len(names) + 3072)
        for i, label in enumerate(names):
            _check_classes(path, rows[:, i], builder.info.features[label].num_classes)
        return rows

    return splits


def _check_classes(path: Path, labels: np.ndarray, num_classes: int) -> None:
    if labels.max(initial=0) >= num_classes:
        what = f"holds the class {labels.max()}, expected at most {num_classes - 1}"
        raise FileError(path, what, _AGAIN)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar archive, gzipped or plain: other forms can unfold without an end."""
    with reading(path, _AGAIN), open_file(path, _AGAIN) as file:
        unpacked: Any = gzip.open(file) if path.suffix == ".gz" else contextlib.nullcontext(file)
        with unpacked as content, tarfile.open(fileobj=content, mode="r:") as archive:
            yield archive
            while content.read(2**20):  # gzip's checksum is at the end
                pass


def _member(archive: tarfile.TarFile, path: Path, name: str | tarfile.TarInfo) -> bytes:
    """The content of a file in an archive; not of a link, nor of one that is mostly holes."""
    try:
        member = archive.getmember(name) if isinstance(name, str) else name
    except KeyError:
        raise FileError(path, f"holds no {name}", f"{_AGAIN}, the binary version") from None
    if not member.isreg() or member.issparse() or member.size > _MOST:
        raise FileError(path, f"holds {one_line(member.name)}, which is no file to read", _AGAIN)
    file = archive.extractfile(member)
    assert file is not None  # of a regular file it is none
    return file.read()


def _mnist(builder: Any, paths: Mapping[str, Path]) -> Splits:
    def examples(prefix: str) -> Iterator[Example]:
        files = [paths[f"{prefix}-{kind}-ubyte.gz"] for kind in ("images-idx3", "labels-idx1")]
        images, labels = (read_idx(path, _AGAIN) for path in files)
        if labels.shape != images.shape[:1]:
            what = f"holds labels {labels.shape} for {len(images)} images"
            raise FileError(files[1], what, _AGAIN)
        _check_classes(files[1], labels, builder.info.features["label"].num_classes)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield number, {"image": encode_png(image[..., None]), "label": int(label)}

    return {"train": examples("train"), "test": examples("t10k")}


def _imagenet(builder: Any, paths: Mapping[str, Path]) -> Splits:
    """JPEG files as they are; 22 in CMYK and a PNG, which TFDS converts, Pillow converts later."""
    import tensorflow_datasets as tfds

    known = set(builder.info.features["label"].names)

    def train() -> Iterator[Example]:
        path = paths["ILSVRC2012_img_train.tar"]
        with _opened(path) as archive:
            for member in archive:  # an archive for each class
                label = Path(member.name).stem
                if label not in known or not member.isreg() or member.issparse():
                    what = f"holds {one_line(member.name)}, which is no class of ImageNet"
                    raise FileError(path, what, _AGAIN)
                with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as images:
                    for image in images:
                        yield _jpeg(images, path, image, label)

    def validation() -> Iterator[Example]:
        text = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text()
        classes = text.split()
        path = paths["ILSVRC2012_img_val.tar"]
        with _opened(path) as archive:
            names = sorted(archive.getnames())
            if len(names) != len(classes):
                what = f"holds {len(names)} files, expected {len(classes)}"
                raise FileError(path, what, _AGAIN)
            label_of = dict(zip(names, classes, strict=True))
            for image in archive:
                yield _jpeg(archive, path, image, label_of[image.name])

    return {"train": train(), "validation": validation()}


def _jpeg(archive: tarfile.TarFile, path: Path, member: tarfile.TarInfo, label: str) -> Example:
    content = _member(archive, path, member)
    return member.name, {"file_name": member.name, "image": content, "label": label}


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
