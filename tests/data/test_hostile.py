"""Damaged and hostile files: one line that names the file, at once; nothing is run or unpickled."""

import json
import os
import pickle
import random
import shutil
import signal
import socket
import struct
import sys
import tracemalloc
import zlib

import numpy as np
import pytest

from bitjax.data import load
from bitjax.data.cache import cached
from bitjax.data.prepare import prepare
from tests.data.sets import encoded, picture, write_folder, write_tfds


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITJAX_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A small set as TFDS leaves it."""
    root = tmp_path_factory.mktemp("tfds")
    records = [{"image": encoded(picture(i)), "label": i % 4, "id": f"{i}"} for i in range(9)]
    write_tfds(root, "small", {"train": records, "test": records[:3]})
    return root / "small"


def complaint(read, trace=False) -> str:
    """What is said, which must come at once, without much memory, and be one printable line."""

    def late(*_):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    if trace:  # which makes all slower
        tracemalloc.start()
    try:
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            read()
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    said = str(caught.value)
    assert said.isprintable() and "pickle" not in said
    return said


class Danger:
    def __reduce__(self):
        return (pytest.fail, ("it was loaded",))


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path is short
        one.bind(path.name)
        os.chdir(here)


def make_huge(path):
    path.touch()
    os.truncate(path, 2**42)  # of which the disk holds nothing


HOSTILE = {
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "socket": make_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
    "nowhere": lambda path: path.symlink_to(path.with_name("nowhere")),
    "huge": make_huge,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"text"),
    "pickle": lambda path: path.write_bytes(pickle.dumps(Danger())),
    "postscript": lambda path: path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    ),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
}


def an_npz(root, _):
    return root / "own.npz", lambda: load("npz:own.npz", root=root)


def an_image(root, _):
    write_folder(root, "train", (1,))
    write_folder(root, "val", (1,))
    return root / "val/class0/0000.png", lambda: load("folder:.", root=root)


def a_published_file(root, _):
    (root / "fashion_mnist").mkdir()
    path = root / "fashion_mnist/train-images-idx3-ubyte.gz"
    return path, lambda: load("fashion_mnist", root=root)


def an_archive(root, _):
    path = root / "cifar-10-binary.tar.gz"
    return path, lambda: prepare("cifar10", root / "root", root, verify=False)


def of_a_prepared_set(file):
    def place(root, prepared):
        shutil.copytree(prepared, root / "small")
        (path,) = (root / "small/1.2.0").glob(file)
        return path, lambda: load("tfds:small", root=root)

    return place


PLACES = {
    "npz": an_npz,
    "image": an_image,
    "published": a_published_file,
    "archive": an_archive,
    "info": of_a_prepared_set("dataset_info.json"),
    "features": of_a_prepared_set("features.json"),
    "records": of_a_prepared_set("*train*"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_is_no_good_file_is_named_at_once_in_one_line(place, hostile, prepared, tmp_path):
    path, read = PLACES[place](tmp_path, prepared)
    path.unlink(missing_ok=True)
    HOSTILE[hostile](path)
    said = complaint(read, trace=hostile in ("device", "huge"))
    where = path.parent.name if place == "records" else path.name
    assert where in said and "; " in said  # what to do


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_entry_in_the_cache_is_made_again(hostile, tmp_path):
    HOSTILE[hostile](tmp_path / "key.npy")
    np.testing.assert_array_equal(cached("key", lambda: np.arange(3), tmp_path), [0, 1, 2])


def damaged(content, count):
    """The content cut short, and with some bytes changed."""
    draw = random.Random(0)
    for number in range(count):
        if number % 4 == 0:
            yield content[: draw.randrange(len(content))]
            continue
        changed = bytearray(content)
        for _ in range(number % 4):
            changed[draw.randrange(len(content))] = draw.choice((0, 127, 255, draw.randrange(256)))
        yield bytes(changed)


FORMS = {"PNG": "png", "JPEG": "jpg", "GIF": "gif", "TIFF": "tif", "WEBP": "webp", "BMP": "bmp"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_damaged_image_is_one_line_or_an_image(form, count, tmp_path):
    write_folder(tmp_path, "train", (1, 1))
    write_folder(tmp_path, "val", (1, 1))
    path = tmp_path / f"train/class0/x.{FORMS[form]}"
    refused = 0
    for content in damaged(encoded(picture(0), form), count):
        path.write_bytes(content)
        try:
            load("folder:.", root=tmp_path)
        except ValueError as error:
            assert path.name in str(error) and str(error).isprintable()
            refused += 1
    assert refused > count / 10


def png_of(width, height):
    """A PNG file of less than 200 bytes that says it has so many pixels."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(b"\0" * 999))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_000, 20_000, 2**31 - 1])
def test_a_decompression_bomb_is_not_unpacked(side, tmp_path):
    write_folder(tmp_path, "train", (1, 1))
    (tmp_path / "train/class0/bomb.png").write_bytes(png_of(side, side))
    options = {"validation": 1, "eval_split": "validation"}
    said = complaint(lambda: load("folder:.", root=tmp_path, **options), trace=True)
    assert "bomb.png is no image (it has more than 89478485 pixels); copy" in said


def test_names_that_are_no_text_are_names_and_printed_with_escapes(tmp_path):
    root = os.fsencode(tmp_path)
    for split in (b"train", b"val"):
        for label in (b"\xff\xfe", b"two\nlines"):
            os.makedirs(root + b"/" + split + b"/" + label)
            with open(root + b"/" + split + b"/" + label + b"/\x1b[2J.png", "wb") as file:
                file.write(encoded(picture(0)))
    assert load("folder:.", root=tmp_path).labels.tolist() == [0, 1]
    with open(root + b"/train/\xff\xfe/\x1b[2J.png", "wb") as file:
        file.write(b"text")
    assert r"\udcff\udcfe/\x1b[2J.png is no image" in complaint(
        lambda: load("folder:.", root=tmp_path)
    )


@pytest.mark.parametrize("link", ["nowhere", "loop"])
def test_a_class_that_is_a_link_to_nowhere_is_not_passed_over(link, tmp_path):
    write_folder(tmp_path, "train", (1, 1))
    HOSTILE[link](tmp_path / "train/class00")
    assert "train/class00" in complaint(lambda: load("folder:.", root=tmp_path))


@pytest.mark.parametrize("name", ["small/..", "small/.", "small/...", "../small", "small/../x", ""])
def test_a_name_does_not_lead_out_of_the_root(name, prepared):
    said = complaint(lambda: load(f"tfds:{name}", root=prepared.parent))
    assert "must be" in said


@pytest.mark.parametrize("kind", ["npz", "folder", "tfds"])
def test_the_home_of_nobody_and_names_that_are_no_paths_are_one_line(kind, prepared):
    for path in ("~nobody-of-this-name/x", "a\0b", "a" * 300, "two\nlines"):
        complaint(lambda path=path: load(f"{kind}:{path}"))
    complaint(lambda: load("tfds:cifar10", root="~nobody-of-this-name"))


def test_no_program_that_features_json_names_is_imported(prepared, tmp_path, monkeypatch):
    (tmp_path / "a_program.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(prepared, tmp_path / "small")
    path = tmp_path / "small/1.2.0/features.json"
    features = json.loads(path.read_text())
    features["featuresDict"]["features"]["id"]["pythonClassName"] = "a_program.Feature"
    path.write_text(json.dumps(features))
    said = complaint(lambda: load("tfds:small", root=tmp_path))
    assert "features.json names the class 'a_program.Feature', which is none of TFDS; remo" in said
    assert "a_program" not in sys.modules


def places_in(value, way=()):
    yield way
    inside = (
        value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    )
    for key in inside:
        yield from places_in(value[key], (*way, key))


VALUES = (None, -1, 2**63, 2**70, 1e308, "x", [], {}, [[]], "../../x", True)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("every", [20, pytest.param(1, marks=pytest.mark.slow)])
def test_what_a_prepared_sets_json_says_is_not_believed(file, every, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "small")
    path = tmp_path / "small/1.2.0" / file
    content = json.loads(path.read_text())
    cases = [(way, value) for way in places_in(content) if way for value in VALUES]
    refused = 0
    for way, value in cases[::every]:
        changed = json.loads(json.dumps(content))
        inside = changed
        for key in way[:-1]:
            inside = inside[key]
        inside[way[-1]] = value
        path.write_text(json.dumps(changed))
        try:
            load("tfds:small", root=tmp_path)
        except (ValueError, FileNotFoundError) as error:
            assert str(error).isprintable(), (way, value)
            refused += 1
    assert refused > len(cases) / every / 2
