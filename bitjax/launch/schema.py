"""What a config may hold: plain data, in the sections and under the keys of `configs/base.py`."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bitjax.configs.base import get_config as base_config
from bitjax.launch.programs import is_text, shown

FREE = ("model", "method", "task")  # further keys of these are arguments, which the registry checks
_DEEPEST, _MOST = 12, 20_000  # levels and values; a config that holds itself has no end
_LARGEST = float(np.finfo(np.float32).max)  # of arrays; what is beyond it becomes infinite there


def plain(config: Any, key: str = "config") -> Any:
    """A config as dicts, lists, text and finite numbers; a ValueError names what is none."""
    return _plain(config, key, _DEEPEST, [_MOST])


def check_sections(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The plain config, if it has the keys of `configs/base.py` with values of their types."""
    if not isinstance(config, Mapping):
        raise ValueError(f"a config must be a ConfigDict, got {shown(config)}.")
    _check_section("config", config, plain(base_config()))
    return config


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config with the keys that its version of bitjax did not know, at their defaults."""
    base = plain(base_config())
    sections = {key: value for key, value in base.items() if isinstance(value, dict)}
    own = {
        key: {**section, **config[key]}
        for key, section in sections.items()
        if key not in FREE and isinstance(config.get(key), Mapping)
    }
    return {**base, **config, **own}


def near(key: str, known: Iterable[str]) -> str:
    """The known keys that a key may have been meant to be, for a message; also by their ends."""
    last = {name: name.split(".")[-1] for name in known}
    found = difflib.get_close_matches(key, last, 3)
    wanted = difflib.get_close_matches(key.split(".")[-1], set(last.values()), 3, cutoff=0.75)
    found += [n for n in last if last[n] in wanted and n not in found]
    return f" (did you mean {' or '.join(found[:3])}?)" if found else ""


def _plain(value: Any, key: str, levels: int, left: list[int]) -> Any:
    left[0] -= 1
    if not levels or left[0] < 0:
        raise ValueError(
            f"{key[:100]} is too deep or too large: a config holds at most {_MOST} values within "
            f"{_DEEPEST} levels, and not itself."
        )
    if isinstance(value, ConfigDict | Mapping):
        for name in value:
            if not isinstance(name, str) or not name.isprintable() or not name.strip():
                raise ValueError(f"{key} has a key {shown(name)}: keys must be printable text.")
        return {k: _plain(v, f"{key}.{k}", levels - 1, left) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{key}[{i}]", levels - 1, left) for i, v in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    wanted = "plain data: numbers, text, lists and dicts"
    if isinstance(value, str):
        wanted = "text without control characters"
        if is_text(value):
            return str(value)
    elif isinstance(value, int):
        wanted = "between -2**53 and 2**53"  # which floats hold exactly; bops are many
        if abs(value) < 2**53:
            return int(value)
    elif isinstance(value, float):
        wanted = "finite, and no larger than float32 can hold"
        if abs(value) <= _LARGEST:
            return float(value)
    raise ValueError(f"{key} must be {wanted}, got {shown(value)}.")


def _check_section(key: str, found: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    for name, default in base.items():
        full = f"{key}.{name}"
        if name not in found:
            raise ValueError(f"{full} is missing: start from get_config() of bitjax.configs.base.")
        value = found[name]
        if isinstance(default, dict):
            if not isinstance(value, dict):
                raise ValueError(
                    f"{full} must be a section, as {{'name': ..., ...}}, got {shown(value)}: start "
                    "from get_config() of bitjax.configs.base."
                )
            free = full.removeprefix("config.") in FREE
            _check_section(full, value, {"name": ""} if free else default)
        # A bool is an int to Python.
        elif not isinstance(value, type(default)) or isinstance(value, bool) != isinstance(
            default, bool
        ):
            kind = "tuple" if isinstance(default, list) else type(default).__name__
            raise ValueError(f"{full} must be of type {kind}, got {shown(value)}.")
    if key.removeprefix("config.") in FREE:
        return
    if unknown := [name for name in found if name not in base]:
        raise ValueError(
            f"{key}.{unknown[0]} is no key of a run{near(unknown[0], base)}; "
            "bitjax.configs.base has all of them."
        )
