"""Reads the tensors that the layers of a model compute with, for solvers, plots and messages."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from bitjax.linen.probe import Seen, probe


class Tapped(NamedTuple):
    """One layer's call."""

    input: jax.Array | None  # after quantization; None for a lookup
    kernel: jax.Array  # after quantization
    output: Any  # what the layer returned
    norm: str | None = None  # the path of the normalisation that reads the output itself


def tap(
    model: nn.Module,
    variables: Mapping[str, Any],
    *args: Any,
    layers: str = ".*",
    **kwargs: Any,
) -> dict[str, Tapped]:
    """Runs a model and returns the tensors that its layers computed with and returned.

    It may be called inside jit. A scanned layer's arrays have a leading layer axis. If a layer is
    called several times, its last call is returned.

    Args:
      model: a Linen module, wrapped in `Quantized` or not.
      variables: all collections of the model; none of them changes.
      *args: positional arguments of the model.
      layers: a regular expression, matched in full against the layers' paths.
      **kwargs: keyword arguments of the model.

    Returns:
      `{layer: Tapped}` in forward order.

    Raises:
      ValueError: the pattern is not a regular expression or matches no layer; or a lifted transform
        around a layer does not list the collection `quant_stats`.

    Example:
      >>> import jax.numpy as jnp
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
    returned: list[tuple[Any, str]] = []  # held, so that no identity is used twice

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
