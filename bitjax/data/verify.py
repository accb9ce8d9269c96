"""Reads a file only if it is the one that was published."""

import hashlib
from pathlib import Path
from typing import NamedTuple


class Checksum(NamedTuple):
    """The size and the hash that a file must have."""

    size: int  # bytes
    algorithm: str  # a name in hashlib: 'md5' or 'sha256'
    digest: str  # in hexadecimal


def read_verified(path: Path, expected: Checksum, remedy: str) -> bytes:
    """The bytes of a file with this size and hash; else an error that ends with `remedy`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {remedy}.")
    verify_file(path, expected, remedy)
    return path.read_bytes()


def verify_file(path: Path, expected: Checksum, remedy: str) -> None:
    """Raises a ValueError that ends with `remedy` unless a file has this size and hash."""
    size = path.stat().st_size
    if size != expected.size:
        raise ValueError(
            f"{path} is damaged: expected {expected.size} bytes, found {size}; {remedy}."
        )
    # The hash guards against accidents here, so systems that forbid MD5 for security may use it.
    with path.open("rb") as file:
        found = hashlib.file_digest(
            file, lambda: hashlib.new(expected.algorithm, usedforsecurity=False)
        ).hexdigest()
    if found != expected.digest:
        raise ValueError(
            f"{path} is damaged: expected {expected.algorithm} {expected.digest}, "
            f"found {found}; {remedy}."
        )
