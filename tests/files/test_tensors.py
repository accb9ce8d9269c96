"""Safetensors: what is written is what the format's own library reads, and lies are refused."""

import json
import struct

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from bitjax.files.reading import FileError
from bitjax.files.tensors import read_tensors, write_tensors

ARRAYS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.arange(3, dtype=np.uint8)}


def test_the_library_reads_what_is_written_and_its_files_are_read(tmp_path):
    size = write_tensors(tmp_path / "ours", {"key": "a\nü"}, ARRAYS)
    assert size == (tmp_path / "ours").stat().st_size
    with safe_open(tmp_path / "ours", "numpy") as file:
        assert file.metadata() == {"key": "a\nü"}
        assert all((file.get_tensor(name) == x).all() for name, x in ARRAYS.items())
    save_file({**ARRAYS, "wide": np.ones(2)}, tmp_path / "theirs", {"key": "text"})
    found = read_tensors(tmp_path / "theirs")
    assert found.metadata == {"key": "text"}
    assert all((found.array(name) == x).all() for name, x in ARRAYS.items())
    with pytest.raises(ValueError, match="wide is of dtype F64, not one of U8, I32, F32"):
        found.array("wide")


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


A, B = entry("U8", [4], 0, 4), entry("F32", [2], 4, 12)
LIES = {
    "a hole": ({"a": A, "b": entry("F32", [2], 5, 13)}, "'b' begins at byte 5, and 4 are before"),
    "an overlap": ({"a": A, "b": entry("F32", [2], 0, 8)}, "'b' begins at byte 0, and 4 are"),
    "too few": ({"a": A}, "its arrays have 4 bytes, and 12 are there"),
    "another size": ({"a": A, "b": entry("F32", [3], 4, 12)}, r"'b' of shape \[3\] and 4 bytes"),
    "a huge one": ({"a": A, "b": entry("F32", [2**60, 2**60], 4, 12)}, "'b' of shape .* cannot be"),
    "below 0": ({"a": A, "b": entry("F32", [-2, -1], 4, 12)}, "'b' has a shape or offsets that"),
    "no dtype": ({"a": A, "b": entry("object", [1], 4, 12)}, "'b' has no known dtype"),
    "no entry": ({"a": A, "b": 3}, "'b' must have dtype, shape and data_offsets"),
    "a text": ({"a": A, "b": B, "__metadata__": {"a": 1}}, "__metadata__ must map names to texts"),
}


def written(path, text, data=bytes(12)):
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize("header, said", LIES.values(), ids=LIES)
def test_a_header_that_lies_is_refused(tmp_path, header, said):
    path = written(tmp_path / "file", json.dumps(header).encode())
    with pytest.raises(FileError, match=rf"file is damaged \(its header: {said}"):
        read_tensors(path)


def test_a_name_that_stands_there_twice_is_refused(tmp_path):
    text = json.dumps({"a": A, "b": B})[:-1] + f', "a": {json.dumps(A)}}}'
    with pytest.raises(FileError, match="a name stands there twice: 'a'"):
        read_tensors(written(tmp_path / "file", text.encode()))


def test_a_file_that_is_cut_or_foreign_is_refused(tmp_path):
    path = tmp_path / "file"
    write_tensors(path, {}, ARRAYS)
    content = path.read_bytes()
    path.write_bytes(content[:100])
    with pytest.raises(FileError, match="is damaged: its header is to have 1.. bytes of 100"):
        read_tensors(path)
    path.write_bytes(content[:-1])
    with pytest.raises(FileError, match="its arrays have 27 bytes, and 26 are there"):
        read_tensors(path)
    path.write_bytes(b"PK\x03\x04" + content)
    with pytest.raises(FileError, match="is no safetensors file"):
        read_tensors(path)
