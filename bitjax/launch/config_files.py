"""Reads config files with their overrides."""

import difflib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from bitjax.runs.folder import flatten


def load_config(path: str, arguments: Sequence[str] = ()) -> ConfigDict:
    """A config file with `--config.key=value` arguments, read as `experiments.train` reads them.

    Raises:
      ValueError: in one line, for whatever is wrong with either.
    """
    argv, values = ["sweep", *arguments], flags.FlagValues()
    try:
        base = config_module(path).get_config(*path.split(":", 1)[1:])
        config_flags.DEFINE_config_dict("config", base, flag_values=values, sys_argv=argv)
        left = values(argv)[1:]
        config: ConfigDict = values["config"].value  # pyrefly: ignore (absl: of any type)
    except Exception as error:  # a config file is a program: it may raise anything
        text = " ".join(str(error).split())
        key = re.search(r"\w+", text)
        if isinstance(error, AttributeError | KeyError) and key and arguments:
            text = f"no key {key[0]!r}{_close(key[0], list(flatten(load_config(path).to_dict())))}"
        raise ValueError(f"config {path}: {text}") from error
    if left:
        raise ValueError(f"unknown arguments {left}; overrides are --config.key=value.")
    return config


def check_key(key: str, base: ConfigDict) -> None:
    """Raises a ValueError, with the nearest keys, unless the config has a value under `key`."""
    try:
        value = config_path.get_value(key, base)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, SyntaxError):
        known = list(flatten(base.to_dict()))
        raise ValueError(
            f"the config has no key {key!r}{_close(key, known)}; a sweep changes only what the "
            "config file sets."
        ) from None
    if isinstance(value, ConfigDict):
        below = ", ".join(f"{key}.{name}" for name in value)
        raise ValueError(f"{key!r} is a group of keys: vary one of {below}.")


def arguments_of(overrides: Mapping[str, str]) -> list[str]:
    """Overrides as arguments.

    Example:
      >>> arguments_of({"seed": "1"})
      ['--config.seed=1']
    """
    return [f"--config.{key}={value}" for key, value in overrides.items()]


def override_key(argument: str) -> str:
    """The key that a `--config.key=value`, `--config.key` or `--noconfig.key` argument sets.

    Example:
      >>> override_key("--config.data.name=digits"), override_key("--noconfig.tensorboard")
      ('data.name', 'tensorboard')
    """
    return re.sub(r"^-{1,2}(no)?config\.", "", argument).split("=", 1)[0]


def config_module(path: str) -> Any:
    """Loads a config file as a module, anew, so that what a caller changes stays with it."""
    spec = importlib.util.spec_from_file_location("swept_config", path.split(":", 1)[0])
    if spec is None or spec.loader is None:
        raise ValueError("a config must be a Python file, see configs/")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _close(key: str, known: Sequence[str]) -> str:
    last = {name: name.split(".")[-1] for name in known}
    near = difflib.get_close_matches(key, known, 3)
    wanted = difflib.get_close_matches(key.split(".")[-1], set(last.values()), 3, cutoff=0.75)
    near += [n for n in known if last[n] in wanted and n not in near]
    return f" (did you mean {' or '.join(near[:3])}?)" if near else ""
