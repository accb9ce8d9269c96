"""Reads arrays by name from what others wrote: Orbax checkpoints, safetensors and npz files."""

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from bitjax.files.npz import npz_names, read_npz
from bitjax.files.reading import FileError, check_folder, open_file, printable, reading
from bitjax.runs.orbax import quiet_orbax

FORMS = "a run's folder, an Orbax checkpoint, a .safetensors file or an .npz file of arrays"
_REMEDY = f"give the path of {FORMS}"


class Weights(NamedTuple):
    """Arrays that are read when they are asked for: names ('params/conv/kernel'), and how."""

    names: tuple[str, ...]
    read: Callable[[Collection[str]], dict[str, np.ndarray]]


def open_weights(path: Path) -> Weights:
    """The arrays at a path, whose form is told by what is there; errors are one line."""
    with reading(path, _REMEDY):
        weights = _opened(path)

    def read(chosen: Collection[str]) -> dict[str, np.ndarray]:
        with reading(path, _REMEDY):
            return weights.read(chosen)

    return Weights(weights.names, read)


def _opened(path: Path) -> Weights:
    if path.is_dir():
        tree = _tree_folder(path)
        check_folder(tree, _REMEDY)
        return _orbax(tree)
    with open_file(path, _REMEDY) as file:
        start = file.read(9)
    if start[:4] == b"PK\x03\x04":
        names = npz_names(path, _REMEDY)
        return Weights(names, lambda chosen: read_npz(path, chosen, _REMEDY))
    if start[8:] == b"{":
        return _safetensors(path)
    raise FileError(path, "holds no weights", _REMEDY)


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
        raise FileError(path, "is a folder without checkpoints", _REMEDY)
    trees = sorted(steps[max(steps)])
    if len(trees) > 1:
        names = printable(", ".join(map(str, trees[:5])))
        raise FileError(path, "holds several trees", f"name one: {names}")
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
