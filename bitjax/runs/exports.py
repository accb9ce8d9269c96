"""The files of a run's model: the one that every run leaves, and those that were exported."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bitjax.runs.files import Unfit, check_text, is_number, read_object, shown

EXPORT, LISTED = "export", "export.json"  # a folder in the run's, and the file that lists it
_TEXTS, _COUNTS = ("runtime", "first"), ("images", "same", "border", "broken")


class FileCheck(NamedTuple):
    """What a file's runtime gave, compared with evaluation.

    Attributes:
      runtime: what ran the file.
      version: of it.
      images: how many evaluation images it ran on.
      top1: the runtime's accuracy on them, a fraction; None where there is none.
      evaluation: that of evaluation, on the same images.
      outputs: the largest difference of outputs, relative to their spread.
      codes: how many codes and sums were compared; 0 where the file shows none.
      differ: how many of them differ.
      first: the first site that differs, or nothing.
      margin: how far from a boundary, relative to it, a value lies that got another code; at most.
      same: how many images are the same.
      border: how many part at a value on a boundary.
      broken: how many do neither.
      holds: whether nothing differs but what rounding explains.
    """

    runtime: str
    version: str
    images: int
    top1: float | None
    evaluation: float | None
    outputs: float
    codes: int
    differ: int
    first: str
    margin: float
    same: int
    border: int
    broken: int
    holds: bool


class ModelFile(NamedTuple):
    """A file of a run's model.

    Attributes:
      path: in the run's folder.
      format: `packed`, `qdq`, `integers`, `qonnx` or `stablehlo`.
      size: its bytes.
      there: whether the file is in the folder; records are kept without it.
      checks: what running it showed.
      payload: of a packed file the bytes of codes and numbers; 0 of others.
    """

    path: str
    format: str
    size: int
    there: bool
    checks: tuple[FileCheck, ...] = ()
    payload: int = 0


def read_files(folder: Path, result: Mapping[str, Any], notes: list[str]) -> tuple[ModelFile, ...]:
    """The files that `result.json` and `export/export.json` name; what is wrong is a note."""
    found: list[ModelFile] = []
    files = result.get("files")
    model = files.get("model") if isinstance(files, Mapping) else None
    if isinstance(model, Mapping) and "left_out" in model:
        notes.append(f"no packed file: {shown(model['left_out'])[1:-1]}")
    elif model is not None:
        found += _read(lambda: [_file(folder, "", {"format": "packed", **model})], notes, "model")
    if (folder / EXPORT / LISTED).exists():
        found += _read(lambda: _own_export(folder, result), notes, f"{EXPORT}/{LISTED}")
    return tuple(found)


def _own_export(folder, result):
    value = read_object(folder / EXPORT / LISTED)
    if any(value.get(key) != result.get(key) for key in ("config_hash", "score")):
        raise ValueError("it is of another run, or of other figures; export again")
    return read_listed(folder)


def _read(read, notes, place):
    try:
        return read()
    except (Unfit, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        notes.append(f"not all files are shown: {place} cannot be read ({shown(error)[1:-1]})")
        return []


def read_listed(folder: Path, inside: str = EXPORT) -> list[ModelFile]:
    """The files that the `export.json` in a folder inside lists."""
    value = read_object(folder / inside / LISTED)
    check_text(value, LISTED)
    return [_file(folder, inside, entry) for entry in value["files"]]


def _file(folder: Path, inside: str, entry: Mapping[str, Any]) -> ModelFile:
    name, kind, size = entry["path"], entry["format"], entry["bytes"]
    payload = entry.get("payload", 0)
    if not isinstance(name, str) or not isinstance(kind, str) or not is_number(size + payload):
        raise ValueError("a file has no path, format and bytes")
    if name != os.path.basename(name) or name in ("", ".", ".."):
        raise ValueError(f"{shown(name)} is no name of a file in its folder")
    path = os.path.join(inside, name)
    checks = tuple(map(_check, entry.get("checks") or ()))
    return ModelFile(path, kind, int(size), (folder / path).is_file(), checks, int(payload))


def _check(entry: Mapping[str, Any]) -> FileCheck:
    if not all(isinstance(entry[key], str) for key in _TEXTS):
        raise ValueError("a check has no runtime")
    numbers = [entry[key] for key in (*_COUNTS, "outputs", "margin")]
    numbers += [row[key] for row in entry["sites"] for key in ("count", "differ")]
    numbers += [entry[key] for key in ("top1", "evaluation") if entry[key] is not None]
    if not all(map(is_number, numbers)) or not isinstance(entry["holds"], bool):
        raise ValueError("a check has figures that are no numbers")
    return FileCheck(
        runtime=entry["runtime"],
        version=str(entry["versions"].get(entry["runtime"], "")),
        images=int(entry["images"]),
        top1=entry["top1"],
        evaluation=entry["evaluation"],
        outputs=float(entry["outputs"]),
        codes=sum(int(row["count"]) for row in entry["sites"]),
        differ=sum(int(row["differ"]) for row in entry["sites"]),
        first=entry["first"],
        margin=float(entry["margin"]),
        same=int(entry["same"]),
        border=int(entry["border"]),
        broken=int(entry["broken"]),
        holds=entry["holds"],
    )
