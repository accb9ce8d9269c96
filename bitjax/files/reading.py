"""Reads files that others wrote: regular ones only, without waiting, up to a bound.

A file from elsewhere may be damaged, huge, a pipe, or made to do harm. Whatever goes wrong with it
is a `FileError`: one line with the file's name, what is wrong, and what to do.
"""

import contextlib
import io
import json
import os
import stat
from collections.abc import Iterator
from typing import Any, NoReturn

_MOST_BYTES = 1 << 30  # of a file that is read whole
_MOST_DEPTH = 64  # of lists and objects in JSON: what goes through them after us is recursive
AGAIN = "copy it again, or make it again"


class FileError(ValueError):
    """A file that cannot be used; `what` is wrong with it, in words that go on after its name."""

    def __init__(self, path: str | os.PathLike, what: str, remedy: str = AGAIN):
        super().__init__(f"{printable(os.fspath(path))} {what}; {remedy}.")
        self.what = what


class MissingError(FileError, FileNotFoundError):
    """A file that is not there."""


def printable(text: object) -> str:
    """A text for a message: what a terminal would obey is an escape, such as `\\x1b`."""
    found = str(text)
    if found.isprintable():
        return found
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in found)


def one_line(text: object, most: int = 300) -> str:
    """A text, or an error's, for a message: one line, printable, not too long."""
    found = printable(" ".join(str(text).split()))
    return found if len(found) <= most else f"{found[: most - 3]}..."


def reason_of(error: BaseException) -> str:
    """The kind and the text of an error of whatever library, in one line."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    if "pickle" in reason:  # NumPy's advice is to load it all the same
        reason = "it holds Python objects, which are never loaded"
    if isinstance(error, AttributeError | TypeError | KeyError | IndexError):
        return "it is of another form"  # what a reader that does not look at types says of it
    if type(error) is ValueError and reason:  # its kind says nothing
        return reason
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


@contextlib.contextmanager
def reading(path: str | os.PathLike, remedy: str = AGAIN) -> Iterator[None]:
    """Makes whatever goes wrong while a file is read a FileError, which is one line."""
    try:
        yield
    except FileError:
        raise
    except FileNotFoundError:
        raise MissingError(path, "is missing", remedy) from None
    except PermissionError:
        raise FileError(path, "may not be read", "change its permissions") from None
    except (IsADirectoryError, NotADirectoryError) as error:
        raise FileError(path, f"cannot be read ({error.strerror})", remedy) from None
    except MemoryError:
        raise FileError(path, "asks for more memory than there is", remedy) from None
    except RecursionError:
        raise FileError(path, "is damaged (it is nested too deeply)", remedy) from None
    except (AttributeError, TypeError, LookupError, AssertionError) as error:  # of a reader misled
        raise FileError(path, "is damaged (it is not what its format says)", remedy) from error
    except Exception as error:  # of any kind: readers of damaged files raise what they like
        if "RESOURCE_EXHAUSTED" in str(error):  # JAX says so of a device's memory; the file is good
            what = f"takes more memory than is free ({reason_of(error)})"
            raise FileError(path, what, "free some, or use a larger device") from error
        raise FileError(path, f"cannot be read ({reason_of(error)})", remedy) from error


def open_file(
    path: str | os.PathLike, remedy: str = AGAIN, *, most: int | None = None
) -> io.BufferedReader:
    """Opens a regular file to read it; what is none, or has more than `most` bytes, is refused."""
    with reading(path, remedy):
        find_file(path, remedy)  # first, since to open a device may move it
        handle = open_now(path, os.O_RDONLY)
        try:
            found = os.fstat(handle)
            _check_regular(path, found, remedy)
            check_size(path, found.st_size, most, remedy)
            return os.fdopen(handle, "rb")
        except BaseException:  # whatever it is, it leaves no file open
            os.close(handle)
            raise


def find_file(path: str | os.PathLike, remedy: str = AGAIN) -> os.stat_result:
    """The size and the times of a regular file, which is not opened."""
    with reading(path, remedy):
        found = os.stat(path)
        _check_regular(path, found, remedy)
        return found


def read_bytes(path: str | os.PathLike, remedy: str = AGAIN, *, most: int = _MOST_BYTES) -> bytes:
    """The content of a regular file of at most `most` bytes."""
    with reading(path, remedy), open_file(path, remedy, most=most) as file:
        size = os.fstat(file.fileno()).st_size  # `read` takes the memory that it is asked for
        content = file.read(min(size, most) + 1)  # it may grow
        check_size(path, len(content), most, remedy)
        return content


def read_text(path: str | os.PathLike, remedy: str = AGAIN, *, most: int = _MOST_BYTES) -> str:
    """The text of a regular file in UTF-8."""
    content = read_bytes(path, remedy, most=most)
    with reading(path, remedy):
        return content.decode("utf-8")


def read_json(path: str | os.PathLike, remedy: str = AGAIN, *, most: int = 1 << 26) -> Any:
    """What a file of JSON holds."""
    content = read_bytes(path, remedy, most=most)
    try:
        return parse_json(content)
    except ValueError as error:
        raise FileError(path, f"is not JSON ({one_line(error)})", remedy) from None


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, whose numbers are finite; any fault is a ValueError."""
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [value]
    for _ in range(_MOST_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large a number")
    return value


def open_now(path: str | os.PathLike, flags: int) -> int:
    """The handle of a file; a pipe does not wait for its other end."""
    for name in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY"):
        flags |= getattr(os, name, 0)  # which some systems lack
    return os.open(path, flags, 0o666)


def check_folder(folder: str | os.PathLike, remedy: str = AGAIN) -> None:
    """Refuses a folder with more than regular files, or with more than memory can hold.

    It is for readers of others: they wait for a pipe, and TensorStore ends the process where it
    gets no memory.
    """
    size = 0
    for place, _, names in os.walk(folder):
        for path in (os.path.join(place, name) for name in names):
            with reading(path, remedy):
                found = os.stat(path)
                _check_regular(path, found, remedy)
                size += found.st_size
    check_size(folder, size, memory(), remedy)


def _check_regular(path: str | os.PathLike, found: os.stat_result, remedy: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
        kind = kinds.get(stat.S_IFMT(found.st_mode), "device")
        raise FileError(path, f"is a {kind}, not a file", remedy)


def check_size(path: str | os.PathLike, size: int, most: int | None, remedy: str) -> None:
    """Refuses a file that would take more memory than it may."""
    if most is not None and size > most:
        raise FileError(path, f"is too large: {size:,} bytes, at most {most:,} are read", remedy)


def memory() -> int | None:
    """Bytes of memory that this machine has, where it says so: a zip file can unfold to more."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
