"""Reads arrays from npz files that others wrote, never the Python objects in them."""

import math
import os
from collections.abc import Collection
from typing import IO
from zipfile import ZIP_STORED, ZipFile

import numpy as np

from bitjax.files.reading import AGAIN, FileError, check_size, memory, one_line, open_file, reading

_MOST_UNFOLDED = 1040  # bytes that zlib makes of one at most


def npz_names(path: str | os.PathLike, remedy: str = AGAIN) -> tuple[str, ...]:
    """The names of the arrays in an npz file."""
    with reading(path, remedy), open_file(path, remedy) as file, ZipFile(file) as archive:
        members = archive.namelist()
    if others := [name for name in members if not name.endswith(".npy")]:
        what = f"is a zip file, but {one_line(others[0])!r} in it is no NumPy array"
        raise FileError(path, what, "save it as .npz")
    if len(set(members)) < len(members):
        raise FileError(path, "holds several arrays of one name", remedy)
    return tuple(name.removesuffix(".npy") for name in members)


def read_npz(
    path: str | os.PathLike, names: Collection[str], remedy: str = AGAIN
) -> dict[str, np.ndarray]:
    """Arrays of an npz file by name; what is pickled is never loaded."""
    found = {}
    with reading(path, remedy), open_file(path, remedy) as file, ZipFile(file) as archive:
        members = {name: archive.getinfo(f"{name}.npy") for name in names}
        check_size(path, sum(m.file_size for m in members.values()), memory(), remedy)
        length = os.fstat(file.fileno()).st_size
        for name, member in members.items():
            with archive.open(member) as content:
                size = _array_size(content)
            unfolded = 1 if member.compress_type == ZIP_STORED else _MOST_UNFOLDED
            # Memory is taken for what a header says before it is known whether there is so much.
            if size > min(member.file_size, length * unfolded):
                what = f"is damaged: {one_line(name)} is to have {size:,} bytes, which it has not"
                raise FileError(path, what, remedy)
            with archive.open(member) as content:
                found[name] = np.lib.format.read_array(content, allow_pickle=False)
    return found


def _array_size(content: IO[bytes]) -> int:
    """The bytes that an array takes by its header."""
    short = np.lib.format.read_magic(content) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if short else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(content)
    return math.prod(shape) * dtype.itemsize
