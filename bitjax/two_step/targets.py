"""Which layers are solved, for which target, and what of each follows from the model.

Two-step quantization (Wang et al., CVPR 2018): a layer whose output reaches exactly one quantizer
is right when that quantizer's codes are (`codes`), or behind a ReLU when what is above 0 is
(`relu`); one that is added to something, when the sum is (`sum`: it makes good what the other
addend has lost so far); any other when its output is (`output`). The first is the paper's.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bitjax.costs.site import Costs
from bitjax.linen.consumers import Consumer, consumers
from bitjax.linen.quantized import Quantized
from bitjax.quantizers.base import Codes, Quantizer
from bitjax.rules import Rules, quantizer_of
from bitjax.variables import QUANT, STATS

TARGETS = ("codes", "relu", "sum", "output")
_MOST = 15  # codes above 0; of more, what is above 0 says as much
Variables = Mapping[str, Any]


class Plan(NamedTuple):
    """One layer to solve.

    Attributes:
      layer: its path.
      quantizer: of its kernel, with a stored scale.
      consumer: what reads its output.
      target: one of `TARGETS`.
    """

    layer: str
    quantizer: Quantizer
    consumer: Consumer
    target: str


class Levels(NamedTuple):
    """A quantizer of what is above 0, as code k stands for k * step above its threshold.

    Attributes:
      step: distance of levels.
      threshold: what is not above it has code 0.
      count: codes above 0.
    """

    step: float
    threshold: float
    count: int


class Affine(NamedTuple):
    """A batch normalisation in evaluation: gain * x + offset per channel, [M]."""

    gain_M: np.ndarray
    offset_M: np.ndarray


def is_stored(quantizer: Quantizer | None) -> bool:
    """Whether a kernel's scale is a parameter of its own, which can be solved for.

    Example:
      >>> from bitjax.quantizers.ternary import ternary
      >>> is_stored(ternary(fit="stored")), is_stored(ternary())
      (True, False)
    """
    return quantizer is not None and quantizer.traits.stored_scale


def plan_layers(
    model: Quantized,
    variables: Variables,
    costs: Costs,
    args: tuple,
    *,
    layers: str = ".*",
    bits: int | None = None,
    target: str = "codes",
) -> list[Plan]:
    """The layers whose kernel has a stored scale, in forward order.

    Args:
      model: wrapped.
      variables: all its collections.
      costs: from `site_costs`.
      args: what the model is called with, or shapes.
      layers: a regular expression, matched in full against layers' paths.
      bits: only kernels of so many bits; None takes all.
      target: `codes` gives each layer the finest of `TARGETS` that is known of it: codes where the
        one quantizer that it reaches has at most 15 evenly spaced levels above 0; `sum` gives none
        of the first two; `output` gives that to all.

    Raises:
      ValueError: no kernel fits; the message lists those with a stored scale.
    """
    readers = consumers(model, _floats(variables), *args)
    found, stored = [], []
    for site, entry in costs.items():
        quantizer = quantizer_of(model.rules, site)
        if entry.role != "kernel" or quantizer is None or not is_stored(quantizer):
            continue
        own = float(np.max(_leaf(variables[QUANT], site)["bits"]))
        stored.append(f"{entry.layer} ({own:g} bits)")
        if not re.fullmatch(layers, entry.layer) or bits not in (None, round(own)):
            continue
        consumer = readers.get(entry.layer, Consumer(None, None))
        affine = consumer.norm is None or consumer.epsilon is not None
        kind = "output"
        if target == "codes" and consumer.site is not None and affine:
            if levels_of(model.rules, variables, consumer.site) is not None:
                kind = "codes"
            elif consumer.rectified:
                kind = "relu"
        if target != "output" and consumer.added and affine:
            kind = "sum"
        found.append(Plan(entry.layer, quantizer, consumer, kind))
    if not found:
        raise ValueError(
            f"no layer to solve matches `layers` {layers!r} with `bits` {bits}: give kernels "
            "ternary(), binary() or low_bit() quantizers with fit='stored'; there are "
            f"{', '.join(stored) or 'none'}."
        )
    return found


def levels_of(rules: Rules, variables: Variables, site: str) -> Levels | None:
    """The levels of an input site's quantizer; None where they are not those of `Levels`.

    Example:
      >>> import bitjax as bj
      >>> q = bj.lsq(bits=2, signed=False)
      >>> quant = {"input": {"bits": jnp.float32(2), "scale": jnp.float32(0.5)}}
      >>> levels_of([bj.rule("input", q)], {"quant": quant}, "input")
      Levels(step=0.5, threshold=0.25, count=3)
    """
    quantizer = quantizer_of(rules, site)
    if quantizer is None:
        return None
    params = _leaf(variables[QUANT], site)
    if any(np.ndim(leaf) and np.size(leaf) > 1 for leaf in params.values()):
        return None  # per channel, or with coefficients
    stats = _leaf(variables.get(STATS, {}), site)
    count = 2 ** round(float(np.max(params["bits"]))) - 1
    if not 1 <= count <= _MOST:
        return None
    codes = Codes(jnp.arange(count + 1))
    level = np.asarray(quantizer.decode(params, stats, codes), np.float64).ravel()
    step = float(level[-1]) / count
    if not (step > 0 and np.allclose(level, step * np.arange(count + 1), atol=1e-5 * level[-1])):
        return None
    return Levels(step, float(params.get("threshold", step / 2)), count)


def affine_of(variables: Variables, consumer: Consumer, filters: int) -> Affine | None:
    """What a layer's consumer does to it first; the identity without a normalisation."""
    if consumer.norm is None:
        return Affine(np.ones(filters), np.zeros(filters))
    if consumer.epsilon is None:
        return None
    params = _leaf(variables["params"], consumer.norm)
    stats = _leaf(variables["batch_stats"], consumer.norm)
    mean, variance = (np.asarray(stats[name], np.float64) for name in ("mean", "var"))
    gain = np.asarray(params.get("scale", 1.0), np.float64) / np.sqrt(variance + consumer.epsilon)
    return Affine(gain, np.asarray(params.get("bias", 0.0), np.float64) - gain * mean)


def with_float_kernels(model: Quantized) -> Quantized:
    """The model with the kernels of stored scales as they are: what it is solved to be like."""
    rules = (r._replace(quantizer=None) if is_stored(r.quantizer) else r for r in model.rules)
    return model.clone(rules=tuple(rules))


def has_intercept(variables: Variables, plan: Plan) -> bool:
    """Whether an intercept has a place: the layer's bias, or its batch normalisation's mean."""
    params = _leaf(variables["params"], plan.layer)
    return "bias" in params or plan.consumer.epsilon is not None


def _floats(variables):
    return {name: tree for name, tree in variables.items() if name not in (QUANT, STATS)}


def _leaf(tree, path):
    for name in path.split("/") if path else ():
        tree = tree.get(name, {})
    return tree
