"""Writes files at once or not at all, and says why one could not be written."""

import os
import re
import shutil
from pathlib import Path

# TensorStore raises a ValueError for a full disk, and tells the system's number in its text.
_NUMBER = re.compile(r"os_error_code='(\d+)'")


def trouble_of(error: BaseException) -> str | None:
    """The operating system's reason why something could not be written, or None if it gave none."""
    if isinstance(error.__cause__, OSError):
        return trouble_of(error.__cause__)
    if found := _NUMBER.search(str(error)):
        return os.strerror(int(found[1]))
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return None


def room(path: str | os.PathLike, needed: int) -> str:
    """What a file takes and what is free where `path` is or will be, for an error's message."""
    there = Path(path).absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    return f"it takes up to {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free there"


def unwritten(path: str | os.PathLike, needed: int, error: OSError) -> OSError:
    """The error to raise from `error` for a file of a run that could not be written."""
    return OSError(
        f"{os.fspath(path)} could not be written ({trouble_of(error)}: {room(path, needed)}). Free "
        "space or quota there, then give the same command: a run goes on from its last checkpoint."
    )


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file; a reader sees the old file or the new one, never a part."""
    # Beside the target, because os.replace is atomic within one file system only.
    temporary = Path(f"{os.fspath(path)}.tmp")
    try:
        temporary.write_text(text, "utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise unwritten(path, len(text), error) from error
