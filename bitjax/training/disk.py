"""What to say when a file cannot be written: why, how much it takes, how much is free."""

import os
import re
import shutil
from pathlib import Path

# TensorStore raises a ValueError for a full disk, and tells the system's number in its text.
_NUMBER = re.compile(r"os_error_code='(\d+)'")


def trouble_of(error: BaseException) -> str | None:
    """The operating system's reason why something could not be written, or None if it gave none.

    Example:
      >>> trouble_of(OSError(28, "No space left on device"))
      'No space left on device'
      >>> trouble_of(ValueError("Failed to write: [os_error_code='28']"))
      'No space left on device'
      >>> trouble_of(ValueError("`bits` must be at least 1"))
    """
    if found := _NUMBER.search(str(error)):
        return os.strerror(int(found[1]))
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return None


def room(path: str | os.PathLike, needed: int) -> str:
    """What a file takes and what is free where `path` is or will be, for an error's message.

    Example:
      >>> room("/", 1_500_000)
      'it takes up to 1.5 MB, ... MB are free there'
    """
    there = Path(path).absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    return f"it takes up to {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free there"
