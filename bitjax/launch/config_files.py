"""Finds and reads config files, shipped ones and a user's own, with their overrides."""

import ast
import difflib
import importlib.util
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path, tuple_parser

from bitjax.configs import FOLDER
from bitjax.configs.base import get_config as base_config
from bitjax.runs.folder import flatten

_FREE = ("model", "method")  # further keys of these are arguments, which the registry checks
_OVERRIDE = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)
_BOOLS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


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
    return f"{text}{colon}{variant}"


def _find_config(config: str) -> Path:
    """Finds a config's file by its path, or by the name of a shipped config."""
    text = config.partition(":")[0]
    if text.endswith(".py") and Path(text).is_file():
        return Path(text)
    shipped = shipped_configs()
    name = text.removeprefix("configs/").removesuffix(".py")
    if name in shipped:
        return shipped[name]
    if Path(text).is_file():
        raise ValueError(
            f"config {config}: a config must be a Python file, NAME.py, with a get_config()."
        )
    near = difflib.get_close_matches(name, shipped, 3, cutoff=0.3) or list(shipped)[:3]
    raise ValueError(
        f"config {config}: it is neither a file nor a shipped config; the nearest of those are "
        f"{', '.join(near)}."
    )


def load_config(config: str, arguments: Sequence[str] = ()) -> ConfigDict:
    """Reads a config and applies `--config.key=value` arguments; every fault is one ValueError."""
    _find_config(config)
    try:
        found = _called(config_module(config), config.split(":", 1)[1:])
    except Exception as error:  # a config file is a program: it may raise anything
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"config {config}: {kind}{' '.join(str(error).split())}") from error
    if not isinstance(found, ConfigDict):
        raise ValueError(f"config {config}: get_config() must return a ConfigDict, got {found!r}.")
    _check_keys(config, found)
    try:
        for key, value in _read_overrides(arguments, found).items():
            config_path.set_value(key, found, value)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"config {config}: {' '.join(str(error).split())}") from error
    return found.lock()


def _read_overrides(arguments: Sequence[str], base: ConfigDict) -> dict[str, Any]:
    """Reads `--config.key=value` arguments as values of the types that the config has there."""
    texts: dict[str, list[str]] = {}
    for argument in arguments:
        found = _OVERRIDE.fullmatch(argument)
        if found is None:
            raise ValueError(f"unknown argument {argument!r}; an override is config.key=value.")
        negated, key, text = found.groups()
        kind = type(_value(key, base))
        if negated or text is None:
            if kind is not bool or (negated and text is not None):
                raise ValueError(f"{argument!r} must give a value, as config.{key}=value.")
            text = "false" if negated else "true"
        texts.setdefault(key, []).append(text)
    return {key: _parse(key, given, _value(key, base)) for key, given in texts.items()}


def check_key(key: str, base: ConfigDict) -> None:
    """Raises a ValueError, with the nearest keys, unless the config has a value under `key`."""
    if isinstance(_value(key, base), ConfigDict):
        below = ", ".join(f"{key}.{name}" for name in _value(key, base))
        raise ValueError(f"{key!r} is a group of keys: vary one of {below}.")


def arguments_of(overrides: Mapping[str, str]) -> list[str]:
    """Overrides as arguments."""
    return [f"--config.{key}={value}" for key, value in overrides.items()]


def override_key(argument: str) -> str:
    """The key that a `--config.key=value`, `--config.key` or `--noconfig.key` argument sets."""
    found = _OVERRIDE.fullmatch(argument)
    return found[2] if found else ""


def config_module(config: str) -> Any:
    """Loads a config file as a new module, so that callers do not share what they change."""
    spec = importlib.util.spec_from_file_location("a_config", _find_config(config))
    assert spec is not None and spec.loader is not None, "its name ends in .py"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _called(module: Any, variant: Sequence[str]) -> Any:
    """What the file's get_config() gives, with the variant behind the config's name if any."""
    if not hasattr(module, "get_config"):
        raise ValueError("it lacks the function get_config(), which returns a ConfigDict.")
    if variant and not inspect.signature(module.get_config).parameters:
        raise ValueError(f"it has no variants, remove the {':' + variant[0]!r} behind its name.")
    return module.get_config(*variant)


def _check_keys(config: str, found: ConfigDict) -> None:
    """Refuses keys that `configs/base.py` lacks, and configs that lack one of its keys."""
    own, known = (
        {k: v for k, v in flatten(c.to_dict()).items() if k.split(".")[0] not in _FREE}
        for c in (found, base_config())
    )
    for key in own:
        if key not in known:
            raise ValueError(
                f"config {config}: no run has a key {key!r}{_close(key, known)}; "
                "bitjax.configs.base has all of them."
            )
    if lacks := [key for key in known if key not in own]:
        raise ValueError(
            f"config {config}: it lacks the key {lacks[0]!r}: start from get_config() of "
            "bitjax.configs.base."
        )


def _value(key: str, base: ConfigDict) -> Any:
    try:
        return config_path.get_value(key, base)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, SyntaxError):
        raise ValueError(
            f"the config has no key {key!r}{_close(key, flatten(base.to_dict()))}; only what the "
            "config file sets can be changed."
        ) from None


def _parse(key: str, texts: Sequence[str], before: Any) -> Any:
    """Reads a value of the same type as `before`; the last text counts, for a tuple all do."""
    *_, text = texts
    if isinstance(before, bool):
        if text.lower() not in _BOOLS:
            raise ValueError(f"config.{key} must be true or false, got {text!r}.")
        return _BOOLS[text.lower()]
    if isinstance(before, tuple):
        parsed = map(tuple_parser.TupleParser().parse, texts)
        return tuple(value for part in parsed for value in part)
    if isinstance(before, ConfigDict):
        return ConfigDict(ast.literal_eval(text))
    if isinstance(before, int | float | str):
        try:
            return type(before)(text)
        except ValueError:
            kind = type(before).__name__
            raise ValueError(f"config.{key} must be of type {kind}, got {text!r}.") from None
    raise ValueError(f"config.{key} is {before!r}: only a config file can change it.")


def _close(key: str, known: Iterable[str]) -> str:
    last = {name: name.split(".")[-1] for name in known}
    near = difflib.get_close_matches(key, last, 3)
    wanted = difflib.get_close_matches(key.split(".")[-1], set(last.values()), 3, cutoff=0.75)
    near += [n for n in last if last[n] in wanted and n not in near]
    return f" (did you mean {' or '.join(near[:3])}?)" if near else ""
