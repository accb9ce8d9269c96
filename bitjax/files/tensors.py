"""Reads and writes safetensors: a JSON header that names arrays, and their bytes one after another.

The format is that of https://github.com/huggingface/safetensors: 8 bytes with the header's length,
the header, the data. A header that lies about sizes is refused before memory is taken.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bitjax.files.reading import AGAIN, FileError, memory, one_line, parse_json, read_bytes
from bitjax.files.writing import replacing

_ALIGN = 8  # bytes: what readers that map a file into memory want
_MOST_HEADER = 100_000_000  # of the format
_DTYPES = {"U8": np.dtype("u1"), "I32": np.dtype("<i4"), "F32": np.dtype("<f4")}
_ITEMS = {"BOOL": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "U64": 8,
          "I64": 8, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip
_NAME = "__metadata__"


class Tensors(NamedTuple):
    """What a file holds: texts by name, and arrays by name."""

    metadata: dict[str, str]
    entries: dict[str, tuple[str, tuple[int, ...], int, int]]  # dtype, shape, begin, end
    content: memoryview

    def array(self, name: str) -> np.ndarray:
        """An array of bytes, int32 or float32; it cannot be written to."""
        kind, shape, begin, end = self.entries[name]
        if kind not in _DTYPES:
            raise ValueError(f"{name} is of dtype {kind}, not one of {', '.join(_DTYPES)}")
        return np.frombuffer(self.content[begin:end], _DTYPES[kind]).reshape(shape)


def write_tensors(
    path: str | os.PathLike, metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]
) -> int:
    """Writes arrays of bytes, int32 and float32 in this order; returns the file's size."""
    names = {dtype: name for name, dtype in _DTYPES.items()}
    header: dict[str, Any] = {_NAME: dict(metadata)}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        shape = list(array.shape)
        header[name] = {"dtype": names[array.dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).data)
    return 8 + len(text) + end


def read_tensors(path: str | os.PathLike, remedy: str = AGAIN) -> Tensors:
    """A file with all of its bytes, whose header is true to them."""
    content = memoryview(read_bytes(path, remedy, most=memory() or 1 << 40))
    length = struct.unpack("<Q", content[:8])[0] if len(content) >= 8 else 0
    if length < 2 or content[8:9] != b"{":
        raise FileError(path, "is no safetensors file", remedy)
    if length > min(len(content) - 8, _MOST_HEADER):
        said = f"is damaged: its header is to have {length:,} bytes of {len(content):,}"
        raise FileError(path, said, remedy)
    try:
        text = bytes(content[8 : 8 + length])
        json.loads(text, object_pairs_hook=_once)
        header = parse_json(text)
        metadata, entries = _checked(header, len(content) - 8 - length)
    except (ValueError, RecursionError) as error:
        raise FileError(path, f"is damaged (its header: {one_line(error)})", remedy) from None
    return Tensors(metadata, entries, content[8 + length :])


def _once(pairs):
    """An object of JSON, of which readers that take the first or the last value see the same."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"a name stands there twice: {max(names, key=names.count)!r}")
    return None


def _checked(header, size):
    """The texts and the entries of a header; together the arrays are exactly the data."""
    metadata = header.pop(_NAME, {})
    if not isinstance(metadata, dict) or not all(isinstance(t, str) for t in metadata.values()):
        raise ValueError(f"{_NAME} must map names to texts")
    entries, end = {}, 0
    for name, entry in header.items():
        entries[name] = _entry(name, entry)
    for name, (_, _, begin, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != end:
            raise ValueError(f"{name!r} begins at byte {begin:,}, and {end:,} are before it")
        end = stop
    if end != size:
        raise ValueError(f"its arrays have {end:,} bytes, and {size:,} are there")
    return metadata, entries


def _entry(name, entry):
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} must have dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or not (kind in _DTYPES or kind in _ITEMS):
        raise ValueError(f"{name!r} has no known dtype")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"{name!r} has a shape or offsets that are no sizes")
    if len(shape) > 32 or len(offsets) != 2:
        raise ValueError(f"{name!r} has too many axes, or not two offsets")
    item = _DTYPES[kind].itemsize if kind in _DTYPES else _ITEMS[kind]
    if offsets[1] - offsets[0] != math.prod(shape) * item:
        raise ValueError(
            f"{name!r} of shape {shape} and {item} bytes an element cannot be bytes "
            f"{offsets[0]:,} to {offsets[1]:,}"
        )
    return kind, tuple(shape), *offsets
