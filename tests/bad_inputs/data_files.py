"""Bad data: damaged archives, arrays of the wrong form, folders that are no data set."""

import functools
import gzip
import hashlib
import io
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from bitjax.data import cifar10, fashion_mnist, load
from bitjax.data.verify import Checksum
from tests.bad_inputs.damage import Damage, damages
from tests.bad_inputs.judge import Case
from tests.data.sets import encoded, picture

_count = itertools.count()


def fresh(folder: Path) -> Path:
    """A folder that no case has had."""
    return folder / f"case{next(_count)}"


def arrays() -> dict[str, np.ndarray]:
    """The arrays of a right npz file."""
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(6, 5, 4, 3), dtype=np.uint8)
    labels = np.array([0, 1, 2, 0, 1, 2])
    return {"x_train": images, "y_train": labels, "x_test": images[:3], "y_test": labels[:3]}


def savez(found: dict[str, np.ndarray], compressed: bool = False) -> bytes:
    """An npz file's bytes."""
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **found)
    return buffer.getvalue()


def _load_npz(folder: Path, deed: Damage, content: bytes) -> None:
    path = fresh(folder) / "set.npz"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    deed(path)
    load(f"npz:{path}")


def npz(folder: Path) -> Iterator[Case]:
    """Arrays in an npz file."""
    for compressed in (False, True):
        content = savez(arrays(), compressed)
        good = functools.partial(_load_npz, folder, lambda path: None, content)
        yield Case(f"npz({compressed=})", good, good=True)
        for name, deed in damages(content, flips=30):
            call = functools.partial(_load_npz, folder, deed, content)
            # Not all of a zip file's own bytes are guarded; all of its members are.
            yield Case(
                f"npz({compressed=}): {name}",
                call,
                ("set.npz",),
                may_pass=name == "doubled" or "flipped" in name,
            )
    for name, right in arrays().items():
        for said, wrong in _wrong_arrays(name, right):
            found = {**arrays(), name: wrong}
            call = functools.partial(_load_npz, folder, lambda path: None, savez(found))
            yield Case(f"npz: {name} is {said}", call, (name, "set.npz"))
        found = {key: value for key, value in arrays().items() if key != name}
        call = functools.partial(_load_npz, folder, lambda path: None, savez(found))
        yield Case(f"npz: without {name}", call, ("x_train",))


def _wrong_arrays(name: str, right: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    for kind in (np.float32, np.complex64, np.bool_, "U3", "M8[s]"):
        yield f"of {np.dtype(kind)}", right.astype("i8").astype(kind)
    yield "of objects", right.astype(object)
    yield "of records", np.zeros(len(right), [("a", "u1"), ("b", "u1")])
    yield "a scalar", np.asarray(right.reshape(-1)[0])
    yield "empty", right[:0]
    yield "one more", np.concatenate([right, right[:1]])
    yield "of another rank", right[None]
    if name.startswith("y"):
        yield "negative", right - 1
        yield "huge", right.astype(np.uint64) + 2**40
        yield "with a class that is huge", np.where(right == 2, 2**31 - 1, right)
        yield "fractions", right + 0.5
    else:
        yield "channels first", right.transpose(0, 3, 1, 2)
        yield "without pixels", right[:, :0]
        yield "int16", right.astype(np.int16)


def streams() -> dict[str, np.ndarray]:
    """The arrays of a right file of tokens."""
    train = np.array([1, 5, 6, 1, 7, 1, 6, 6], np.uint16)
    return {"train": train, "test": train[:5], "vocabulary": np.array(9)}


def _load_tokens(folder: Path, deed: Damage, content: bytes) -> None:
    path = fresh(folder) / "set.npz"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    deed(path)
    load(f"tokens:{path}")


def tokens(folder: Path) -> Iterator[Case]:
    """Streams of tokens in an npz file."""

    def case(title: str, content: bytes, *names: str, deed: Damage = lambda path: None, **options):
        return Case(title, functools.partial(_load_tokens, folder, deed, content), names, **options)

    for compressed in (False, True):
        content = savez(streams(), compressed)
        yield case(f"tokens({compressed=})", content, good=True)
        for name, deed in damages(content, flips=30):
            may = name == "doubled" or "flipped" in name
            title = f"tokens({compressed=}): {name}"
            yield case(title, content, "set.npz", deed=deed, may_pass=may)
    for name, right in streams().items():
        for said, wrong in _wrong_streams(right):
            title = f"tokens: {name} is {said}"
            yield case(title, savez({**streams(), name: wrong}), name, "set.npz")
    yield case("tokens: without train", savez({"test": streams()["test"]}), "train")


def _wrong_streams(right: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    for kind in (np.float32, np.complex64, np.bool_, "M8[s]"):
        yield f"of {np.dtype(kind)}", right.astype("i8").astype(kind)
    yield "of objects", right.astype(object)
    yield "of records", np.zeros(right.shape, [("a", "u1"), ("b", "u1")])
    yield "of another rank", right[None]
    yield "negative", right.astype(int) - 2**20
    yield "huge", right.astype(np.uint64) + 2**40
    if right.ndim:
        yield "empty", right[:0]
        yield "a scalar", right[0]
        yield "text", right.astype(str)
        yield "beyond the vocabulary", right + 8
        yield "without its first marker", right[1:]


def _write_folder(root: Path) -> None:
    for split, label in itertools.product(("train", "test"), range(2)):
        place = root / split / f"class{label}"
        place.mkdir(parents=True)
        for number in range(2):
            (place / f"{number}.png").write_bytes(encoded(picture(number + 2 * label)))


def _load_folder(folder: Path, deed: Callable[[Path], None]) -> None:
    root = fresh(folder) / "pictures"
    _write_folder(root)
    deed(root)
    load(f"folder:{root}")


def _on(name: str, deed: Damage) -> Callable[[Path], None]:
    return lambda root: deed(root / name)


def folders(folder: Path) -> Iterator[Case]:
    """A folder of images with one that is damaged, and folders of the wrong form."""
    yield Case("folder()", functools.partial(_load_folder, folder, lambda root: None), good=True)
    for form, options in (("PNG", {}), ("JPEG", {}), ("WEBP", {"lossless": True}), ("GIF", {})):
        name = f"train/class0/0.{form.lower()}"
        content = encoded(picture(0), form, **options)

        def change(root: Path, name=name, content=content, deed=None) -> None:
            (root / "train/class0/0.png").unlink()
            (root / name).write_bytes(content)
            if deed:
                deed(root / name)

        for said, deed in damages(content, flips=10):
            call = functools.partial(_load_folder, folder, functools.partial(change, deed=deed))
            # What decoders cannot tell is passed: a flipped pixel, a folder named x.png.
            may = any(word in said for word in ("flipped", "doubled", "missing", "byte", "90%"))
            yield Case(f"folder: {form} {said}", call, ("class0",), may_pass=may)
    for said, deed in FOLDERS.items():
        yield Case(f"folder: {said}", functools.partial(_load_folder, folder, deed), ("pictures",))


def _write(name: str, array: np.ndarray | bytes) -> Callable[[Path], None]:
    content = array if isinstance(array, bytes) else encoded(array)

    def do(root: Path) -> None:
        (root / name).write_bytes(content)

    return do


def _bomb() -> bytes:
    """An image whose pixels would take 2.7 GB."""
    buffer = io.BytesIO()
    Image.new("1", (30000, 30000)).save(buffer, "PNG")
    return buffer.getvalue()


FOLDERS: dict[str, Callable[[Path], None]] = {
    "no train": lambda root: shutil.rmtree(root / "train"),
    "nothing": lambda root: [shutil.rmtree(root / each) for each in ("train", "test")] and None,
    "a class too many": lambda root: (root / "test/class2").mkdir(),
    "a class renamed": lambda root: (root / "test/class1").rename(root / "test/Class1") and None,
    "an empty class": lambda root: [p.unlink() for p in (root / "train/class1").iterdir()] and None,
    "two evaluation splits of one kind": lambda root: [
        shutil.copytree(root / "test", root / each) for each in ("val", "validation")
    ] and None,
    "a text that is named png": _write("train/class0/0.png", b"hello"),
    "an SVG that is named png": _write("train/class0/0.png", b"<svg xmlns='x'/>"),
    "a file instead of a class": lambda root: (
        shutil.rmtree(root / "train/class1"), (root / "train/class1").write_text("")
    ) and None,
    "a huge image": lambda root: (root / "train/class0/0.png").write_bytes(_bomb()) and None,
}  # fmt: skip


def _checksums(folder: Path) -> dict[str, Checksum]:
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_file():
            content = path.read_bytes()
            found[path.name] = Checksum(len(content), "sha256", hashlib.sha256(content).hexdigest())
    return found


def _idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return gzip.compress(header + array.tobytes())


def _write_fashion(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for prefix, count in (("train", 5), ("t10k", 3)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(_idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(_idx(np.arange(count, dtype="u1")))


def _write_cifar10(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in ("cifar10_train_1", "cifar10_test"):
        buffer = io.BytesIO()
        column = rng.integers(0, 256, (96, 32, 3), dtype=np.uint8)
        Image.fromarray(column).save(buffer, "WEBP", lossless=True)
        blob = np.frombuffer(buffer.getvalue(), np.uint8)
        offsets, labels = np.array([0, len(blob)], np.int32), np.arange(3, dtype=np.uint8)
        np.savez(folder / f"{name}.npz", webp=blob, offsets=offsets, labels=labels)


PUBLISHED = {
    "fashion_mnist": (_write_fashion, fashion_mnist, "train-images-idx3-ubyte.gz"),
    "cifar10": (_write_cifar10, cifar10, "cifar10_train_1.npz"),
}


def _load_published(folder: Path, name: str, deed: Damage | None, vouched: bool) -> None:
    write, read, file = PUBLISHED[name]
    root = fresh(folder)
    write(root / name)
    sums = _checksums(root / name)
    if deed:
        deed(root / name / file)
    if vouched and (root / name / file).is_file():  # as if this had been published
        sums = {**sums, **{n: c for n, c in _checksums(root / name).items() if n == file}}
    read(root, files=sums)


def published(folder: Path) -> Iterator[Case]:
    """The files of CIFAR-10 and of Fashion-MNIST, damaged, and damaged as if published so."""
    for name, (write, _, file) in PUBLISHED.items():
        write(folder / f"good-{name}" / name)
        content = (folder / f"good-{name}" / name / file).read_bytes()
        call = functools.partial(_load_published, folder, name, None, False)
        yield Case(f"{name}()", call, good=True)
        for (said, deed), vouched in itertools.product(damages(content, flips=8), (False, True)):
            if vouched and said in ("a link to a device", "a FIFO"):
                continue  # nobody publishes those
            call = functools.partial(_load_published, folder, name, deed, vouched)
            may = vouched and any(word in said for word in ("flipped", "doubled"))
            title = f"{name}: {said}{' as published' if vouched else ''}"
            yield Case(title, call, (file,), may_pass=may)


SURFACES = {"npz": npz, "tokens": tokens, "folders": folders, "published": published}
