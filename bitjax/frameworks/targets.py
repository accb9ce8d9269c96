"""Chooses the layers to solve and each one's target.

In two-step quantization (Wang et al., CVPR 2018) a layer is solved so that its target is right:

- `codes`: the codes of the one quantizer that its output reaches, as in the paper;
- `relu`: the positive part of its output, where that is what the one quantizer reads;
- `sum`: the sum that its output is added to, including what the other addend has lost so far;
- `output`: its own output, for any other layer.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bitjax.frameworks.probe import ask_outside
from bitjax.program.consumers import NOTHING, Consumer, consumers
from bitjax.quantizers.base import Codes, Quantizer
from bitjax.rules import Rule, Rules, quantizer_of
from bitjax.variables import QUANT, STATS, read_site, site_name

TARGETS = ("codes", "relu", "sum", "output")
_MOST = 15  # codes above 0; with more of them, the positive part is as good a target
Variables = Mapping[str, Any]


class Plan(NamedTuple):
    """One layer to solve."""

    layer: str  # its path
    quantizer: Quantizer  # the quantizer of its kernel, which stores its scale
    consumer: Consumer  # what reads its output
    target: str  # one of `TARGETS`


class OutputLevels(NamedTuple):
    """Evenly spaced levels of a quantizer: code k is k * step, for x above the threshold."""

    step: float
    threshold: float  # x at most this has code 0
    count: int  # codes above 0


def is_stored(quantizer: Quantizer | None) -> bool:
    """Whether a kernel's scale is a parameter of its own, which can be solved for."""
    return quantizer is not None and quantizer.traits.stored_scale


def plan_layers(
    model: Any,
    variables: Variables,
    args: tuple,
    kwargs: Mapping[str, Any] | None = None,
    *,
    layers: str = ".*",
    bits: int | None = None,
    target: str = "codes",
) -> list[Plan]:
    """The layers whose kernel has a stored scale, in forward order; a ValueError without any."""
    # `codes` gives each layer the finest target there is for it; `sum` gives no `codes` and `relu`;
    # `output` gives `output` to all. `bits` takes only kernels of so many bits, None takes all.
    net, asked = ask_outside(model, variables, args, kwargs or {})
    readers = consumers(asked.call.program)
    found, stored = [], []
    for site, entry in asked.call.program.sites.items():
        quantizer = quantizer_of(net.rules, site)
        if entry.role != "kernel" or quantizer is None or not is_stored(quantizer):
            continue
        leaves = read_site(variables.get(QUANT, {}), site, {})
        if "bits" not in leaves:
            raise ValueError(
                f"`variables` have no bits of {site!r}: make them by bitjax.attach, or by the "
                "wrapped model's `init`."
            )
        own = float(np.max(leaves["bits"]))
        stored.append(f"{entry.layer} ({own:g} bits)")
        if not re.fullmatch(layers, entry.layer) or bits not in (None, round(own)):
            continue
        consumer = readers.get(entry.layer, NOTHING)
        kind = "output"
        if target == "codes" and consumer.site is not None and consumer.affine:
            if levels_of(net.rules, variables, consumer.site) is not None:
                kind = "codes"
            elif consumer.rectified:
                kind = "relu"
        if target != "output" and consumer.added and consumer.affine:
            kind = "sum"
        found.append(Plan(entry.layer, quantizer, consumer, kind))
    if not found:
        raise ValueError(
            f"no layer to solve matches `layers` {layers!r} with `bits` {bits}: give kernels "
            "ternary(), binary() or low_bit() quantizers with fit='stored'; there are "
            f"{', '.join(stored) or 'none'}."
        )
    return found


def levels_of(rules: Rules, variables: Variables, site: str) -> OutputLevels | None:
    """The levels of an input site's quantizer; None if they are not even or too many."""
    quantizer = quantizer_of(rules, site)
    if quantizer is None:
        return None
    params = read_site(variables[QUANT], site, {})
    if any(np.ndim(leaf) and np.size(leaf) > 1 for leaf in params.values()):
        return None  # per channel, or with coefficients
    stats = read_site(variables.get(STATS, {}), site, {})
    count = 2 ** round(float(np.max(params["bits"]))) - 1
    if not 1 <= count <= _MOST:
        return None
    codes = Codes(jnp.arange(count + 1))
    level = np.asarray(quantizer.decode(params, stats, codes), np.float64).ravel()
    step = float(level[-1]) / count
    if not (step > 0 and np.allclose(level, step * np.arange(count + 1), atol=1e-5 * level[-1])):
        return None
    return OutputLevels(step, float(params.get("threshold", step / 2)), count)


def float_kernels(rules: Rules) -> Rules:
    """The rules with float kernels where scales are stored: those of the model to imitate."""
    return tuple(r._replace(quantizer=None) if is_stored(r.quantizer) else r for r in rules)


def float_at(rules: Rules, layers: Iterable[str]) -> Rules:
    """The rules with float kernels in these layers."""
    return (*(Rule(re.escape(site_name(layer, "kernel")), None) for layer in layers), *rules)
