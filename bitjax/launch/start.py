"""Loads the float variables that a run starts from."""

import os
from pathlib import Path
from typing import Any

import jax

from bitjax import models
from bitjax.runs.checkpoint import Checkpoints
from bitjax.training import hosts


def load_start(init_from: str, model: Any, sample: Any) -> dict[str, Any] | None:
    """Float variables to start from; None if empty.

    Args:
      init_from: a run's folder, with `@best` for those that evaluated best, or a published file.
      model: what they are for.
      sample: of its input.
    """
    if not init_from:
        return None
    name = init_from.removesuffix("@best")
    kind = "best" if name != init_from else "checkpoints"
    path = Path(name)
    if not path.exists():
        path = Path(os.environ.get("BITJAX_DATA", ".")) / name
    seen = hosts.gather(str((path / kind).is_dir()))
    if len(set(seen)) > 1:
        raise ValueError(
            f"config.init_from={init_from!r}: host {seen.index('False')} has no {path / kind}, "
            f"which host {seen.index('True')} has. Put it on a file system that they share."
        )
    if kind == "best" and not (path / kind).is_dir():
        raise ValueError(
            f"config.init_from={init_from!r}: {path} has no folder {kind!r}. Train that run with "
            "config.keep_best=True, or leave @best away."
        )
    shapes = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), sample))
    if (path / kind).is_dir():
        with Checkpoints(path / kind) as checkpoints:
            restored = checkpoints.restore(lambda meta: {"variables": dict(shapes)})
        if restored is None:
            raise ValueError(f"config.init_from={init_from!r} has no checkpoint; finish that run.")
        return restored.state["variables"]
    loaded = hosts.on_all(lambda: models.load_resnet(path))
    found, wanted = (
        {jax.tree_util.keystr(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (loaded, dict(shapes))
    )
    for leaf in sorted(found.keys() | wanted.keys()):
        if found.get(leaf) != wanted.get(leaf):
            raise ValueError(
                f"config.init_from={init_from!r} holds {leaf} of shape {found.get(leaf)}, but "
                f"config.model has {wanted.get(leaf)}: choose the model it was trained as."
            )
    return loaded
