"""Reads a file only if it is the one that was published."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from bitjax.files.reading import FileError, open_file, read_bytes, reading


class Checksum(NamedTuple):
    """The size and the hash that a file must have."""

    size: int  # bytes
    algorithm: str  # a name in hashlib: 'md5' or 'sha256'
    digest: str  # in hexadecimal


def read_verified(path: Path, expected: Checksum, remedy: str) -> bytes:
    """The bytes of a file with this size and hash; else an error that ends with `remedy`."""
    verify_file(path, expected, remedy)
    return read_bytes(path, remedy, most=expected.size)


def verify_file(path: Path, expected: Checksum, remedy: str) -> None:
    """Raises a ValueError that ends with `remedy` unless a file has this size and hash."""
    with reading(path, remedy), open_file(path, remedy) as file:
        size = os.fstat(file.fileno()).st_size
        if size != expected.size:
            what = f"is damaged: expected {expected.size} bytes, found {size}"
            raise FileError(path, what, remedy)
        # It guards against accidents here, so systems that forbid MD5 for security may use it.
        found = hashlib.file_digest(
            file, lambda: hashlib.new(expected.algorithm, usedforsecurity=False)
        ).hexdigest()
        if found != expected.digest:
            what = f"is damaged: expected {expected.algorithm} {expected.digest}, found {found}"
            raise FileError(path, what, remedy)
