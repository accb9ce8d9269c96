"""Loads the float variables that a run starts from, mapped by name to the model's."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitjax import models
from bitjax.files.reading import printable
from bitjax.launch.weights import FORMS, open_weights, path_name
from bitjax.runs.checkpoint import Checkpoints
from bitjax.training import hosts
from bitjax.variables import QUANT, STATS, as_call

_PUBLISHED = {  # by names that a published file has, who reads it
    ("stem.conv.kernel", "fc.kernel"): lambda path, leaves: models.load_resnet(
        path, folded=all(key[0] != "batch_stats" for key in leaves)
    ),
    ("tok_embeddings", "norm"): lambda path, leaves: models.load_llama(path),
    ("conv_final.kernel",): lambda path, leaves: models.load_squeezenet(path),
}
_SHOWN = 3  # of each kind of difference
_QUANTIZED = (f"variables/{QUANT}/", f"variables/{STATS}/")  # of a quantized run, not of its model
Key = tuple[str, ...]


class Start(NamedTuple):
    """Where float variables lie: the value of the key, a path, whether a run left them there."""

    init_from: str
    path: Path
    is_run: bool


def find_start(init_from: str) -> Start | None:
    """Looks for what `config.init_from` names, None if that is empty.

    It is a run's folder (with `@best` for the variables that evaluated best), or what
    `bitjax.launch.weights` reads, or the file of a published ResNet, Llama or SqueezeNet; under
    $BITJAX_DATA if not here.
    """
    if not init_from:
        return None
    name = init_from.removesuffix("@best")
    kind = "best" if name != init_from else "checkpoints"
    path = Path(name)
    if not os.path.exists(path):  # unlike a Path's, it takes names of any length
        path = Path(os.environ.get("BITJAX_DATA", ".")) / name
    folder = path / kind
    if os.path.isdir(folder):
        return Start(init_from, folder, _is_runs(folder))
    if kind == "best":
        raise ValueError(
            f"config.init_from={init_from!r}: {printable(path)} has no folder {kind!r}. Train that "
            "run with config.keep_best=True, or leave @best away."
        )
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"config.init_from={init_from!r}: {printable(path)} is missing; give the path of "
            f"{FORMS}, as it is or under the folder that BITJAX_DATA names."
        )
    return Start(init_from, path, False)


def _is_runs(folder: Path) -> bool:
    """Whether a folder of checkpoints is a run's; others' hold Orbax's files alone."""
    ours = any(folder.glob("*/manifest.json")) or (folder.parent / "metrics.jsonl").exists()
    return ours or not any(folder.glob("**/_METADATA"))


def load_start(start: Start | None, model: Any, sample: Any) -> dict[str, Any] | None:
    """The float variables that `find_start` has found, for a model; None if there are none."""
    # Of the sample, one batch of what the model takes, only the shapes count.
    if start is None:
        return None
    seen = hosts.gather(str(start.is_run))
    if len(set(seen)) > 1:
        raise ValueError(
            f"config.init_from={start.init_from!r}: host {seen.index('False')} has no checkpoints "
            f"of a run there, which host {seen.index('True')} has. Put it on a file system that "
            "they share."
        )
    args, kwargs = as_call(sample)
    shapes = dict(jax.eval_shape(model.init, jax.random.PRNGKey(0), *args, **kwargs))
    if not start.is_run:
        return hosts.on_all(lambda: _from_others(start.init_from, start.path, shapes))
    with Checkpoints(start.path) as checkpoints:
        try:
            restored = checkpoints.restore(lambda meta: {"variables": shapes}, without=_QUANTIZED)
        except ValueError as error:
            raise ValueError(
                f"config.init_from={start.init_from!r} must be a finished run of this "
                "config.model: "
                f"{error}"
            ) from error
    if restored is None:
        raise ValueError(
            f"config.init_from={start.init_from!r} has no checkpoint; finish that run."
        )
    return restored.state["variables"]


def _from_others(init_from: str, path: Path, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a file or an Orbax checkpoint as the model's variables."""
    leaves = _by_key(shapes)
    where = f"config.init_from={init_from!r}"
    try:
        weights = open_weights(path)
        placed = _placed(weights.names, leaves)
        read = next((r for names, r in _PUBLISHED.items() if {*names} <= {*weights.names}), None)
        if read is not None and {*placed.values()} != {*leaves}:
            found = jax.tree.map(np.asarray, _by_key(read(path, leaves)))
        else:
            arrays = weights.read(tuple(placed))
            found = {key: arrays[name] for name, key in placed.items()}
    except (ValueError, FileNotFoundError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{where}: {error}") from error
    _check_same(where, found, leaves)
    with np.errstate(over="ignore"):  # what is too large for the model's type becomes infinite
        cast = {k: found[k].astype(leaf.dtype, copy=False) for k, leaf in leaves.items()}
    if bad := [_text(key, x.dtype) for key, x in cast.items() if not np.isfinite(x).all()]:
        raise ValueError(f"{where} has values that are not finite: {_some(bad)}.")
    arrays = [jnp.asarray(x) for x in cast.values()]
    return jax.tree.unflatten(jax.tree.structure(dict(shapes)), arrays)


def _by_key(tree: Any) -> dict[Key, Any]:
    return {_parts(path_name(p)): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _parts(name: str) -> Key:
    """The names along a path, however they are joined: a/b, a.b, a//b or ['a']['b']."""
    return tuple(re.findall(r"[^/.\[\]'\"]+", name))


def _placed(names: Sequence[str], leaves: Mapping[Key, Any]) -> dict[str, Key]:
    """By its name in a file, each array's place among the model's variables.

    Names may leave collections (`params`, `batch_stats`) out. If they have them, they may lie
    deeper in a tree, a training state say, of which only the model's collections are taken.
    """
    parts = {name: _parts(name) for name in names}
    collections = list(dict.fromkeys(key[0] for key in leaves))
    roots = {p[: p.index("params")] for p in parts.values() if "params" in p}
    roots = sorted(roots, key=lambda root: (len(root), root))
    if not roots:
        placed: dict[str, Key] = {
            name: next(((c, *p) for c in collections if (c, *p) in leaves), ("params", *p))
            for name, p in parts.items()
        }
    else:
        root = roots[0]
        if same := ["/".join(other) for other in roots[1:] if len(other) == len(root)]:
            both = printable(f"{'/'.join(root)} and in {_some(same)}")
            raise ValueError(f"it has `params` in {both}; keep one.")
        if any(p[: len(root) + 2] == (*root, "params", "params") for p in parts.values()):
            root = (*root, "params")  # variables that were saved as `params`
        inside = {name: p[len(root) :] for name, p in parts.items() if p[: len(root)] == root}
        placed = {name: p for name, p in inside.items() if p and p[0] in collections}
    if len({*placed.values()}) < len(placed):
        raise ValueError("two of its names differ in nothing but their separators; keep one.")
    return placed


def _check_same(where: str, found: Mapping[Key, np.ndarray], leaves: Mapping[Key, Any]) -> None:
    """Raises a ValueError with every kind of difference between arrays and the model's."""
    shared = [key for key in leaves if key in found]
    differences = {
        "missing": [_text(k, leaves[k].shape) for k in leaves if k not in found],
        "unexpected": [_text(k, found[k].shape) for k in found if k not in leaves],
        "of another shape": [
            f"{_text(k, found[k].shape)} for {leaves[k].shape}"
            for k in shared
            if found[k].shape != leaves[k].shape
        ],
        "of another type": [
            f"{_text(k, found[k].dtype)} for {leaves[k].dtype}"
            for k in shared
            if _kind(found[k].dtype) != _kind(leaves[k].dtype)
        ],
    }
    listed = [f"{kind}: {_some(texts)}" for kind, texts in differences.items() if texts]
    if listed:
        raise ValueError(
            f"{where} does not fit config.model: {'; '.join(listed)}. Choose the model that it is "
            "of."
        )


def _kind(dtype: Any) -> Any:
    kinds = (jnp.floating, jnp.integer, jnp.bool_, jnp.complexfloating)
    return next((kind for kind in kinds if jnp.issubdtype(dtype, kind)), None)


def _text(key: Key, fact: object) -> str:
    return printable(f"{'/'.join(key)} {fact}")


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more
