"""One model to try: what it is, how it is called, and the plain function that it is."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Missing(Exception):
    """A model cannot be had here; the text says which package or folder is not there."""


class Case(NamedTuple):
    """A model, its variables and one batch.

    Attributes:
      framework: `linen`, `nnx`, or `function` for `model(params, *args, **kwargs)`.
      model: the Linen or NNX module, or the function.
      variables: all collections of a Linen module, or the parameters of a function.
      args: positional arguments; arrays are data, all else is static.
      kwargs: keyword arguments, likewise.
      source: package or repository, with its version.
      examples: the batch's size, by which MACs are divided.
      rngs: keys by name, of a Linen call.
      method: the Linen method to call, if not `__call__`.
      mutable: collections of a Linen call that change.
      axes: names of mapped axes around the call, which lead every array of `args`.
      outside: the arguments of a call outside of those axes.
      neutral: positions of a function's arguments that are neither parameters nor data.
      note: what is special.
    """

    framework: str
    model: Any
    variables: Any
    args: tuple
    kwargs: Mapping[str, Any] = {}
    source: str = ""
    examples: int = 2
    rngs: Mapping[str, jax.Array] = {}
    method: str | None = None
    mutable: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()
    outside: tuple = ()
    neutral: tuple[int | str, ...] = ()
    note: str = ""


Builder = Callable[[], Case]


def pure(case: Case) -> tuple[Callable[..., Any], Any, list[jax.Array]]:
    """The float model as `f(params, arrays) -> out`, with its parameters and its batch's arrays.

    The arrays are arguments, so that products of data by data appear in the traced program.
    """
    leaves, tree = jax.tree.flatten((case.args, dict(case.kwargs)))
    dynamic = [isinstance(x, jax.Array | np.ndarray) for x in leaves]
    arrays = [jnp.asarray(x) for x, d in zip(leaves, dynamic, strict=True) if d]
    apply, params = _apply(case)

    def call(params, arrays):
        given = iter(arrays)
        pairs = zip(leaves, dynamic, strict=True)
        args, kwargs = jax.tree.unflatten(tree, [next(given) if d else x for x, d in pairs])
        return apply(params, *args, **kwargs)

    for axis in reversed(case.axes):
        call = jax.vmap(call, in_axes=(None, 0), axis_name=axis)
    return call, params, arrays


def _apply(case: Case) -> tuple[Callable[..., Any], Any]:
    if case.framework == "function":
        return case.model, case.variables
    if case.framework == "linen":
        others = {name: v for name, v in case.variables.items() if name != "params"}

        def apply(params, *args, **kwargs):
            variables = {**others, "params": params}
            options = {"rngs": dict(case.rngs), "method": case.method}
            out = case.model.apply(
                variables, *args, mutable=list(case.mutable) or False, **options, **kwargs
            )
            return out[0] if case.mutable else out

        return apply, case.variables["params"]
    from flax import nnx

    graph, params, rest = nnx.split(case.model, nnx.Param, ...)

    def call(params, *args, **kwargs):
        # A copy, since a model may count its keys or move its statistics.
        return nnx.merge(graph, params, rest, copy=True)(*args, **kwargs)

    return call, params


def linen(model: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None, **more) -> Case:
    """A Linen model's case, its variables made on the batch and stirred."""
    kwargs, rngs = dict(kwargs or {}), dict(more.get("rngs", {}))
    keys = {"params": jax.random.key(1), **rngs}
    init = jax.jit(lambda keys: model.init(keys, *args, **kwargs))
    return Case("linen", model, stir(init(keys)), args, kwargs, **more)


def stir(tree: Any) -> Any:
    """The tree with noise on every constant float leaf, so that no gradient dies of a zero.

    Heads and the last scale of a residual branch begin at zero in many models.
    """
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(2)
    return jax.tree.unflatten(structure, [_stirred(x, rng) for x in leaves])


def _stirred(x, rng):
    if not jnp.issubdtype(x.dtype, jnp.floating) or float(jnp.ptp(x)) > 0:
        return x
    # Positive, since a running variance is constant at first, too.
    return x + jnp.asarray(0.1 * np.abs(rng.normal(size=x.shape)), x.dtype)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Standard normal data."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def tokens(batch: int, length: int, vocabulary: int, seed: int = 0) -> jax.Array:
    """Integer tokens in [3, vocabulary): the first ones are often special."""
    drawn = np.random.default_rng(seed).integers(3, vocabulary, size=(batch, length))
    return jnp.asarray(drawn, jnp.int32)


def folder(name: str) -> Path:
    """The checkout of a repository, `$BITJAX_MODELS/<name>`."""
    root = os.environ.get("BITJAX_MODELS", "")
    path = Path(root) / name
    if not root or not path.is_dir():
        raise Missing(f"no folder {name} in BITJAX_MODELS ({root or 'not set'})")
    return path


def checkout(name: str) -> str:
    """A repository's name and commit: of its file COMMIT, or of git."""
    path = folder(name)
    if (path / "COMMIT").exists():
        return f"{name} {(path / 'COMMIT').read_text()[:7]}"
    command = ["git", "-C", str(path), "rev-parse", "--short", "HEAD"]
    ran = subprocess.run(command, capture_output=True, text=True)
    return f"{name} {ran.stdout.strip() or 'unknown'}"


def module_at(path: Path) -> Any:
    """A module by its file, under a name that no other file has."""
    if not path.exists():
        raise Missing(f"no file {path}")
    name = "_".join(path.with_suffix("").parts[-3:])
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None, path
        sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look it up
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@contextmanager
def on_path(path: Path) -> Iterator[None]:
    """Modules are also imported from this folder."""
    sys.path.insert(0, str(path))
    try:
        yield
    finally:
        sys.path.remove(str(path))


def package(name: str) -> Any:
    """An installed package, or `Missing`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Missing(f"no package {name}: {error}") from None
