"""Archives become TFDS sets that read back bit by bit, without TensorFlow."""

import bz2
import gzip
import importlib.util
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from bitjax.data import load
from bitjax.data.archives import ARCHIVES, encode_png, read_idx
from bitjax.data.prepare import local_files, prepare
from tests.data.sets import encoded, picture

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITJAX_CACHE_DIR", str(tmp_path / "cache"))


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">i4").tobytes()
    return gzip.compress(header + array.tobytes(), 1)


def write_mnist(folder, train, test):
    """The four files of MNIST's form; `train` and `test` are (images [N, 28, 28], labels)."""
    folder.mkdir()
    for prefix, (images, labels) in {"train": train, "t10k": test}.items():
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    return folder


def add(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def write_cifar10(folder, train, test):
    """cifar-10-binary.tar.gz; `train` and `test` are (images [N, 32, 32, 3], labels)."""
    folder.mkdir()

    def rows(images, labels):
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        return np.concatenate([labels[:, None].astype(np.uint8), planes], axis=1).tobytes()

    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        names = "\n".join(["airplane", "automobile", *(f"class{i}" for i in range(2, 10)), ""])
        add(archive, "cifar-10-batches-bin/batches.meta.txt", names.encode())
        for i in range(5):
            part = rows(train[0][i::5], train[1][i::5])
            add(archive, f"cifar-10-batches-bin/data_batch_{i + 1}.bin", part)
        add(archive, "cifar-10-batches-bin/test_batch.bin", rows(*test))
    return folder


def examples(count, shape, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(256, size=(count, *shape), dtype=np.uint8)
    return images, rng.integers(10, size=count).astype(np.uint8)


def assert_same_examples(images, labels, wanted):
    """The same pairs, in whatever order: TFDS shuffles what it writes."""
    assert images.shape == (len(wanted[0]), *images.shape[1:])
    found, expected = (
        sorted((image.tobytes(), int(label)) for image, label in zip(*pair, strict=True))
        for pair in ((images, labels), wanted)
    )
    assert found == expected


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_downloaded_files_become_a_set_that_reads_back_bit_by_bit(name, tmp_path):
    write, shape = (write_cifar10, (32, 32, 3)) if name == "cifar10" else (write_mnist, (28, 28))
    train, test = examples(60, shape), examples(12, shape, 1)
    source = write(tmp_path / "files", train, test)
    folder = prepare(name, tmp_path / "root", source, verify=False)
    data = load(f"tfds:{name}", root=tmp_path / "root")
    assert_same_examples(data.images, data.labels, train)
    assert_same_examples(data.eval_images, data.eval_labels, test)
    assert data.num_classes == 10
    stat = (folder / "dataset_info.json").stat()
    assert prepare(name, tmp_path / "root") == folder  # it is there: nothing is downloaded
    assert (folder / "dataset_info.json").stat() == stat
    import tensorflow_datasets as tfds

    source = tfds.data_source(
        name, data_dir=tmp_path / "root", builder_kwargs={"file_format": "array_record"}
    )
    assert len(source["train"]) == 60 and source["test"][0]["image"].dtype == np.uint8
    if name == "cifar10":
        classes = tfds.builder_from_directory(folder).info.features["label"].names
        assert classes[:3] == ["airplane", "automobile", "class2"]
    assert "tensorflow" not in sys.modules


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_real_images_survive_preparing_bit_by_bit(name, tmp_path, data_root):
    real = load(name, root=data_root, train=False)
    images = real.eval_images if name == "cifar10" else real.eval_images[..., 0]
    labels = real.eval_labels.astype(np.uint8)
    parts = [(images[:2000], labels[:2000]), (images[2000:2500], labels[2000:2500])]
    write = write_cifar10 if name == "cifar10" else write_mnist
    source = write(tmp_path / "files", *parts)
    prepare(name, tmp_path / "root", source, verify=False)
    data = load(f"tfds:{name}", root=tmp_path / "root")
    assert_same_examples(data.images, data.labels, parts[0])
    assert_same_examples(data.eval_images, data.eval_labels, parts[1])


def test_the_published_files_pass_and_others_do_not(tmp_path, data_root):
    import tensorflow_datasets as tfds

    archive = ARCHIVES["fashion_mnist"]
    builder = tfds.builder("fashion_mnist", data_dir=tmp_path)
    folder = data_root / "fashion_mnist"
    assert len(local_files("fashion_mnist", archive, folder, builder.url_infos)) == 4
    source = write_mnist(tmp_path / "files", *([examples(3, (28, 28))] * 2))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz is damaged: expected 26421"):
        prepare("fashion_mnist", tmp_path / "root", source)


def test_imagenet_is_prepared_from_its_two_archives(tmp_path, monkeypatch):
    source = tmp_path / "files"
    source.mkdir()
    with tarfile.open(source / "ILSVRC2012_img_train.tar", "w") as archive:
        for k, synset in enumerate(("n01440764", "n01443537", "n15075141")):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as images:
                for i in range(3):
                    content = encoded(picture(10 * k + i, 40 + i, 50), "JPEG")
                    add(images, f"{synset}_{i}.JPEG", content)
            add(archive, f"{synset}.tar", inner.getvalue())
    with tarfile.open(source / "ILSVRC2012_img_val.tar", "w") as archive:
        for i in (2, 1):
            content = encoded(picture(i, 30, 30), "JPEG")
            add(archive, f"ILSVRC2012_val_{i:08d}.JPEG", content)
    with pytest.raises(ValueError, match="val.tar holds 2 files, expected 50000; download it"):
        prepare("imagenet2012", tmp_path / "root", source)
    import tensorflow_datasets as tfds

    labels = tmp_path / "labels.txt"
    labels.write_text("n01443537\nn15075141\n")
    published = tfds.core.tfds_path
    monkeypatch.setattr(
        tfds.core,
        "tfds_path",
        lambda name="": labels if str(name).endswith("validation_labels.txt") else published(name),
    )
    prepare("imagenet2012", tmp_path / "root", source)
    data = load("tfds:imagenet2012", root=tmp_path / "root", image_size=32)
    assert (data.num_train, data.num_eval, data.num_classes) == (9, 2, 1000)
    assert data.eval_split == "validation"
    wanted = {encoded(picture(10 * k + i, 40 + i, 50), "JPEG"): 999 if k == 2 else k
              for k in range(3) for i in range(3)}  # fmt: skip
    found = dict(data.train.read(number) for number in range(9))
    assert found == wanted
    found = dict(data.evaluation.read(number) for number in range(2))
    assert found == {encoded(picture(i, 30, 30), "JPEG"): (1, 999)[i - 1] for i in (1, 2)}


def test_missing_files_and_unknown_sets_are_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="binary.tar.gz is missing; tfds:cifar10 is made"):
        prepare("cifar10", tmp_path, tmp_path)
    with pytest.raises(FileNotFoundError, match="cannot be downloaded: ask its authors"):
        prepare("imagenet2012", tmp_path)
    with pytest.raises(ValueError, match="no data set 'cifar11'; did you mean tfds:cifar1"):
        prepare("cifar11", tmp_path)
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        add(archive, "cifar-10-batches-py/data_batch_1", b"")
    with pytest.raises(ValueError, match="holds no cifar-10-batches-bin.*the binary version"):
        prepare("cifar10", tmp_path / "root", tmp_path, verify=False)


def header_of(*shape, rank=None):
    dimensions = np.asarray(shape, ">i4").tobytes()
    return bytes([0, 0, 8, len(shape) if rank is None else rank]) + dimensions


LIES = {  # the content of an idx file, and what is said about it
    "empty": (b"", "is no idx file of bytes"),
    "of floats": (b"\0\0\x0d\x01", "is no idx file of bytes"),
    "cut header": (header_of(3, rank=2), r"has a damaged header, shape \[3\]"),
    "huge": (header_of(3, 2**30), r"has a damaged header, shape \[3, 1073741824\]"),
    "negative": (header_of(-1, 3) + b"\1" * 9, r"has a damaged header, shape \[-1, 3\]"),
    "fewer": (header_of(2, 3) + b"\1" * 5, "has fewer than the 6 bytes that its header"),
    "more": (header_of(2, 3) + b"\1" * 10**6, "has more than the 6 bytes that its header"),
    "cut": (header_of(2, 3) + b"\1" * 6, r"cannot be read \(EOFError: "),
    "no gzip": (b"text", r"cannot be read \(BadGzipFile: "),
}


@pytest.mark.parametrize("case", LIES)
def test_an_idx_file_that_lies_about_itself_is_named(case, tmp_path):
    content, message = LIES[case]
    packed = gzip.compress(content)[: -9 if case == "cut" else None]
    (tmp_path / "array.gz").write_bytes(content if case == "no gzip" else packed)
    with pytest.raises(ValueError, match=f"array.gz {message}.*; download it again.$"):
        read_idx(tmp_path / "array.gz", "download it again")


BATCH = "cifar-10-batches-bin/data_batch_2.bin"
NAMES = "cifar-10-batches-bin/batches.meta.txt"


def linked(kind):
    def change(member, content):
        member.type, member.size, member.linkname = kind, 0, BATCH
        return b""

    return change


def holes(member, content):
    member.pax_headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0",
        "GNU.sparse.name": BATCH, "GNU.sparse.realsize": str(2**40),
    }  # fmt: skip
    return b"0\n".ljust(512, b"\0")


MEMBERS = {  # what is in the place of a member: (its name, its new content, what is said)
    "a link to itself": (BATCH, linked(tarfile.SYMTYPE), "which is no file to read"),
    "a hard link to itself": (BATCH, linked(tarfile.LNKTYPE), "which is no file to read"),
    "a folder": (BATCH, linked(tarfile.DIRTYPE), "which is no file to read"),
    "a pipe": (BATCH, linked(tarfile.FIFOTYPE), "which is no file to read"),
    "holes": (BATCH, holes, "which is no file to read"),
    "cut": (BATCH, lambda member, content: content[:-1], "bytes, cut short"),
    "a class": (BATCH, lambda member, content: b"\xc8" + content[1:], "holds the class 200"),
    "fewer names": (NAMES, lambda member, content: content[9:], "cannot be read"),
    "no text": (NAMES, lambda member, content: b"\xff" * 9, r"cannot be read \(UnicodeDecodeErr"),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_an_archive_whose_member_is_no_good_is_named_in_one_line(case, tmp_path):
    place, change, message = MEMBERS[case]
    source = write_cifar10(tmp_path / "files", *([examples(5, (32, 32, 3))] * 2))
    path = source / "cifar-10-binary.tar.gz"
    with tarfile.open(path) as archive:
        content = {name: archive.extractfile(name).read() for name in archive.getnames()}
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for name, each in content.items():
            member = tarfile.TarInfo(name)
            each = change(member, each) if name == place else each
            member.size = len(each)
            archive.addfile(member, io.BytesIO(each))
    with pytest.raises(ValueError, match=rf"cifar-10-binary.tar.gz .*{message}") as caught:
        prepare("cifar10", tmp_path / "root", source, verify=False)
    assert str(caught.value).isprintable() and "; download it again" in str(caught.value)


@pytest.mark.parametrize("how", ["bz2", "cut", "flipped"])
def test_an_archive_that_cannot_be_unpacked_is_named_in_one_line(how, tmp_path):
    source = write_cifar10(tmp_path / "files", *([examples(5, (32, 32, 3))] * 2))
    path = source / "cifar-10-binary.tar.gz"
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    packed = {"bz2": bz2.compress(gzip.decompress(path.read_bytes())), "cut": content[:-2000]}
    path.write_bytes(packed.get(how, content))
    with pytest.raises(ValueError, match="tar.gz cannot be read .*; download it again.$"):
        prepare("cifar10", tmp_path / "root", source, verify=False)


def test_nothing_in_an_archive_is_written_elsewhere(tmp_path):
    source = write_cifar10(tmp_path / "files", *([examples(5, (32, 32, 3))] * 2))
    path = source / "cifar-10-binary.tar.gz"
    content = gzip.decompress(path.read_bytes())
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        end = archive.offset
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in (str(tmp_path / "absolute"), "../../above", "../above"):
            add(archive, name, b"x")
        added = buffer.getvalue()[: archive.offset]
    path.write_bytes(gzip.compress(added + content[:end] + content[end:]))
    before = {*tmp_path.rglob("*")}
    prepare("cifar10", tmp_path / "root", source, verify=False)
    made = {*tmp_path.rglob("*")} - before
    assert made and all((tmp_path / "root") in (each, *each.parents) for each in made)
    assert not (tmp_path.parent / "above").exists()


@pytest.mark.parametrize("labels", [np.zeros(4, np.uint8), np.full(5, 10, np.uint8)])
def test_labels_that_do_not_fit_their_images_are_named(labels, tmp_path):
    images = examples(5, (28, 28))[0]
    source = write_mnist(tmp_path / "files", (images, labels), (images, labels))
    with pytest.raises(ValueError, match=r"-labels-idx1-ubyte.gz holds .*; download it again"):
        prepare("mnist", tmp_path / "root", source, verify=False)


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="it is installed")
def test_what_only_tensorflow_can_prepare_says_so(tmp_path):
    with pytest.raises(ImportError, match=r"needs tensorflow: pip install 'bitjax\[tf\]'"):
        prepare("imagenet2012_real", tmp_path / "root", tmp_path)


def test_idx_and_png_keep_every_bit(tmp_path):
    array = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "array.gz").write_bytes(idx(array))
    np.testing.assert_array_equal(read_idx(tmp_path / "array.gz", "again"), array)
    from PIL import Image

    for channels in (1, 3, 4):
        image = picture(5, channels=channels)
        decoded = np.asarray(Image.open(io.BytesIO(encode_png(image))))
        np.testing.assert_array_equal(decoded.reshape(image.shape), image)


def test_the_command_takes_one_tfds_name():
    from bitjax.cli.prepare import main

    for arguments, message in (
        ([], "arguments are required: tfds:NAME"),
        (["cifar10"], "expected one data set, tfds:NAME, got 'cifar10'"),
        (["tfds:mnist", "tfds:cifar10"], r"unknown arguments \['tfds:cifar10'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            main(arguments)


@pytest.mark.slow
def test_the_command_prepares_and_says_how_to_use_it(tmp_path):
    source = write_mnist(tmp_path / "files", *([examples(5, (28, 28))] * 2))
    root = tmp_path / "root"
    command = [sys.executable, "-m", "bitjax", "prepare", "tfds:mnist", "--noverify"]
    command += ["--from", str(source), "--root", str(root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted = f"use it with --config.data.name=tfds:mnist --config.data.root={root}"
    assert done.stdout.splitlines()[-1] == f"prepared in {root / 'mnist/3.0.1'}; {wanted}"
    assert load("tfds:mnist", root=root).num_train == 5
