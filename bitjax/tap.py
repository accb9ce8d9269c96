"""What the layers of a model compute with: for solvers, for plots and for error messages."""

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bitjax.linen import QUANT, STATS
from bitjax.probe import Seen, compile_quickly, jit_arrays, probe

_SMALL = 1 << 16  # elements of a leaf that may as well be copied


class Tapped(NamedTuple):
    """One layer's call.

    Attributes:
      input: what the layer computed with, after quantization; None for a lookup.
      kernel: likewise.
      output: what it returned.
      norm: the path of the normalisation that reads the output itself, if there is one.
    """

    input: jax.Array | None
    kernel: jax.Array
    output: Any
    norm: str | None = None


def tap(
    model: nn.Module,
    variables: Mapping[str, Any],
    *args: Any,
    layers: str = ".*",
    **kwargs: Any,
) -> dict[str, Tapped]:
    """Runs a model and returns what its layers computed with and what they returned.

    It may be called inside jit. A scanned layer's arrays have a leading layer axis; of a layer that
    is called several times the last call counts.

    Args:
      model: a Linen module, wrapped in `Quantized` or not.
      variables: its collections; none of them changes.
      *args: what the model is called with.
      layers: a regular expression, matched in full against the layers' paths.
      **kwargs: for the model.

    Returns:
      `{layer: Tapped}` in forward order.

    Raises:
      ValueError: the pattern is not a regular expression or matches no layer; or a lifted transform
        around a layer does not list the collection `quant_stats`.

    Example:
      >>> x = jnp.ones((2, 3))
      >>> model = nn.Sequential([nn.Dense(4), nn.LayerNorm()])
      >>> tapped = tap(model, model.init(jax.random.key(0), x), x)
      >>> tapped["layers_0"].output.shape, tapped["layers_0"].norm
      ((2, 4), 'layers_1')
    """
    try:
        wanted = re.compile(layers)
    except re.error as error:
        raise ValueError(f"`layers` {layers!r} is not a regular expression: {error}.") from error
    names: dict[str, None] = {}
    norms: dict[str, str] = {}
    returned: list[tuple[Any, str]] = []  # held, so that an array's identity means something

    def on_layer(seen: Seen):
        names.setdefault(seen.layer.name)
        returned.append((seen.out, seen.layer.name))
        if wanted.fullmatch(seen.layer.name):
            looked_up = seen.layer.method == "attend" or "input" not in seen.tensors
            found = {} if looked_up else {"input": seen.tensors["input"]}
            return {**found, "kernel": seen.tensors["kernel"], "output": seen.out}

    def on_other(name, module, args, out):
        del out
        if args and any("Norm" in base.__name__ for base in type(module).__mro__):
            for value, layer in reversed(returned):
                if value is args[0]:
                    norms.setdefault(layer, name)

    probed = probe(model, variables, args, kwargs, on_layer, on_other)
    found = {
        name: Tapped(record.get("input"), record["kernel"], record["output"], norms.get(name))
        for name, record in probed.records
    }
    if not found:
        raise ValueError(
            f"`layers` {layers!r} matches no layer in full. Layers: {', '.join(names)}."
        )
    return found


def is_finite(tree: Any) -> jax.Array:
    """Whether no floating leaf of a tree holds NaN or inf; a scalar bool.

    Example:
      >>> bool(is_finite({"a": jnp.ones(2), "b": jnp.array(jnp.nan)}))
      False
    """
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(tree)]
    leaves = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]
    # Small ones as one vector, for a test of each takes long to compile; large ones are not copied.
    small = [jnp.ravel(x) for x in leaves if x.size <= _SMALL]
    groups = [x for x in leaves if x.size > _SMALL] + ([jnp.concatenate(small)] if small else [])
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in groups] or [True]))


def finite_flags(seen: Seen) -> dict[str, jax.Array]:
    """What `first_bad` reads of a layer: whether its tensors and its output are finite."""
    flags = {role: is_finite(seen.raw(role)) for role in seen.tensors}
    return {**flags, "output": is_finite(seen.out)}


def first_nonfinite(
    model: nn.Module, variables: Mapping[str, Any], *args: Any, **kwargs: Any
) -> str | None:
    """The first tensor of a forward pass that holds NaN or inf.

    Args:
      model: a Linen module, wrapped in `Quantized` or not.
      variables: its collections.
      *args: what the model is called with.
      **kwargs: for the model.

    Returns:
      A path such as `stage1/block1/conv1/input`, `.../kernel`, `.../output` or that of a variable,
      `stage1/block1/bn1/scale`; None where everything is finite. A site is looked at before
      quantization, which would turn NaN into a level. Of what runs in a lifted transform that does
      not list `quant_stats` only the variables are seen.

    Example:
      >>> x = jnp.array([[1.0, jnp.nan]])
      >>> first_nonfinite(nn.Dense(2), nn.Dense(2).init(jax.random.key(0), x), x)
      'input'
    """

    def run(variables, args):
        probed = probe(
            model, variables, args, kwargs, finite_flags,
            lambda name, module, args, out: {"output": is_finite(out)}, strict=False,
        )  # fmt: skip
        names[:] = [name for name, _ in probed.records]
        leaves = jax.tree_util.tree_leaves_with_path(dict(variables))
        paths[:] = [tuple(str(entry.key) for entry in path) for path, _ in leaves]
        return [flags for _, flags in probed.records], [is_finite(leaf) for _, leaf in leaves]

    names: list[str] = []
    paths: list[tuple[str, ...]] = []
    flags, finite = jit_arrays(run, dict(variables), args, **compile_quickly())
    bad = {path for path, flag in zip(paths, finite, strict=True) if not flag}
    return first_bad(list(zip(names, flags, strict=True)), bad)


def first_bad(
    records: Iterable[tuple[str, Mapping[str, jax.Array]]], bad: Iterable[tuple[str, ...]]
) -> str | None:
    """The first name that is not finite, of flags in forward order and of variables' paths.

    Args:
      records: `(module, {tensor: flags})`, flags true where finite.
      bad: paths of variables that are not finite, the collection first.

    Example:
      >>> flags = {"input": jnp.array(True), "output": jnp.array(False)}
      >>> first_bad([("conv", flags)], [("params", "conv", "bias")])
      'conv/bias'
    """
    records = list(records)
    owner = {path: _owner(path, records) for path in bad}
    for path, name in owner.items():
        if name is None:  # it cannot be placed, and what comes after it would take the blame
            return "/".join(path[1:])
    for name, flags in _steps(records):
        prefix = f"{name}/" if name else ""
        for tensor in ("input", "kernel"):
            if not flags.get(tensor, True):
                return prefix + tensor
        for path in owner:
            if owner[path] == name:
                return "/".join(path[1:])
        if not flags["output"]:
            return prefix + "output"
    return None


def _steps(records):
    """The records with one flag per tensor, a scanned layer's as often as it runs, in order."""

    def length(record):
        return np.size(record[1]["output"]) if np.ndim(record[1]["output"]) else 0

    for count, group in itertools.groupby(records, length):
        group = list(group)
        for step in range(max(1, count)):
            for name, flags in group:
                yield name, {key: np.ravel(flag)[step] for key, flag in flags.items()}


def _owner(path, records):
    """The module whose variable this is, or whose site learned or observed it."""
    inside = "/".join(path[1:-1])
    for name, flags in records:
        prefix = f"{name}/" if name else ""
        sites = [prefix + role for role in flags if path[0] in (QUANT, STATS)]
        if inside == name or inside in sites:
            return name
    return None
