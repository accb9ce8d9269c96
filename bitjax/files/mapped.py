"""Arrays of large files as the system maps them: read where they are used, and never whole."""

import os
import struct
from typing import IO
from zipfile import ZIP_STORED, ZipFile

import numpy as np

from bitjax.files.npz import read_npz
from bitjax.files.reading import AGAIN, FileError, find_file, open_file, read_bytes, reading

LEAST = 2**26  # bytes from which on a file is mapped: reading so many takes 30 ms
_ENCRYPTED = 1  # a flag of a zip file's member


def npz_array(
    path: str | os.PathLike, name: str, remedy: str = AGAIN, *, least: int = LEAST
) -> np.ndarray:
    """An array of an npz file; mapped, and so without its checksum, if it is large and stored."""
    with reading(path, remedy), open_file(path, remedy) as file, ZipFile(file) as archive:
        member = archive.getinfo(f"{name}.npy")
        stored = member.compress_type == ZIP_STORED and not member.flag_bits & _ENCRYPTED
        if stored and member.file_size >= least:
            # The header in front of a member may be longer than the one in the directory.
            file.seek(member.header_offset)
            header = file.read(30)
            if len(header) < 30 or header[:4] != b"PK\3\4":
                raise FileError(path, f"is damaged: {name} is not where it should be", remedy)
            file.seek(sum(struct.unpack("<HH", header[26:])), os.SEEK_CUR)
            return _mapped(path, file, file.tell() + member.file_size, remedy)
    return read_npz(path, [name], remedy)[name]


def npy_array(path: str | os.PathLike, remedy: str = AGAIN, *, least: int = LEAST) -> np.ndarray:
    """The array of an npy file; mapped if it is large."""
    with reading(path, remedy), open_file(path, remedy) as file:
        size = os.fstat(file.fileno()).st_size
        found = _mapped(path, file, size, remedy)
        return found if size >= least else np.array(found)


def bytes_array(path: str | os.PathLike, remedy: str = AGAIN, *, least: int = LEAST) -> np.ndarray:
    """The bytes of a file, uint8 [N]; mapped if it is large."""
    if find_file(path, remedy).st_size < least:
        return np.frombuffer(read_bytes(path, remedy), np.uint8)
    with reading(path, remedy), open_file(path, remedy) as file:
        return np.asarray(np.memmap(file, np.uint8, "r"))


def _mapped(path: str | os.PathLike, file: IO[bytes], end: int, remedy: str) -> np.ndarray:
    """The array that begins where a file stands and must not go beyond `end`."""
    short = np.lib.format.read_magic(file) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if short else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(file)
    if dtype.hasobject:
        raise FileError(path, "holds Python objects, which are never loaded", remedy)
    size = dtype.itemsize
    for length in shape:
        size *= length
    if size > end - file.tell():
        raise FileError(path, f"is damaged: {size:,} bytes are missing at its end", remedy)
    order = "F" if by_columns else "C"
    mapped = np.memmap(file, dtype, "r", offset=file.tell(), shape=shape, order=order)
    return np.asarray(mapped)  # which keeps the map; slices of a `memmap` are slower
