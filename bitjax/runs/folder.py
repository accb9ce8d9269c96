"""The run folder: what a run leaves behind, and what it refuses to overwrite."""

import contextlib
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
from bitjax.files.reading import one_line
from bitjax.files.writing import remove_leftovers, why_not, write_text
from bitjax.runs.files import Unfit, read_object
from bitjax.runs.lock import InUseError, Lock, lock
from bitjax.runs.manifest import owners
from bitjax.runs.rows import write_json

# Keys that came after folders of runs were first kept, by their defaults. A config that leaves them
# so is the same as one that lacks them. Those of `LATER` count in its hash only where they do not.
EARLIER: dict[str, Any] = {
    "accumulate": 1,
    "compute_dtype": "float32",
    "data.image_size": 0,
    "data.splits": [],
    "device_data_mb": 1024,
    "devices": 0,
    "keep_best": False,
    "keep_checkpoints": 2,
    "parallel": "auto",
    "steps_per_dispatch": 1,
}
LATER: dict[str, Any] = {
    "sums": False,
    "task.name": "",
    "data.eval_limit": 0,
    "data.context": 0,
    "data.train_context": 0,
    "data.marker": 1,
    "data.form": "",
    "data.train_from": "",
    "writers": [],
}
CAME = EARLIER | LATER

_FILES = ("config.json", "result.json")
# What a run leaves once it has begun, beside its checkpoints.
_SIGNS = ("metrics.jsonl", "result.json")


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that name a configuration; keys of `LATER` count where they say.

    Example:
      >>> config_hash({"a": 1}) == config_hash({"a": 1, "sums": False}), len(config_hash({}))
      (True, 12)
    """
    return _digest(_settled(config, LATER))


def hashes_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The hash of a configuration, and those that older versions gave it."""
    settled = _settled(config, LATER)
    # One version counted `sums` wherever it was; the first one had none of the keys that came.
    older = ({**settled, "sums": config.get("sums", False)}, _settled(config, CAME))
    return tuple(_digest(each) for each in (settled, *older))


def is_hash_of(digest: Any, config: Mapping[str, Any]) -> bool:
    """Whether a run was left by a configuration, whose hash may be of an older version."""
    return digest in hashes_of(config)


def _digest(config: Mapping[str, Any]) -> str:
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _settled(
    config: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = ""
) -> dict[str, Any]:
    """A configuration without those keys that are at their defaults."""
    found = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            if value := _settled(value, defaults, f"{key}."):
                found[name] = value
        elif key not in defaults or value != defaults[key]:
            found[name] = value
    return found


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

    This process has the folder from then on, until its run ends; see `runs.lock`.

    Args:
      workdir: the folder.
      config: plain data, as JSON gives it back.
      resume: whether a folder that holds a run may be gone on with.

    Returns:
      The folder's path; `config.json` is in it.

    Raises:
      InUseError: another process writes to the folder.
      ValueError: the folder cannot be written, holds a run of another configuration (the message
        shows what differs), a run while `resume` is False, or other runs' folders.

    Example:
      >>> import tempfile
      >>> folder = open_run(tempfile.mkdtemp(), {"seed": 0}, True)
      >>> (folder / "config.json").exists()
      True
    """
    folder = Path(workdir)
    _check_alone(folder)
    held = take_folder(folder)
    try:
        _check_same_run(folder, config, resume)
        write_json(folder / "config.json", config)
    except BaseException:  # whatever it is, it leaves no lock held
        held.close()
        raise
    return folder


def take_folder(folder: Path) -> Lock:
    """Makes a folder that only this process writes to, until it closes the lock or ends."""
    held = None
    try:
        held = lock(folder)
        remove_leftovers(folder)
        return held
    except InUseError:
        raise
    except (OSError, ValueError) as error:  # the second: a name that no file can have
        if held is not None:
            held.close()
        remedy = why_not(folder, 0, error)[1]
        raise ValueError(
            f"the folder {str(folder)!r} must be one that can be written, got: "
            f"{one_line(error)}. {remedy}."
        ) from error


def _check_same_run(folder: Path, config: Mapping[str, Any], resume: bool) -> None:
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


def _check_alone(folder: Path) -> None:
    """Refuses a folder of runs' folders: reports on it would show its own run alone."""
    if _has_begun(folder) or not os.path.isdir(folder):
        return
    inside = sorted(path.parent.name for name in _FILES for path in folder.glob(f"*/{name}"))
    if inside:
        raise ValueError(
            f"the folder {str(folder)!r} holds other runs, such as {inside[0]!r}. Choose one of "
            f"its own for this run, such as {str(folder / 'new')!r}."
        )


def check_holds_runs(folder: Path) -> None:
    """Refuses a run's own folder where the folders of several runs are to be made."""
    if any(os.path.exists(folder / name) for name in _FILES):
        raise ValueError(
            f"the folder {str(folder)!r} is a run's own. Choose another for the runs' folders."
        )


def read_config(folder: Path) -> Mapping[str, Any]:
    """What a run was made with, as its folder has it; a ValueError if the file is damaged."""
    try:
        return read_object(folder / "config.json")
    except Unfit as error:
        raise ValueError(f"the folder {str(folder)!r} {error}: restore the file.") from None


def differences_there(folder: Path, config: Mapping[str, Any]) -> list[str] | None:
    """How the run that has begun in a folder differs from a config; None if none has.

    Where config.json is gone, the hash of it that the run has left elsewhere must do.
    """
    if not _has_begun(folder):
        return None
    if not (folder / "config.json").exists() and (hashes := _hashes_there(folder)):
        others = sorted(other for other in hashes if not is_hash_of(other, config))
        return [f"hash: {other} there, {config_hash(config)} now" for other in others]
    now, there = (
        CAME | flatten(json.loads(json.dumps(config))),
        CAME | flatten(read_config(folder)),
    )
    return [
        one_line(f"{key}: {there.get(key)!r} there, {now.get(key)!r} now")
        for key in sorted(there.keys() | now.keys())
        if there.get(key) != now.get(key)
    ]


def _has_begun(folder: Path) -> bool:
    # A config alone is of a run that something stopped before its first step, and a checkpoint
    # without a manifest of one that was killed while it wrote it.
    seen = any(os.path.exists(folder / name) for name in _SIGNS)
    # A name that is too long for a folder is none to search.
    return seen or (os.path.isdir(folder) and any(folder.glob("checkpoints/*/manifest.json")))


def _hashes_there(folder: Path) -> set[str]:
    """The hashes of configs that a run's result and its checkpoints name."""
    found = [run.get("config_hash") for run in owners(folder / "checkpoints")]
    with contextlib.suppress(Unfit, OSError):  # a damaged result names none
        found.append(read_object(folder / "result.json").get("config_hash"))
    return {digest for digest in found if isinstance(digest, str)}


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
