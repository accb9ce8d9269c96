"""bitjax: find out how few bits a neural network needs. `contents.py` is the table of contents."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitjax.contents import *  # noqa: F403  what a checker of types reads

__version__ = "0.1.0"


# The names are loaded with the first of them that is asked for, JAX with them. So the command
# `bitjax` minds Ctrl-C before that second begins, and answers --help without it.
def __getattr__(name: str) -> Any:
    if name == "__all__" or not name.startswith("_"):
        contents = vars(importlib.import_module("bitjax.contents"))
        public = {key: value for key, value in contents.items() if not key.startswith("_")}
        globals().update(public, __all__=list(public))
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module 'bitjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return ["__version__", *__getattr__("__all__")]
