"""Reads arrays by name from what others wrote: Orbax checkpoints, safetensors and npz files."""

import contextlib
import re
import zipfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from bitjax.runs.orbax import quiet_orbax

FORMS = "a run's folder, an Orbax checkpoint, a .safetensors file or an .npz file of arrays"


class Weights(NamedTuple):
    """Arrays that are read when they are asked for: names ('params/conv/kernel'), and how."""

    names: tuple[str, ...]
    read: Callable[[Collection[str]], dict[str, np.ndarray]]


def open_weights(path: Path) -> Weights:
    """The arrays at a path, whose form is told by what is there; errors are one line."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; give the path of {FORMS}.")
    with _one_line(path):
        weights = _opened(path)

    def read(chosen: Collection[str]) -> dict[str, np.ndarray]:
        with _one_line(path):
            return weights.read(chosen)

    return Weights(weights.names, read)


def _opened(path: Path) -> Weights:
    if path.is_dir():
        return _orbax(_tree_folder(path))
    with path.open("rb") as file:
        start = file.read(9)
    if start[:4] == b"PK\x03\x04":
        return _npz(path)
    if start[8:] == b"{":
        return _safetensors(path)
    raise _Unfit(f"is not {FORMS}.")


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Makes whatever goes wrong with a path a ValueError of one line."""
    try:
        yield
    except _Unfit as error:
        raise ValueError(f"{path} {error}") from error
    except Exception as error:  # of any kind: readers of damaged files raise what they like
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {reason}).") from error


class _Unfit(Exception):
    """Why a path is no file of weights; its message goes on after the path."""


def _npz(path: Path) -> Weights:
    members = zipfile.ZipFile(path).namelist()
    if others := [name for name in members if not name.endswith(".npy")]:
        raise _Unfit(f"is a zip file, but {others[0]!r} in it is no NumPy array: save it as .npz.")
    names = [name.removesuffix(".npy") for name in members]

    def read(chosen: Collection[str]) -> dict[str, np.ndarray]:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in chosen}

    return Weights(tuple(names), read)


def _safetensors(path: Path) -> Weights:
    from safetensors import safe_open

    def read(chosen: Collection[str]) -> dict[str, np.ndarray]:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in chosen}

    with safe_open(path, framework="numpy") as file:
        return Weights(tuple(file.keys()), read)


def _tree_folder(path: Path) -> Path:
    """The folder of a checkpoint's arrays: the path, or the newest step's below it."""
    # A step is `100` or `checkpoint_100`, its arrays lie in it or in a folder with their name.
    steps: dict[int, list[Path]] = {}
    for pattern in ("", "*/", "*/*/"):
        for found in path.glob(f"{pattern}_METADATA"):
            step = re.fullmatch(r"(?:checkpoint_|step_)?(\d+)", found.relative_to(path).parts[0])
            steps.setdefault(int(step[1]) if step else -1, []).append(found.parent)
    if not steps:
        raise _Unfit(f"is a folder without checkpoints: give the path of {FORMS}.")
    trees = sorted(steps[max(steps)])
    if len(trees) > 1:
        raise _Unfit(f"holds several trees, name one: {', '.join(map(str, trees[:5]))}.")
    return trees[0]


def _orbax(folder: Path) -> Weights:
    quiet_orbax()
    place: Any = folder.absolute()  # Orbax takes no relative paths
    # It waits for no other host: each reads for itself, and one of them may fail.
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=None, active_processes={here}, barrier_sync_key_prefix=f"weights{here}"
    )
    # Not through a Checkpointer, which on a failure tries again in other ways, with warnings.
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    tree = handler.metadata(place).tree

    def read(chosen: Collection[str]) -> dict[str, np.ndarray]:
        wanted = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if path_name(path) in chosen else ocp.PLACEHOLDER, tree
        )
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        arguments = ocp.args.PyTreeRestore(wanted, restore_args=as_numpy)
        found = _names(handler.restore(place, args=arguments))
        return {name: np.asarray(found[name]) for name in chosen}

    return Weights(tuple(_names(tree)), read)


def _names(tree: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def path_name(path: tuple[Any, ...]) -> str:
    """The name of a leaf from the keys that lead to it: 'params/conv/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
