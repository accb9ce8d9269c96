"""Finds and reads config files, shipped ones and a user's own. They are programs, and are run."""

import copy
import difflib
import importlib.util
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bitjax.configs import FOLDER
from bitjax.launch import overrides
from bitjax.launch.programs import program, shown
from bitjax.launch.schema import check_sections, plain

_LARGEST = 10_000_000  # bytes of a config file


def shipped_configs() -> dict[str, Path]:
    """Every config that comes with bitjax, by its short name, such as `digits/bitpruning`."""
    files = sorted(p for p in FOLDER.glob("*/*.py") if p.parent.name != "tables")
    return {p.relative_to(FOLDER).with_suffix("").as_posix(): p for p in files}


def recorded_name(config: str) -> str:
    """Gives the name that run records use, the same wherever the shipped configs lie."""
    text, colon, variant = config.partition(":")
    path = _find_config(config).resolve()
    if path.is_relative_to(FOLDER.resolve()):
        text = f"configs/{path.relative_to(FOLDER.resolve()).as_posix()}"
    elif _short(text) in shipped_configs():  # a file of the user's own under a shipped one's name
        text = f"./{text}"
    return f"{text}{colon}{variant}"


def _short(text: str) -> str:
    return text.removeprefix("configs/").removesuffix(".py")


def _find_config(config: str) -> Path:
    """Finds a config's file by its path, or by the name of a shipped config."""
    text = config.partition(":")[0]
    there = os.path.isfile(text)  # unlike a Path's, it takes any text
    if text.endswith(".py") and there:
        return Path(text)
    shipped = shipped_configs()
    name = _short(text)
    if name in shipped:
        return shipped[name]
    if there:
        raise ValueError(
            f"config {config}: a config must be a Python file, NAME.py, with a get_config()."
        )
    near = difflib.get_close_matches(name[:200], shipped, 3, cutoff=0.3) or list(shipped)[:3]
    raise ValueError(
        f"config {config[:200]}: it is neither a file nor a shipped config; the nearest of those "
        f"are {', '.join(near)}."
    )


def load_config(config: str, arguments: Sequence[str] = ()) -> ConfigDict:
    """Reads a config and applies `--config.key=value` arguments; every fault is one ValueError."""
    where = f"config {config}"
    module = config_module(config)
    with program(where):
        found = _called(module, config.split(":", 1)[1:])
    if not isinstance(found, ConfigDict):
        raise ValueError(f"{where}: get_config() must return a ConfigDict, got {shown(found)}.")
    with program(where):
        check_sections(plain(found))
        if arguments:
            found = copy.deepcopy(found)  # a module that the file imports may hold parts of it
            overrides.apply(arguments, found)
            check_sections(plain(found))
    return found.lock()


def config_module(config: str) -> Any:
    """Loads a config file as a new module, so that callers do not share what they change."""
    path = _find_config(config)
    spec = importlib.util.spec_from_file_location("a_config", path)
    assert spec is not None and spec.loader is not None, "its name ends in .py"
    module = importlib.util.module_from_spec(spec)
    with program(f"config {config}"):
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"a config file must be smaller than {_LARGEST / 1e6:g} MB.")
        spec.loader.exec_module(module)
    return module


def _called(module: Any, variant: Sequence[str]) -> Any:
    """What the file's get_config() gives, with the variant behind the config's name if any."""
    if not callable(getattr(module, "get_config", None)):
        raise ValueError("it lacks the function get_config(), which returns a ConfigDict.")
    if variant and not inspect.signature(module.get_config).parameters:
        raise ValueError(f"it has no variants, remove the {':' + variant[0]!r} behind its name.")
    return module.get_config(*variant)
