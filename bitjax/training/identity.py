"""Whose a checkpoint is: what a run must share with the one that it goes on with."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bitjax.data import fingerprint
from bitjax.training.work import Work

_COUNTED = {
    "train": "{} training examples",
    "evaluation": "{} evaluation examples",
    "classes": "{} classes",
    "image_shape": "images of shape {}",
    "form": "tokens as {}",
    "context": "{} tokens an example",
    "train_context": "{} tokens a training example",
    "vocabulary": "a vocabulary of {}",
    "marker": "documents that begin with {}",
}
_NAMED = {
    "labels": "labels",
    "spans": "documents or parts of the streams",
    "content": "names and sizes of files, pixels or tokens",
}


def identity(work: Work) -> dict[str, Any]:
    """What tells a run from others, as JSON: its config, or else its parts; its start; its data."""
    facts, settings = work.facts, work.settings
    if "config_hash" in facts:
        run = {key: facts[key] for key in ("name", "config_hash", "start") if key in facts}
    else:
        run = {
            "method": work.method.name,
            "stages": [[stage.name, stage.steps] for stage in work.method.stages],
            "rules": _rules(work),
            "model": type(work.model).__name__,
            "seed": settings.seed,
            "batch_size": settings.batch_size,
        }
    return json.loads(json.dumps({**run, "data": fingerprint(work.dataset)}))


def _rules(work: Work) -> str:
    """A checksum of what quantizes which sites, as far as quantizers record their settings."""
    said = [
        (stage.name, rule.pattern, rule.quantizer and (rule.quantizer.name, rule.quantizer.form))
        for stage in work.method.stages
        for rule in stage.rules
    ]
    # An object of somebody else's may be shown by its place in memory, another one in each process.
    text = json.dumps(said, sort_keys=True, default=lambda value: type(value).__name__)
    return f"{zlib.crc32(text.encode()):08x}"


def checksum(variables: Mapping[str, Any]) -> str:
    """A number, in hexadecimal digits, that is another one for other weights."""
    crc = 0
    for leaf in jax.tree.leaves(variables):
        crc = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), crc)
    return f"{crc:08x}"


def check_same_run(there: Mapping[str, Any], now: Mapping[str, Any], folder: str) -> None:
    """Raises a ValueError unless the checkpoint's identity, in a folder, is that of the run now.

    Older versions of bitjax left less of it in a checkpoint, or nothing, and that is compared.
    """
    differ = [key for key in sorted(there) if there[key] != now.get(key)]
    if {*differ} - {"name", "data", "start"}:  # the file of a config may be moved
        shown = "; ".join(
            f"{key}: {there[key]!r} there, {now.get(key)!r} now" for key in differ if key != "data"
        )
        raise ValueError(
            f"the checkpoint in {folder!r} is of another run ({shown}). Choose another folder, or "
            "remove the checkpoint to start again."
        )
    if "start" in differ:
        raise ValueError(
            f"the weights that the run in {folder!r} starts from are not those that it began with. "
            "Restore them, or start a new run in another folder."
        )
    if "data" in differ:
        raise ValueError(
            f"the data are not those that the run in {folder!r} began with "
            f"({_changes(there['data'], now['data'])}). Restore them, or start a new run in "
            "another folder."
        )


def _changes(there: Any, now: Mapping[str, Any]) -> str:
    """How data differ, in words."""
    if not isinstance(there, Mapping):
        return "other data"
    differ = [key for key in {**_COUNTED, **_NAMED} if there.get(key) != now.get(key)]
    return "; ".join(
        f"{_COUNTED[key].format(there.get(key))} then, {now.get(key)} now"
        if key in _COUNTED
        else f"other {_NAMED[key]}"
        for key in differ
    )
