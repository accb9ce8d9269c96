"""The command that makes a run again: its config file, and what was overridden beside it."""

import functools
import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitjax.runs.folder import flatten
from bitjax.runs.records import RunRecord

ROOT = Path(__file__).resolve().parents[2]


def command_of(run: RunRecord, root: Path = ROOT) -> str:
    """Lines for a shell: the run's command, and before it what it needs to know.

    Overrides are what differs between the run's config.json and its config file as it is in this
    checkout. Only files under `configs/` are looked into: a run folder is data, and what it names
    is not run.
    """
    lines = []
    if run.commit != "unknown":
        commit, _, changed = run.commit.partition("+")
        lines.append(f"git checkout {shlex.quote(commit)}")
        if changed:
            lines.append("# its working tree had changes that no commit has")
    words = ["python -m experiments.train", "--config", shlex.quote(run.config)]
    words += ["--workdir", shlex.quote(f"runs/{_slug(run.name)}-seed{run.seed}")]
    defaults = _defaults(run.config, root)
    if defaults is None:
        words.append(f"--config.seed={run.seed}")
        lines.append("# the config file is not in this checkout; its overrides are not known")
    else:
        here, there = flatten(defaults), flatten(run.settings)
        for key in sorted(there):
            if here.get(key, ()) == there[key]:
                continue
            if key in here and _is_scalar(there[key]) and type(here[key]) is type(there[key]):
                words.append(shlex.quote(f"--config.{key}={there[key]}"))
            else:
                lines.append(f"# config.{key} was {json.dumps(there[key])}")
        lines += [f"# config.{key} was not there" for key in sorted(here.keys() - there.keys())]
    return "\n".join([*lines, " ".join(words)])


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _slug(name: str) -> str:
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.")
    return kept or "run"


@functools.cache
def _defaults(config: str, root: Path) -> Mapping[str, Any] | None:
    """What a config file of this checkout gives; None where it is not one or does not run."""
    name, colon, variant = config.partition(":")
    folder = (root / "configs").resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(folder) or path.suffix != ".py" or not path.is_file():
        return None
    before = list(sys.path)
    try:
        sys.path.insert(0, os.fspath(root))
        spec = importlib.util.spec_from_file_location("_config_of_a_run", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = module.get_config(variant) if colon else module.get_config()
        return json.loads(json.dumps(found.to_dict()))
    except Exception:  # a config file is a program; one that no longer runs tells nothing
        return None
    finally:
        sys.path[:] = before
