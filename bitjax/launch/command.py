"""Writes the command that repeats a run: its config, and the settings that differ from it."""

import functools
import json
import shlex
from collections.abc import Mapping
from typing import Any

from bitjax.launch.config_files import load_config, shipped_configs
from bitjax.runs.folder import flatten
from bitjax.runs.records import RunRecord


def command_of(run: RunRecord) -> str:
    """Gives shell lines that repeat a run, with comments on what no override can say.

    Overrides are the differences between the run's config.json and its config as it is here. Only
    shipped configs are read: a run folder is data, so a file that it names is never executed.
    """
    lines = []
    if run.commit != "unknown":
        commit, _, changed = run.commit.partition("+")
        lines.append(f"git checkout {shlex.quote(commit)}")
        if changed:
            lines.append("# its working tree had changes that no commit has")
    words = ["bitjax train", shlex.quote(run.config)]
    words += ["--workdir", shlex.quote(f"runs/{_slug(run.name)}-seed{run.seed}")]
    defaults = _defaults(run.config)
    if defaults is None:
        words.append(f"--config.seed={run.seed}")
        lines.append("# the config file is not a shipped one; its overrides are not known")
    else:
        here, there = flatten(defaults), flatten(run.settings)
        for key in sorted(there):
            if here.get(key, ()) == there[key]:
                continue
            scalar = isinstance(there[key], bool | int | float | str)
            if scalar and key in here and type(here[key]) is type(there[key]):
                words.append(shlex.quote(f"--config.{key}={there[key]}"))
            else:
                lines.append(f"# config.{key} was {json.dumps(there[key])}")
        lines += [f"# config.{key} was not there" for key in sorted(here.keys() - there.keys())]
    return "\n".join([*lines, " ".join(words)])


def _slug(name: str) -> str:
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.")
    return kept or "run"


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
