"""Reads trees that Orbax wrote, and keeps Orbax quiet and from hanging at the end."""

import logging
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

PyTree = Any

_ORBAX = f"{os.sep}orbax{os.sep}"


def load_tree(path: Path, abstract: PyTree, *, partial: bool = False) -> PyTree:
    """Reads the tree `state` of an Orbax checkpoint into the places that a template names.

    A template that is `partial` names a part of it.
    """

    def ask(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is not None:
            return leaf
        if _is_key(leaf):
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
        # Without a sharding Orbax would put a leaf where it was saved, and commit it there.
        return np.empty(leaf.shape, leaf.dtype)

    def give(leaf: Any, loaded: Any) -> Any:
        if isinstance(leaf, np.ndarray) or getattr(leaf, "sharding", None) is not None:
            return loaded
        if _is_key(leaf):
            data = jnp.array(np.asarray(jax.random.key_data(loaded)))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(loaded))
        return jnp.array(loaded)  # A copy: memory that NumPy owns cannot be donated.

    # Of an array only what a new one would have counts: its device, if it was put there.
    abstract = jax.tree.map(
        lambda leaf: (
            jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=leaf.sharding if leaf.committed else None
            )
            if isinstance(leaf, jax.Array)
            else leaf
        ),
        abstract,
    )
    options = ocp.options.PyTreeOptions
    part = options.Loading(partial_load=partial)
    with ocp.Context(pytree_options=options(loading=part)):
        asked = {"state": jax.tree.map(ask, abstract)}
        loaded = ocp.load_checkpointables(str(path), asked)["state"]
    return jax.tree.map(give, abstract, loaded)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_host(leaf: Any) -> Any:
    """The leaf as NumPy has it, where this process holds all of it."""
    if isinstance(leaf, jax.Array) and leaf.is_fully_addressable and not _is_key(leaf):
        return np.asarray(leaf)
    return leaf


class _NoOrbaxChatter(logging.Filter):
    """Drops what Orbax logs: several lines for every save, and tracebacks of what it raises too."""

    def filter(self, record: logging.LogRecord) -> bool:
        # absl gives its own file as the place of an exception that is logged.
        stack = traceback.extract_tb(record.exc_info[2]) if record.exc_info else ()
        places = [record.pathname, *(frame.filename for frame in stack)]
        places += [str(record.exc_info[1])] if record.exc_info else []
        return record.levelno > logging.ERROR or not any(
            _ORBAX in place or "tensorstore_spec" in place for place in places
        )


def quiet_orbax() -> None:
    """Keeps Orbax's own messages out of the log, and what its threads say behind an error."""
    # asyncio logs the errors of tasks that Orbax did not wait for once one of them had failed.
    for log in (logging.getLogger("absl"), logging.getLogger("asyncio")):
        if not any(isinstance(known, _NoOrbaxChatter) for known in log.filters):
            log.addFilter(_NoOrbaxChatter())
    if not isinstance(sys.unraisablehook, _NoEndedLoops):
        sys.unraisablehook = _NoEndedLoops(sys.unraisablehook)


class _NoEndedLoops:
    """Drops what TensorStore tells Orbax's event loop once the first of several reads has failed.

    The loop has ended by then, and Python has an exception that no one can catch.
    """

    def __init__(self, before: Callable[[Any], Any]):
        self._before = before

    def __call__(self, told: Any) -> None:
        error = told.exc_value
        if not (isinstance(error, RuntimeError) and "loop is closed" in str(error)):
            self._before(told)


_unfinished: weakref.WeakSet[Any] = weakref.WeakSet()


def finish_before_exit(checkpoints: Any) -> None:
    """Has the interpreter call `checkpoints.join()` when it ends, before it ends thread pools."""
    _unfinished.add(checkpoints)


def _finish_all() -> None:
    for checkpoints in list(_unfinished):
        checkpoints.join()


# A program may end without closing its Checkpoints. Once the interpreter has begun to end its
# thread pools a save in progress cannot finish: Orbax 0.12.8 then waits for minutes. atexit comes
# too late; this is the hook that thread pools themselves use, and later entries run first.
threading._register_atexit(_finish_all)  # pyrefly: ignore[missing-attribute]  it is undeclared
