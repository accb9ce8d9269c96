"""Writes files at once or not at all, and says why one could not be written and what to do.

A file is written under a name that nobody can foresee and then renamed, so a link that somebody put
beside it is never followed out of its folder.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from bitjax.files.reading import open_now, printable

# TensorStore raises a ValueError for a full disk, and tells the system's number in its text.
_NUMBER = re.compile(r"os_error_code='(\d+)'")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REMEDIES = {
    **dict.fromkeys(_FULL, "Free space or quota there"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "Change its permissions or choose another place"),
    errno.EROFS: "Choose a place that can be written",
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR), "Remove what stands there or choose another"),
    **dict.fromkeys(
        (errno.EEXIST, errno.ELOOP, errno.ENXIO), "Remove what stands there or choose another"
    ),
    errno.ENOENT: "Make the folder that it is to be in",
    errno.ENAMETOOLONG: "Choose a shorter name",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "Allow more open files (ulimit -n)"),
}


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file; a reader sees the old file or the new one, never a part."""
    with replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A file to write to that takes the place of `path` once the block has ended well."""
    # Beside the target, because os.replace is atomic within one file system only.
    temporary = Path(os.path.dirname(path)) / f".{secrets.token_hex(8)}.tmp"
    size = 0
    try:
        with os.fdopen(open_now(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            try:
                yield file
            finally:
                size = file.tell()
        os.replace(temporary, path)
    except OSError as error:
        raise unwritten(path, size, error) from error
    finally:
        with contextlib.suppress(OSError):  # replaced, or the error is on its way
            temporary.unlink()


def open_to_append(path: str | os.PathLike) -> int:
    """A handle to append to a regular file, made if it is not there; a link is not followed."""
    try:
        handle = open_now(
            path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        )
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise FileExistsError(errno.EEXIST, "what stands there is no regular file")
    except OSError as error:
        raise unwritten(path, 0, error) from error
    return handle


def remove(path: Path) -> None:
    """Removes a folder, or what somebody put in its place; a link alone, not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_leftovers(folder: Path) -> None:
    """Removes what writers that were killed have left in a folder that no one writes to now."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()


def trouble_of(error: BaseException) -> str | None:
    """The operating system's reason why something could not be written, or None if it gave none."""
    number = _number_of(error)
    if number is not None:
        return os.strerror(number)
    return str(error) if isinstance(error, OSError) else None


def why_not(path: str | os.PathLike, needed: int, error: BaseException) -> tuple[str, str]:
    """The operating system's reason why a file of so many bytes was not written; what to do."""
    number, reason = _number_of(error), trouble_of(error)
    if number in _FULL:
        there = Path(path).absolute()
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free / 1e6
        reason = f"{reason}: it takes up to {needed / 1e6:.1f} MB, {free:.1f} MB are free there"
    return str(reason), _REMEDIES.get(number or 0, "Look after the disk or choose another place")


def unwritten(path: str | os.PathLike, needed: int, error: OSError) -> OSError:
    """The error to raise from `error` for a file that could not be written."""
    reason, remedy = why_not(path, needed, error)
    again = "then give the same command: a run goes on from its last checkpoint"
    return OSError(
        f"{printable(os.fspath(path))} could not be written ({reason}). {remedy}, {again}."
    )


def _number_of(error: BaseException) -> int | None:
    if isinstance(error.__cause__, OSError):
        return _number_of(error.__cause__)
    if found := _NUMBER.search(str(error)):
        return int(found[1])
    return error.errno if isinstance(error, OSError) else None
