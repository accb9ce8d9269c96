"""Reads and applies `--config.key=value` arguments, each a value of the type that it replaces."""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from bitjax.launch.programs import shown, text_of
from bitjax.launch.schema import near
from bitjax.runs.folder import flatten

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)
_PART = re.compile(r"""\.?([^\W\d]\w*)|\[(\d{1,6})\]|\[["']([^"'\[\]]+)["']\]""")
# A word that is one value of a tuple, such as the split train[:90%]+test of a data set.
_WORD = re.compile(r"[^\W\d][\w.-]*(\[[\w:%-]*\])?(\+[^\W\d][\w.-]*(\[[\w:%-]*\])?)*")
_BOOLS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def apply(arguments: Sequence[str], config: ConfigDict) -> None:
    """Sets what the arguments say in a config; a ValueError in one line for what cannot be."""
    texts: dict[str, list[str]] = {}
    for argument in arguments:
        found = _OVERRIDE.fullmatch(argument)
        if found is None:
            raise ValueError(f"unknown argument {argument!r}; an override is config.key=value.")
        negated, key, text = found.groups()
        if negated or text is None:
            if not isinstance(value_of(key, config), bool) or (negated and text is not None):
                raise ValueError(f"{argument!r} must give a value, as config.{key}=value.")
            text = "false" if negated else "true"
        texts.setdefault(key, []).append(text)
    values = {key: _parse(key, given, value_of(key, config)) for key, given in texts.items()}
    for key, value in values.items():
        *path, last = _parts(key)
        holder: Any = config
        for part in path:
            holder = holder[part]
        try:
            holder[last] = value
        except (TypeError, ValueError) as error:
            raise ValueError(f"config.{key} cannot be {shown(value)}: {text_of(error)}.") from error


def arguments_of(overrides: Mapping[str, str]) -> list[str]:
    """Overrides as arguments."""
    return [f"--config.{key}={value}" for key, value in overrides.items()]


def override_key(argument: str) -> str:
    """The key that a `--config.key=value`, `--config.key` or `--noconfig.key` argument sets."""
    found = _OVERRIDE.fullmatch(argument)
    return found[2] if found else ""


def check_key(key: str, config: ConfigDict) -> None:
    """Raises a ValueError, with the nearest keys, unless the config has a value under `key`."""
    found = value_of(key, config)
    if isinstance(found, ConfigDict):
        below = ", ".join(f"{key}.{name}" for name in found)
        raise ValueError(f"{key!r} is a group of keys: vary one of {below}.")


def value_of(key: str, config: ConfigDict) -> Any:
    """The value under a key such as `data.batch_size` or `budgets[0].limit`."""
    found: Any = config
    for part in _parts(key) or [""]:
        inside: Any = found if isinstance(found, ConfigDict | Mapping) else ()
        if isinstance(found, list | tuple) and isinstance(part, int):
            inside = range(len(found))
        if part not in inside:
            raise ValueError(
                f"the config has no key {shown(key)}{near(key[:200], flatten(config.to_dict()))}; "
                "only what the config file sets can be changed."
            )
        found = found[part]
    return found


def _parts(key: str) -> list[str | int]:
    """The names and indices of a key; none if it is not made of such."""
    found = list(_PART.finditer(key))
    if "".join(part[0] for part in found) != key or key.startswith("."):
        return []
    return [int(part[2]) if part[2] else part[1] or part[3] for part in found]


def _parse(key: str, texts: Sequence[str], before: Any) -> Any:
    """Reads a value of the same type as `before`; the last text counts, for a tuple all do."""
    *_, text = texts
    if isinstance(before, bool):
        if text.lower() not in _BOOLS:
            raise ValueError(f"config.{key} must be true or false, got {shown(text)}.")
        return _BOOLS[text.lower()]
    if isinstance(before, tuple):
        return tuple(value for text in texts for value in _tuple(key, text))
    if isinstance(before, ConfigDict):
        value = _literal(text)
        if not isinstance(value, dict):
            some = "".join(f", config.{key}.{name}" for name in list(before)[:3])[2:]
            raise ValueError(
                f"config.{key} is a section: set one of its keys ({some}), or give all of it as "
                f"{{'name': ..., ...}}, got {shown(text)}."
            )
        return ConfigDict(value)
    if isinstance(before, int | float | str):
        try:
            return type(before)(text)
        except ValueError:
            kind = type(before).__name__
            raise ValueError(f"config.{key} must be of type {kind}, got {shown(text)}.") from None
    raise ValueError(f"config.{key} is {shown(before)}: only a config file can change it.")


def _tuple(key: str, text: str) -> tuple:
    """The values of a text such as (1, 2) or 1; a word needs no quotes."""
    if not text.strip():
        return ()
    value = _literal(text)
    if value is None and text.strip() != "None":
        if not _WORD.fullmatch(text):
            raise ValueError(
                f"config.{key} must be a tuple, as (1, 2) or ('a', 'b'), got {shown(text)}."
            )
        value = text
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _literal(text: str) -> Any:
    """A Python literal; None for what is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
