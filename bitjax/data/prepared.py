"""Looks at the folder of a prepared TFDS set before TFDS reads it, which believes what is there."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bitjax.files.reading import FileError, find_file, one_line, read_json, reading

_CLASS_KEYS = {"pythonClassName", "python_class_name", "type", "proto_cls"}


def check_prepared(folder: Path, remedy: str) -> dict[str, os.stat_result]:
    """What lies in the folder: regular files only, of which none makes TFDS import a program."""
    facts = {}
    with reading(folder, remedy):
        for each in sorted(folder.iterdir()):
            if not each.is_dir():
                facts[each.name] = find_file(each, remedy)
    read_json(folder / "dataset_info.json", remedy)
    features = folder / "features.json"
    # TFDS imports the module of every class that is named there, from the working folder too.
    for name in _classes(read_json(features, remedy)):
        if not name.startswith("tensorflow_datasets."):
            what = f"names the class {one_line(name)!r}, which is none of TFDS"
            raise FileError(features, what, remedy)
    return facts


def check_count(folder: Path, count: int, facts: Mapping[str, os.stat_result], remedy: str) -> None:
    """Refuses more examples than the files have bytes: a list of them could fill the memory."""
    size = sum(found.st_size for found in facts.values())
    if not 0 <= count <= size:
        what = f"says that there are {count} examples, in files of {size} bytes"
        raise FileError(folder / "dataset_info.json", what, remedy)


def _classes(value: Any) -> Iterator[str]:
    """Every class that a description of features names."""
    if isinstance(value, dict):
        yield from (v for k, v in value.items() if k in _CLASS_KEYS and isinstance(v, str))
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _classes(each)
