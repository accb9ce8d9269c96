"""Reads the tensors that the layers of a model compute with, for solvers, plots and messages."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from bitjax.checks import PATTERN, checked
from bitjax.frameworks.probe import ask_outside, probe
from bitjax.program.consumers import NOTHING, consumers
from bitjax.program.state import Seen
from bitjax.variables import VARIABLES


class Tapped(NamedTuple):
    """One layer's call, or one product of two activations."""

    input: jax.Array | None  # after quantization; None for a lookup and between activations
    kernel: jax.Array | None  # after quantization; None between activations
    output: Any  # what the layer returned
    norm: str | None = None  # the path of the normalisation that reads the output itself
    # The two activations, after quantization, of a product such as attention's, or of a sum.
    left: jax.Array | None = None
    right: jax.Array | None = None


@checked(variables=VARIABLES, layers=PATTERN)
def tap(
    model: Any,
    variables: Mapping[str, Any],
    *args: Any,
    layers: str = ".*",
    **kwargs: Any,
) -> dict[str, Tapped]:
    """Runs a model and returns the tensors that its layers computed with and returned.

    It may be called inside jit. A scanned layer's arrays have a leading layer axis. If a layer is
    called several times, its last call is returned.

    Args:
      model: a Linen module or a function of parameters, wrapped or not.
      variables: all collections of the model; none of them changes.
      *args: positional arguments of the model.
      layers: a regular expression, matched in full against the layers' paths.
      **kwargs: keyword arguments of the model.

    Returns:
      `{layer: Tapped}` in forward order.

    Raises:
      ValueError: the pattern is not a regular expression or matches no layer; or a layer is
        computed in a loop or a branch.

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp
      >>> x = jnp.ones((2, 3))
      >>> model = nn.Sequential([nn.Dense(4), nn.LayerNorm()])
      >>> tapped = tap(model, model.init(jax.random.key(0), x), x)
      >>> tapped["layers_0"].output.shape, tapped["layers_0"].norm
      ((2, 4), 'layers_1')
    """
    wanted = re.compile(layers)
    names: dict[str, None] = {}

    def watch(seen: Seen):
        layer = seen.product.layer
        names.setdefault(layer)
        if wanted.fullmatch(layer):
            return {**seen.tensors, "output": seen.out}

    probed = probe(model, variables, args, kwargs, watch)
    _, asked = ask_outside(model, variables, args, kwargs)
    readers = consumers(asked.call.program)
    found = {
        name: Tapped(
            record.get("input"), record.get("kernel"), record["output"],
            readers.get(name, NOTHING).norm, record.get("left"), record.get("right"),
        )
        for name, record in probed.records
    }  # fmt: skip
    if probed.unseen:
        raise ValueError(
            f"layer {probed.unseen[0]!r} is computed in a loop or a branch, which cannot hand out "
            "its tensors: leave it out of `layers`."
        )
    if not found:
        raise ValueError(
            f"`layers` {layers!r} matches no layer in full. Layers: {', '.join(names)}."
        )
    return found
