"""Checkpoints that survive a kill and tell damage: Orbax writes them, a manifest vouches for them.

Orbax commits a folder at once or not at all, but it does not notice a flipped bit in the file that
holds large arrays (measured with version 0.12.8: wrong numbers and no error), and what it does
notice surfaces as an error about handlers. So every checkpoint carries a manifest with the length
and CRC-32 of each file, and Orbax is only asked to read what passes.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from bitjax.checks import FUNCTION, checked, instance, integer
from bitjax.files.reading import reading
from bitjax.files.writing import remove, trouble_of, why_not
from bitjax.runs.manifest import check_fits, describe, has_manifest, read_manifest, write_manifest
from bitjax.runs.orbax import finish_before_exit, load_tree, quiet_orbax, to_host

PyTree = Any

_log = logging.getLogger(__name__)
# A step, and a number that tells a step's later saves from its first.
_NAME = re.compile(r"(\d+)(?:-(\d+))?")
# What a killed save or a killed removal leaves behind.
_LEFTOVER = re.compile(r".*\.orbax-checkpoint-tmp.*|.*\.removed")


class Restored(NamedTuple):
    """A checkpoint read back.

    Attributes:
      step: the step it was saved at.
      state: the tree that was saved, in the template's structure.
      meta: the dict that was saved beside it.
    """

    step: int
    state: PyTree
    meta: dict[str, Any]


class DamagedError(OSError):
    """No checkpoint can be read; the message names the folders."""


class SaveError(OSError):
    """A checkpoint could not be written; the message says where, why and what to do."""


class _Job(NamedTuple):
    """A save in progress: its manifest, the bytes of its arrays, and when it began."""

    manifest: dict[str, Any]
    size: int
    began: float


class Checkpoints:
    """The checkpoints of one run, the newest few of them kept.

    Several processes may write one checkpoint together: each of them makes this object and calls
    `save` and `restore` at the same steps, on a file system they share.

    A full disk, or whatever else the operating system gives as its reason, does not stop a run: a
    save that fails is reported in the log in one line, the checkpoints before it stay, and the next
    save tries again. Only `wait` and `close` raise it, if no later save has succeeded.

    Attributes:
      folder: where they are, an absolute path.
      slowest: seconds that the slowest save has taken.

    Args:
      folder: folder of the checkpoints; the first save makes it.
      keep: how many to keep, at least 1; with 2 there is one to fall back on.
      check: called before anything is written; raises an OSError if the folder is another's now.

    Raises:
      ValueError: `keep` is not 1 or more, or `folder` no path.

    Example:
      >>> import tempfile
      >>> state = {"kernel": jax.numpy.ones((2, 3)), "bits": jax.numpy.float32(4.0)}
      >>> with Checkpoints(tempfile.mkdtemp()) as checkpoints:
      ...     checkpoints.save(100, state, {"stage": 1})
      ...     checkpoints.wait()
      ...     step, again, meta = checkpoints.restore(lambda meta: jax.eval_shape(lambda: state))
      >>> step, meta, float(again["bits"])
      (100, {'stage': 1}, 4.0)
    """

    @checked(folder=instance(str, os.PathLike), keep=integer(1), check=FUNCTION)
    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        keep: int = 2,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        quiet_orbax()
        self.folder = Path(folder).absolute()  # Orbax takes no relative paths.
        self._keep, self._check = keep, check
        # One thread, so that saves end in order.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._damaged: set[Path] = set()
        self._failed: SaveError | None = None  # why the last save failed, if it did
        self.slowest = 0.0

    def save(
        self, step: int, state: PyTree, meta: Mapping[str, Any], *, wait: bool = False
    ) -> None:
        """Saves a checkpoint, in the background once the arrays are copied to the host.

        Once it is complete, older ones beyond `keep` are removed, so are earlier saves of the same
        step, and so are those of later steps: a run that saves at an earlier step has gone back.

        Args:
          step: 0 or more; steps are counted over the whole run.
          state: a tree of arrays of JAX or NumPy, each with at least one element.
          meta: what `restore` needs to know before it reads `state` (which stage, which unit):
            strings as keys, and lists, strings, finite numbers, booleans and None.
          wait: return when it is on disk.

        Raises:
          ValueError: if `step` is negative, an array is empty, or a number in `meta` is not finite.
          TypeError: if a leaf of `state` is no array, or JSON would change `meta`.
          SaveError: if `wait` and it could not be written.
        """
        if step < 0:
            raise ValueError(f"`step` must be 0 or more, got {step}.")
        leaves = describe(state)
        if not leaves or any(leaf.size == 0 for leaf in jax.tree.leaves(state)):
            raise ValueError(f"Orbax stores no empty arrays and no empty state, got {leaves}.")
        manifest = {"step": step, "meta": dict(meta), "leaves": leaves}
        if json.loads(json.dumps(manifest, allow_nan=False)) != manifest:
            raise TypeError(f"`meta` must come back from JSON as it is, got {meta!r}.")
        self._settle()
        job = _Job(manifest, sum(leaf.nbytes for leaf in jax.tree.leaves(state)), time.monotonic())
        try:
            saving, path = self._begin(step, state)
        except Exception as error:  # Of any kind: what is no failure of the disk is raised again.
            self._note_failure(error, job, None)
        else:
            self._pending = self._thread.submit(self._complete, saving, path, job)
            finish_before_exit(self)
        if wait:
            self.wait()

    def _begin(self, step: int, state: PyTree) -> tuple[Any, Path]:
        again, refused = 0, None
        if jax.process_index() == 0:
            try:
                self._check()
                self.folder.mkdir(parents=True, exist_ok=True)
                self._remove_leftovers()
                again = max((n + 1 for other, n, _ in self._entries() if other == step), default=0)
            except OSError as error:
                again, refused = -1, error
        if jax.process_count() > 1:
            # Without this the others would wait for process 0, or see what it has removed.
            again = int(multihost_utils.broadcast_one_to_all(np.int32(again)))
            # Orbax refuses arrays that each process holds for itself.
            state = jax.tree.map(to_host, state)
        if again < 0:
            raise refused or OSError("process 0 could not begin it")
        path = self.folder / (f"{step}-{again}" if again else f"{step}")
        return ocp.save_checkpointables_async(str(path), {"state": state}), path

    def _remove_leftovers(self) -> None:
        for leftover in self.folder.iterdir():
            if _LEFTOVER.fullmatch(leftover.name):
                remove(leftover)

    def _complete(self, saving: Any, path: Path, job: "_Job") -> None:
        try:
            saving.result()
            if jax.process_index() == 0:
                self._check()
                write_manifest(path, job.manifest)
        except Exception as error:  # Of any kind, as where it began.
            self._note_failure(error, job, path)
            return
        self._failed = None
        if jax.process_index() == 0:
            try:
                self._remove_older(path, job.manifest["step"])
            except OSError as error:
                _log.warning("An old checkpoint could not be removed: %s", error)
        self.slowest = max(self.slowest, time.monotonic() - job.began)

    def _note_failure(self, error: Exception, job: "_Job", path: Path | None) -> None:
        self._check()  # else what is there is another run's, and the failure no wonder
        if jax.process_index() == 0:  # What was written of it takes space that others may need.
            if path is not None:
                shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):  # the failure is noted already
                self._remove_leftovers()
        if trouble_of(error) is None:
            raise error  # Of the program, not of the disk.
        step, place = job.manifest["step"], path or self.folder / str(job.manifest["step"])
        reason, remedy = why_not(place, job.size, error)
        if isinstance(error, TimeoutError):  # Orbax counts by the machine's clock
            reason = "it took too long, or the machine's clock was set"
        self._failed = SaveError(
            f"The checkpoint of step {step} could not be written to {place} ({reason}). {remedy}; "
            "older checkpoints are whole."
        )
        self._failed.__cause__ = error
        _log.warning("%s Training goes on, and the next checkpoint is tried.", self._failed)

    def _remove_older(self, path: Path, newest: int) -> None:
        # By step, so that the last save of a step stands for it.
        older = {
            step: other
            for step, _, other in self._entries()
            if step < newest and other not in self._damaged
        }
        kept = [path, *list(older.values())[::-1][: self._keep - 1]]
        for _, _, other in self._entries():
            if other not in kept:
                # Renamed first, so that a kill does not leave half a checkpoint under its name.
                removed = other.with_name(other.name + ".removed")
                os.replace(other, removed)
                remove(removed)
        self._damaged.clear()

    def restore(
        self,
        template: Callable[[dict[str, Any]], PyTree],
        *,
        step: int | None = None,
        without: tuple[str, ...] = (),
    ) -> Restored | None:
        """Reads the newest checkpoint that is whole.

        A damaged one is reported in the log, by its folder and by what is wrong with it, and the
        next older one is tried.

        Args:
          template: maps the checkpoint's `meta` to a tree like the one saved, of arrays or
            `jax.ShapeDtypeStruct`. NumPy arrays are read as NumPy arrays. A leaf that names a
            sharding is put there; others become uncommitted arrays on the default device, as
            freshly initialised ones are.
          step: read this step's and no other.
          without: do not read the leaves whose paths begin so, such as `variables/quant/`; the
            template has none of them.

        Returns:
          The checkpoint, bit for bit as it was saved, or None if there is none at all.

        Raises:
          DamagedError: if there are checkpoints and none is whole.
          ValueError: if the checkpoint is whole and the template differs from it, or if there is
            none at `step`.
        """
        self._settle()
        entries = self._entries()
        if step is not None:
            entries = [entry for entry in entries if entry[0] == step]
            if not entries:
                there = ", ".join(map(str, self.steps())) or "none"
                raise ValueError(f"{self.folder} has no checkpoint of step {step}; has {there}.")
        for _, _, path in reversed(entries):
            try:
                manifest = read_manifest(path)
            except (OSError, ValueError) as error:
                if not path.exists():  # The run that goes on here has newer ones by now.
                    return self.restore(template, step=step, without=without)
                _log.warning("The checkpoint %s is damaged (%s); trying an older one.", path, error)
                self._damaged.add(path)
                continue
            abstract = template(manifest["meta"])
            saved = {k: v for k, v in manifest["leaves"].items() if not k.startswith(without)}
            check_fits(abstract, saved, path)
            with reading(path, "remove it to go on from an older one"):
                state = load_tree(path, abstract, partial=bool(without))
            return Restored(manifest["step"], state, manifest["meta"])
        if step is None and [has_manifest(path) for _, _, path in entries] == [False]:
            return None  # The run was killed while it wrote its first checkpoint.
        if entries:
            names = ", ".join(str(path) for _, _, path in reversed(entries))
            raise DamagedError(
                f"Every checkpoint is damaged: {names}. Remove them to start from the beginning."
            )
        return None

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, damaged ones among them, oldest first."""
        return sorted({step for step, _, _ in self._entries()})

    def wait(self) -> None:
        """Waits for the save in progress.

        Raises:
          SaveError: the last save could not be written; told once.
        """
        self.join()
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def join(self) -> None:
        """Waits for the save in progress, whatever came of it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _settle(self) -> None:
        self.join()
        if jax.process_count() > 1:  # The others must not see what process 0 is removing.
            multihost_utils.sync_global_devices("checkpoints")

    def close(self) -> None:
        """Waits for the save in progress and ends the thread that writes."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        try:
            self.close()
        except SaveError:  # It is in the log; what ended the block says more.
            if kind is None:
                raise

    def _entries(self) -> list[tuple[int, int, Path]]:
        """Step, number of the save and folder of each checkpoint, oldest first."""
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if (match := _NAME.fullmatch(path.name)) and path.is_dir():
                found.append((int(match[1]), int(match[2] or 0), path))
        return sorted(found)
