"""A file that another wrote is read whole, or is one line: what is wrong and what to do."""

import io
import json
import os
import pickle
import random
import socket
import threading
import tracemalloc
import zipfile

import numpy as np
import pytest

from bitjax.files.npz import npz_names, read_npz
from bitjax.files.reading import (
    FileError,
    MissingError,
    one_line,
    open_file,
    parse_json,
    read_bytes,
    read_json,
    read_text,
    reading,
)


def complaint(read, path) -> str:
    """What a reader says, which must come at once and be one printable line."""
    told = []

    def attempt():
        with pytest.raises(FileError) as caught:
            read(path)
        told.append(str(caught.value))

    waiting = threading.Thread(target=attempt, daemon=True)
    waiting.start()
    waiting.join(5)
    assert told, "it waits"
    assert told[0].isprintable() and "pickle" not in told[0]
    return told[0]


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


@pytest.mark.parametrize("read", [open_file, read_bytes, read_text, read_json, npz_names])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "is missing; copy it again, or make it again."),
        (lambda path: path.mkdir(), "is a folder, not a file; copy it"),
        (os.mkfifo, "is a pipe, not a file; copy it"),
        (make_socket, "is a socket, not a file; copy it"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file; copy it"),
        (lambda path: path.symlink_to(path), "cannot be read (OSError: Too many levels of"),
    ],
)
def test_what_is_no_regular_file_is_refused_at_once(read, make, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    path = tmp_path / "there"
    make(path.relative_to(tmp_path) if make is make_socket else path)
    assert complaint(read, path).startswith(f"{path} {said}")


def test_a_missing_file_is_an_error_of_its_own_kind(tmp_path):
    for kind in (MissingError, FileNotFoundError, ValueError):
        with pytest.raises(kind, match=r"x is missing; give another\."):
            read_text(tmp_path / "x", "give another")


def test_a_name_cannot_command_a_terminal(tmp_path):
    said = complaint(read_bytes, tmp_path / "a\x1b]0;mine\x07\nb\u202ec")
    assert "a\\x1b]0;mine\\x07\\nb\\u202ec is missing" in said
    assert one_line("a\n\n b\x1b[2J" + "c" * 400).startswith("a b\\x1b[2Jccc")


def test_a_file_is_read_up_to_its_bound(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_bytes(path, most=5) == b"12345"
    said = complaint(lambda path: read_bytes(path, most=4), path)
    assert "is too large: 5 bytes, at most 4 are read" in said
    with path.open("ab") as file:
        file.truncate(1 << 40)  # of holes, which take no space
    assert "is too large: 1,099,511,627,776 bytes" in complaint(read_text, path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "is nested too deeply"),
        ("[" * 200 + "]" * 200, "is nested too deeply"),
        ('{"a":' * 100 + "1" + "}" * 100, "is nested too deeply"),
        ("9" * 5000, "integer"),
        ("1e999", "1e999 is too large a number"),
        ("[-1e400]", "-1e400 is too large a number"),
        ("NaN", "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": ', "Expecting value"),
        ("", "Expecting value"),
        (b"\xff\xfe\x00", "utf-16"),
        (b'"\xe4"', "utf-8"),
    ],
)
def test_json_that_no_value_can_be_made_of_is_one_line(text, said, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = complaint(read_json, path)
    assert found.startswith(f"{path} is not JSON (") and said in found


def test_json_of_ordinary_depth_is_read(tmp_path):
    value = {"a": [{"b": [1, 2.5, None, True, "x"]}] * 3}
    assert parse_json(json.dumps(value)) == value
    assert parse_json("[" * 60 + "]" * 60)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 70 + "]" * 70)


def npz_bytes(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def read_all(path):
    return read_npz(path, npz_names(path))


def test_arrays_are_read_by_name(tmp_path):
    path = tmp_path / "a.npz"
    arrays = {"a": np.arange(6).reshape(2, 3), "b/c": np.float32(2)}
    path.write_bytes(npz_bytes(**arrays))
    assert npz_names(path) == ("a", "b/c")
    found = read_npz(path, ["b/c"])
    assert list(found) == ["b/c"] and found["b/c"] == 2 and found["b/c"].dtype == np.float32
    np.testing.assert_array_equal(read_all(path)["a"], arrays["a"])


class Danger:
    def __reduce__(self):
        return (pytest.fail, ("it was loaded",))


def test_python_objects_are_never_loaded_nor_is_it_advised(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.array([Danger()]))
    said = complaint(read_all, path)
    assert "it holds Python objects, which are never loaded" in said and "allow" not in said
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", pickle.dumps(Danger()))
    assert "cannot be read" in complaint(read_all, path)


def header(shape: str, dtype: str = "<f4") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 8


@pytest.mark.parametrize(
    "content",
    [
        header("(1" + "0" * 15 + ",)"),
        header("(3, -2)"),
        header("(4000000000, 4000000000, 4000000000)"),
        header("(2,)", "|O"),
        header("(" * 300),
        header("(9L,)"),
        b"text",
        b"",
    ],
)
def test_an_array_that_lies_about_itself_is_one_line(content, tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", content)
    complaint(read_all, path)


@pytest.mark.parametrize("claim", [200, 2**31])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_memory_is_not_taken_for_what_an_array_has_not(claim, compression, tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a.npy", header("(2000000000,)", "|u1"))
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")  # the archive's own word on the array's size
    content[entry + 24 : entry + 28] = claim.to_bytes(4, "little")
    path.write_bytes(content)
    tracemalloc.start()
    said = complaint(read_all, path)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()
    assert "a is to have 2,000,000,000 bytes, which it has not" in said


def test_a_zip_that_unfolds_to_more_than_memory_is_not_unfolded(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    path.write_bytes(npz_bytes(a=np.zeros(100_000, np.uint8)))
    monkeypatch.setattr(os, "sysconf", lambda name: 300)  # of 300 pages of 300 bytes
    assert "is too large: 100,128 bytes, at most 90,000 are read" in complaint(read_all, path)


def test_damaged_arrays_are_one_line_or_arrays(tmp_path):
    path = tmp_path / "a.npz"
    draw = random.Random(0)
    arrays = {"a": np.arange(50.0), "b": np.arange(6, dtype=np.int32).reshape(2, 3)}
    stored, packed = io.BytesIO(), npz_bytes(**arrays)
    np.savez(stored, **arrays)
    refused = 0
    for content in [stored.getvalue(), packed] * 30:
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        if draw.random() < 0.2:
            del damaged[draw.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            read_all(path)
        except FileError as error:
            refused += 1
            assert str(error).isprintable() and "allow_pickle" not in str(error)
    assert refused > 40


def test_a_device_without_memory_is_no_damage_of_the_file(tmp_path):
    # A checkpoint that was good would be removed, as its remedy says.
    with pytest.raises(FileError) as caught, reading(tmp_path / "100", "remove it"):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")
    assert "takes more memory than is free" in str(caught.value)
    assert "remove" not in str(caught.value)
