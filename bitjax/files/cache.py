"""The folder of what is kept between runs because it takes long to make: arrays, programs."""

import os
import sys
from pathlib import Path


def cache_folder() -> Path | None:
    """`$BITJAX_CACHE_DIR`, else `bitjax` among the user's caches; None where nothing is kept."""
    named = os.environ.get("BITJAX_CACHE_DIR")
    if named is not None:
        return Path(os.path.expanduser(named)).absolute() if named else None
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # The XDG specification: a relative path is to be ignored.
        return Path(base) / "bitjax"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "bitjax"
