"""Writes the command that repeats a run: its config, and the settings that differ from it."""

import functools
import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from bitjax.files.reading import printable
from bitjax.launch.config_files import load_config, shipped_configs
from bitjax.runs.folder import flatten
from bitjax.runs.records import RunRecord

# An abbreviation as git writes it, or all of it: neither an option nor a path.
_COMMIT = re.compile(r"[0-9a-f]{7,40}")


def command_of(run: RunRecord) -> str:
    """Gives shell lines that repeat a run, with comments on what no override can say.

    Overrides are the differences between the run's config.json and its config as it is here. Only
    shipped configs are read: a run folder is data, so a file that it names is never executed.
    What comes from the folder is quoted, in comments too: a shell that is typed into may not know
    them.
    """
    lines = []
    commit, _, changed = run.commit.partition("+")
    if _COMMIT.fullmatch(commit):
        lines.append(f"git checkout --detach {commit}")
        if changed:
            lines.append("# its working tree had changes that no commit has")
    words = ["bitjax train", _quoted(run.config)]
    words += ["--workdir", _quoted(f"runs/{_slug(run.name)}-seed{run.seed}")]
    defaults = _defaults(run.config)
    if defaults is None:
        lines.append("# the config file is not a shipped one, so its overrides are not known")
        if run.config.startswith("-") or not run.config.partition(":")[0].endswith(".py"):
            return "\n".join([*lines, f"# {_quoted(run.config)} is no name of a config file"])
        lines.append("# it is a program: read it before you run it")
        words.append(f"--config.seed={run.seed}")
    else:
        here, there = flatten(defaults), flatten(run.settings)
        for key in sorted(there):
            if here.get(key, ()) == there[key]:
                continue
            scalar = isinstance(there[key], bool | int | float) or _is_word(there[key])
            if scalar and key in here and type(here[key]) is type(there[key]):
                words.append(_quoted(f"--config.{key}={there[key]}"))
            else:
                lines.append(f"# {_quoted(f'config.{key}')} was {_quoted(json.dumps(there[key]))}")
        lines += [f"# config.{key} was not there" for key in sorted(here.keys() - there.keys())]
    return "\n".join([*lines, " ".join(words)])


def _quoted(text: str) -> str:
    """One word for a shell, in one line and without what a terminal takes for a key."""
    return shlex.quote(printable(text))


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _slug(name: str) -> str:
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.")
    return kept[:100] or "run"


@functools.cache
def _defaults(config: str) -> Mapping[str, Any] | None:
    """The settings of a shipped config; None if it is not one or refuses its variant."""
    name, colon, variant = config.partition(":")
    path = shipped_configs().get(name.removeprefix("configs/").removesuffix(".py"))
    if path is None:
        return None
    try:
        return json.loads(json.dumps(load_config(f"{path}{colon}{variant}").to_dict()))
    except ValueError:  # one that refuses its variant tells nothing
        return None
