"""Reading a file only if it is the one that was published."""

import hashlib
from pathlib import Path
from typing import NamedTuple


class Checksum(NamedTuple):
    """What a file must be.

    Attributes:
      size: Bytes.
      algorithm: Name of a hash in `hashlib`: 'md5' or 'sha256'.
      digest: The hash in hexadecimal.
    """

    size: int
    algorithm: str
    digest: str


def read_verified(path: Path, expected: Checksum, remedy: str) -> bytes:
    """Read a file and check its size and its hash.

    Args:
      path: The file.
      expected: What it must be.
      remedy: What to do where it is missing or damaged; the end of the error's sentence.

    Returns:
      The file's bytes.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If its size or its hash differs.

    Example:
      >>> read_verified(Path("no/such.gz"), Checksum(3, "md5", "00"), "copy it there")
      Traceback (most recent call last):
      FileNotFoundError: no/such.gz is missing; copy it there.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {remedy}.")
    verify_file(path, expected, remedy)
    return path.read_bytes()


def verify_file(path: Path, expected: Checksum, remedy: str) -> None:
    """Check the size and the hash of a file of any size, a part at a time.

    Args:
      path: The file, which is there.
      expected: What it must be.
      remedy: What to do where it is damaged; the end of the error's sentence.

    Raises:
      ValueError: If its size or its hash differs.
    """
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
