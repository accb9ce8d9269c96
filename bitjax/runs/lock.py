"""The lock of a run folder: one process writes to it, and the operating system lets it go.

The lock is `flock` on a file in the folder. It ends with its process, however that ends, so a run
that was killed can be gone on with at once. On NFS it holds between machines. The file stays where
it is: removing it would let two processes lock two files of one name.
"""

import contextlib
import logging
import os
import re
import socket
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitjax.files.reading import FileError, open_file

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # pyrefly: ignore[bad-assignment]  a module's name cannot be declared otherwise

LOCK = ".lock"
_SIGNED = re.compile(r"process (\d{1,9}) on ([\w.-]{1,100}) ")
# Names the open file that a parent process has locked for its child.
_HANDED = "BITJAX_RUN_LOCK"
_log = logging.getLogger(__name__)


class InUseError(OSError):
    """Another process writes to the folder; the message says which one."""


class LostError(OSError):
    """The folder is no longer the one that was locked: it was removed, or put in its place."""


class Lock:
    """The right to write to a folder, of this process until it closes it or ends."""

    def __init__(self, folder: Path, handle: int):
        self.folder, self._handle = folder, handle
        self._path = os.path.abspath(folder / LOCK)
        self._place = _place(os.fstat(handle))

    @property
    def lost(self) -> bool:
        """Whether the folder under this name is another one now, or none."""
        try:
            return _place(os.stat(self._path)) != self._place
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # of a network, say: who writes there will be told
            return False

    def check(self) -> None:
        """Raises a LostError if what is written now would land in another folder, or in none."""
        if self.lost:
            raise LostError(
                f"the folder {str(self.folder)!r}, or {LOCK} in it, was removed or replaced while "
                "this run wrote there, so the run ends. Its command goes on with what is left."
            )

    def for_child(self, environment: Mapping[str, str]) -> dict[str, Any]:
        """Arguments of `subprocess.Popen` that leave the lock to the child once this is closed."""
        handed = {_HANDED: str(self._handle)}
        return {"pass_fds": (self._handle,), "env": {**environment, **handed}}

    def close(self) -> None:
        """Lets the folder go, unless a child has the lock."""
        if _held.pop(self._place, None) is not None:
            os.close(self._handle)

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


_held: dict[tuple[int, int], Lock] = {}  # of this process


def lock(folder: str | os.PathLike) -> Lock:
    """Locks a folder, which is made if it is not there; in one process always the same lock.

    An InUseError tells that another process has it, any other OSError that it cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Neither a link, which may lead out of the folder, nor a pipe, which may hang.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    handle = os.open(folder / LOCK, flags, 0o666)
    try:
        status = os.fstat(handle)
        place = _place(status)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{folder / LOCK} is no file: remove it")
        if (ours := _held.get(place)) is not None:
            os.close(handle)
            ours.folder, ours._path = folder, os.path.abspath(folder / LOCK)
            return ours
        if (handed := _handed(place)) is not None:
            os.close(handle)
            handle = handed
        else:
            _acquire(folder, handle)
        found = Lock(folder, handle)
        found.check()  # the folder may have gone between the two calls
    except BaseException:  # whatever it is, it leaves no lock held
        os.close(handle)
        raise
    _sign(handle)
    _held[place] = found
    return found


def _acquire(folder: Path, handle: int) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise InUseError(
            f"the folder {str(folder)!r} is in use: {_signed(handle)}. Wait for it, stop it, or "
            f"choose another folder. If its machine is gone, remove {folder / LOCK}."
        ) from None
    except OSError as error:  # some file systems of clusters have no locks
        _log.warning(
            "%s cannot be locked (%s): see to it that no other process uses this folder.",
            folder / LOCK,
            error.strerror,
        )


def _sign(handle: int) -> None:
    """Writes for people who has the lock; on a full disk it stays unsaid."""
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    who = f"process {os.getpid()} on {socket.gethostname()} has it since {since}"
    with contextlib.suppress(OSError):  # the lock holds without it
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, f"{who}\n".encode())


def _signed(handle: int) -> str:
    """Who has the lock, as its file says; that may hold anything."""
    text = " ".join(os.read(handle, 200).decode("utf-8", "replace").split())
    return text if text.startswith("process ") and text.isprintable() else "another process has it"


def holder_of(folder: str | os.PathLike) -> tuple[int, str] | None:
    """The process and the host that a folder's lock names; they may have let it go since."""
    # No lock, or one that cannot be read, names nobody.
    with contextlib.suppress(FileError, OSError), open_file(os.path.join(folder, LOCK)) as file:
        if found := _SIGNED.match(file.read(200).decode("utf-8", "replace")):
            return int(found[1]), found[2]
    return None


def locked_files() -> frozenset[int] | None:
    """Inodes of the files that are locked on this machine; None where the system tells none.

    To try a lock would tell, too, but could refuse a run that starts at that moment.
    """
    try:
        with open("/proc/locks", "rb") as file:
            return frozenset(map(int, re.findall(rb":(\d+) ", file.read())))
    except OSError:
        return None


def _handed(place: tuple[int, int]) -> int | None:
    """The open file that the parent has locked for this process, if it is the one at a place."""
    try:
        handle = int(os.environ.get(_HANDED, ""))
        if _place(os.fstat(handle)) != place:
            return None
    except (ValueError, OSError, OverflowError):
        return None
    del os.environ[_HANDED]
    os.set_inheritable(handle, False)
    return handle


def _place(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _let_go() -> None:
    """Closes a forked child's copies: it may outlive its parent, and the lock would with it."""
    for held in list(_held.values()):
        held.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
