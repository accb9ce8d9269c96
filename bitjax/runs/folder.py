"""The run folder: what a run leaves behind, and what it refuses to overwrite."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitjax.costs.site import Costs
from bitjax.files.writing import write_text
from bitjax.runs.files import Unfit, read_object
from bitjax.runs.rows import write_json


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that name a configuration.

    Example:
      >>> config_hash({"a": 1}) == config_hash({"a": 1}), len(config_hash({}))
      (True, 12)
    """
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as {dotted key: value}."""
    found = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def open_run(workdir: str | os.PathLike, config: Mapping[str, Any], resume: bool) -> Path:
    """Makes the folder, or checks that the run that has begun in it is this very one.

    Args:
      workdir: the folder.
      config: plain data, as JSON gives it back.
      resume: whether a folder that holds a run may be gone on with.

    Returns:
      The folder's path; `config.json` is in it.

    Raises:
      ValueError: the folder cannot be written, holds a run of another configuration (the message
        shows what differs), or holds a run while `resume` is False.

    Example:
      >>> import tempfile
      >>> folder = open_run(tempfile.mkdtemp(), {"seed": 0}, True)
      >>> (folder / "config.json").exists()
      True
    """
    folder = make_folder(workdir)
    differ = differences_there(folder, config)
    if differ:
        raise ValueError(
            f"the folder {str(folder)!r} holds a run of a different config ({'; '.join(differ)}). "
            "Choose another one, or remove it to start again."
        )
    if differ is not None and not resume:
        raise ValueError(
            f"the folder {str(folder)!r} holds a run already, and it is not to be resumed. "
            "Choose another one, or remove it to start again."
        )
    write_json(folder / "config.json", config)
    return folder


def make_folder(workdir: str | os.PathLike) -> Path:
    """Makes a folder, or checks that it is there and can be written; else a ValueError."""
    folder = Path(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except (OSError, ValueError) as error:  # the second: a name that no file can have
        raise ValueError(
            f"the folder {str(folder)!r} must be one that can be written, got: {error}. Choose "
            "another, or change its permissions."
        ) from error
    return folder


def read_config(folder: Path) -> Mapping[str, Any]:
    """What a run was made with, as its folder has it; a ValueError if the file is damaged."""
    try:
        return read_object(folder / "config.json")
    except Unfit as error:
        raise ValueError(f"the folder {str(folder)!r} {error}: restore the file.") from None


def differences_there(folder: Path, config: Mapping[str, Any]) -> list[str] | None:
    """How the run that has begun in a folder differs from a config; None if none has."""
    path = folder / "config.json"
    # A config alone is of a run that something stopped before its first step.
    begun = any(os.path.exists(folder / name) for name in ("checkpoints", "metrics.jsonl"))
    if not begun or not path.exists():
        return None
    there, now = flatten(read_config(folder)), flatten(json.loads(json.dumps(config)))
    return [
        f"{key}: {there.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted(there.keys() | now.keys())
        if there.get(key) != now.get(key)
    ]


def write_bits(
    path: Path, costs: Costs, fractional: Mapping[str, Any], integer: Mapping[str, Any]
) -> None:
    """Writes `bits.csv`: site, role, bits fractional and integer, macs, elements."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["site", "role", "bits_fractional", "bits_integer", "macs", "elements"])
    for site, cost in costs.items():
        whole = float(np.mean(integer.get(site, 32.0)))
        learned = float(np.mean(fractional.get(site, whole)))
        writer.writerow(
            [site, cost.role, f"{learned:.6g}", f"{whole:.6g}", cost.macs, cost.elements]
        )
    write_text(path, text.getvalue())
