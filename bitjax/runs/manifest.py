"""The manifest of a checkpoint: what it holds, and the length and CRC-32 of each of its files."""

import contextlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from bitjax.files.reading import FileError, check_folder, open_file, printable, read_json
from bitjax.runs.rows import write_json

PyTree = Any

_MANIFEST = "manifest.json"


def describe(tree: PyTree) -> dict[str, str]:
    """The path of each leaf, with its dtype and shape."""
    described = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
            raise TypeError(
                f"the leaf {name} of a checkpoint is no array but {leaf!r}; use jnp.asarray."
            )
        described[name] = f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    return described


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Vouches for the checkpoint in the folder `path` as it is now."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    prints = {file.relative_to(path).as_posix(): _fingerprint(file) for file in files}
    sealed = {**manifest, "files": prints}
    write_json(path / _MANIFEST, {**sealed, "crc32": _seal(sealed)})


def has_manifest(path: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    return (path / _MANIFEST).exists()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a whole checkpoint."""
    manifest = _read_sealed(path)
    check_folder(path)  # also what the manifest does not name: Orbax may wait for a pipe
    for name, fingerprint in manifest["files"].items():
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise ValueError(f"{_MANIFEST} names a file of another folder")
        try:
            found = _fingerprint(path / name)
        except FileError as error:
            raise ValueError(f"{name} {error.what}") from None
        if found != fingerprint:
            raise ValueError(f"{name} is not as it was written")
    return manifest


def _read_sealed(path: Path) -> dict[str, Any]:
    """A manifest that is as it was written, whatever the files that it vouches for."""
    try:
        manifest = read_json(path / _MANIFEST)
    except FileError as error:
        raise ValueError(f"{_MANIFEST} {error.what}") from None
    if not isinstance(manifest, dict) or manifest.pop("crc32", None) != _seal(manifest):
        raise ValueError(f"{_MANIFEST} is not as it was written")
    for key, kind in (("step", int), ("meta", dict), ("leaves", dict), ("files", dict)):
        if not isinstance(manifest.get(key), kind):
            raise ValueError(f"{_MANIFEST} has no {key}")
    return manifest


def owners(folder: Path) -> list[Mapping[str, Any]]:
    """Whose the checkpoints in a folder are, as far as they say it; damaged ones are left out."""
    found = []
    for path in folder.glob(f"*/{_MANIFEST}"):
        with contextlib.suppress(OSError, ValueError):  # a damaged one says nothing
            manifest = _read_sealed(path.parent)
            run = manifest["meta"].get("run", {})
            found += [run] if isinstance(run, Mapping) else []
    return found


def check_fits(abstract: PyTree, saved: Mapping[str, str], path: Path) -> None:
    """Compares a template with the leaves of the checkpoint in `path`."""
    wanted = describe(abstract)
    differences = [
        printable(f"{name} is {saved.get(name, 'absent')} there, {wanted.get(name, 'absent')} here")
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(
            f"The checkpoint {path} is whole but holds another state: "
            f"{'; '.join(differences[:3])}{more}. Use the configuration it was saved with, or "
            "another folder."
        )


def _fingerprint(file: Path) -> list[int]:
    """Length and CRC-32 of a file."""
    length = crc = 0
    with open_file(file) as stream:
        while block := stream.read(1 << 22):
            length, crc = length + len(block), zlib.crc32(block, crc)
    return [length, crc]


def _seal(manifest: dict[str, Any]) -> int:
    """CRC-32 of the manifest itself: a flipped bit can leave it valid JSON."""
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())
