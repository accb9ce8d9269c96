"""Keeps compiled programs between processes: JAX's persistent compilation cache, minded.

JAX writes an entry where it will lie, never replaces one, and warns at every program that it cannot
read or write. So a run that is killed while it writes leaves an entry that every later one stumbles
over. Here such an entry is removed, and there is one line.
"""

import contextlib
import glob
import hashlib
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import jaxlib

from bitjax.files.cache import cache_folder
from bitjax.files.reading import one_line, printable

_MOST = 10**9  # bytes of all programs; one command adds some ten million
_LEFT = 0.75  # of them, once the oldest have gone
_BLOCK = 4096  # bytes: a small file takes a block
_KIND = "jaxlib-"
_ENTRY = "-cache"  # how JAX ends an entry's name
_JUST_NOW = 10.0  # seconds in which an entry is perhaps still being written
_JAX_SAYS = r"Error (reading|writing) persistent compilation cache entry for '(.*?)': (.*)"


def keep_programs() -> Path | None:
    """Keeps what this process compiles, and finds what an earlier one has compiled.

    The command `bitjax` does this by itself. A notebook or a script calls it before it compiles.
    Programs lie in `programs` of the folder that `BITJAX_CACHE_DIR` names, else in `bitjax` among
    the user's caches (`$XDG_CACHE_HOME`, `~/.cache`, `~/Library/Caches`). They take up to 1 GB;
    beyond that, those that were not used for longest are removed. Results are the same, bit for
    bit. A folder that cannot be used is said in one line, and programs are then not kept.

    Returns:
      The folder of this jaxlib and kind of machine. None where nothing is kept: `BITJAX_CACHE_DIR`
      is empty, the folder cannot be used, or JAX's own options (`JAX_COMPILATION_CACHE_DIR`,
      `JAX_ENABLE_COMPILATION_CACHE`) say what is to be done.

    Example:
      >>> bj.keep_programs()  # doctest: +SKIP
    """
    base, options = cache_folder(), jax.config.values
    if base is None or not options["jax_enable_compilation_cache"]:
        return None
    folder = base / "programs" / _kind()
    named = options["jax_compilation_cache_dir"]  # by JAX's variable, or by an earlier call
    if named is not None:
        return folder if named == str(folder) else None
    try:
        _open(folder)
    except OSError as error:
        _say(f"compiled programs are not kept in {folder}: {one_line(error)}")
        return None
    _shrink(folder.parent)
    _mind(folder)
    # The small ones too: 66 of the demo's 96 compile within 0.1 s, in 3 s together.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def _kind() -> str:
    """The name of a folder for programs that run here alike.

    Hosts that share a home may have other processors: a program for the CPU uses instructions that
    not all have, and XLA then prints an error and runs it. XLA also cuts its loops for the number
    of cores that it finds; JAX's key leaves that out.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = [f"model name: {platform.node()}"]  # a folder for each host
    words = ("model name", "flags", "CPU implementer", "CPU part", "CPU variant", "Features")
    told = "\n".join(sorted({line for line in lines if line.startswith(words)}))
    own = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if own else os.cpu_count()
    machine = hashlib.sha256(told.encode()).hexdigest()[:8]
    return f"{_KIND}{jaxlib.__version__}-{platform.machine()}-{machine}-{cores}"


def _open(folder: Path) -> None:
    """Makes the folder, in one that belongs to the user: an entry is code, which is run."""
    own = folder.parent
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.stat(own).st_uid != os.getuid():
        raise PermissionError(f"{own} belongs to another user, who could have this one run code")
    folder.mkdir(exist_ok=True)
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written")


def _mind(folder: Path) -> None:
    """Has JAX's warnings about an entry remove it, and says the first in a line."""
    before, said = warnings.showwarning, set()

    def show(message, *args, **kwargs) -> None:
        found = re.fullmatch(_JAX_SAYS, str(message), re.DOTALL)
        if not found:
            before(message, *args, **kwargs)
            return
        doing, program, reason = found.groups()
        at_work = _remove(folder, program)
        if doing in said or (doing == "reading" and at_work):
            return
        said.add(doing)
        if doing == "reading":
            _say(f"a program kept in {folder} is damaged and compiled again: {one_line(reason)}")
        else:
            _say(f"compiled programs are not kept in {folder}: {one_line(reason)}")

    warnings.showwarning = show
    # Whatever the user's filters say: an error would end the run.
    warnings.filterwarnings("always", message=_JAX_SAYS.partition(" for")[0])


def _remove(folder: Path, program: str) -> bool:
    """Removes a program's entries; whether another process is at work on one of them.

    The warning does not say which entry of that name it is.
    """
    ages = []
    for path in folder.glob(f"{glob.escape(program)}-*{_ENTRY}"):
        with contextlib.suppress(OSError):  # another process removes it too
            ages.append(time.time() - path.stat().st_mtime)
            path.unlink()
    return min(ages, default=0.0) < _JUST_NOW  # one that is not there was removed by another


def _shrink(folder: Path, most: float = _MOST) -> None:
    """Removes the programs that were not used for longest, if all together are too large."""
    kept = sorted(_entries(folder))
    size = sum(entry[1] for entry in kept)
    if size <= most:
        return
    for _, bytes_, path in kept:
        if size <= _LEFT * most:
            return
        size -= bytes_
        with contextlib.suppress(OSError):  # another process removes them too
            os.unlink(path)


def _entries(folder: Path) -> Iterator[tuple[float, int, str]]:
    """When each program was last used, its bytes on the disk, and where it lies."""
    for path in folder.glob(f"{_KIND}*"):
        with contextlib.suppress(OSError), os.scandir(path) as entries:  # it may be gone
            for entry in entries:
                if entry.name.endswith(_ENTRY) and entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(OSError):  # removed since it was listed
                        found = entry.stat(follow_symlinks=False)
                        # Reading sets the first, on most file systems at most once a day.
                        used = max(found.st_atime, found.st_mtime)
                        yield used, -(-found.st_size // _BLOCK) * _BLOCK, entry.path


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody may read it any more
        print(f"warning: {printable(line)}", file=sys.stderr)
