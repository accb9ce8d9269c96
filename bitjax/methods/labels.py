"""Labels of trained leaves: which optimizer moves what."""

from collections.abc import Callable
from typing import Any

import jax

from bitjax.costs.site import Costs
from bitjax.methods.base import Variables
from bitjax.quantizers.base import RANGES
from bitjax.rules import Rules, quantizer_of

FROZEN = "frozen"


def default_labels(trained: Variables) -> Any:
    """`weights` for parameters, `bits` and `ranges` for what quantizers learn, else `frozen`.

    Example:
      >>> default_labels({"params": {"w": 0.0}, "quant": {"kernel": {"bits": 4.0, "scale": 1.0}}})
      {'params': {'w': 'weights'}, 'quant': {'kernel': {'bits': 'bits', 'scale': 'ranges'}}}
    """

    def label(path, leaf):
        del leaf
        if path[0].key == "params":
            return "weights"
        name = path[-1].key
        return "bits" if name == "bits" else "ranges" if name in RANGES else FROZEN

    return jax.tree_util.tree_map_with_path(label, trained)


def learned_labels(rules: Rules) -> Callable[[Any], Any]:
    """`default_labels`, with the bits of sites whose quantizer has them fixed frozen.

    A penalty or a budget reaches every `bits` leaf, also those of fixed bits.

    Example:
      >>> from bitjax.quantizers import uniform
      >>> from bitjax.rules import rule
      >>> labels = learned_labels([rule(".*", uniform(bits=8))])
      >>> labels({"quant": {"head": {"kernel": {"bits": 8.0}}}})
      {'quant': {'head': {'kernel': {'bits': 'frozen'}}}}
    """

    def label(path, name):
        site = "/".join(key.key for key in path[1:-1])
        quantizer = quantizer_of(rules, site) if name == "bits" else None
        return FROZEN if quantizer is not None and quantizer.traits.learns_bits is None else name

    return lambda trained: jax.tree_util.tree_map_with_path(label, default_labels(trained))


def bit_limits(rules: Rules, costs: Costs) -> dict[str, tuple[float, float]]:
    """(least, most) bits of every site whose quantizer learns its bits.

    Example:
      >>> from bitjax.quantizers.bitlength import bitlength
      >>> from bitjax.rules import rule
      >>> from bitjax.costs.site import SiteCost
      >>> rules = [rule(".*", bitlength(max_bits=8.0))]
      >>> bit_limits(rules, {"kernel": SiteCost(1, 1, 1, "", "", "kernel")})
      {'kernel': (1.0, 8.0)}
    """
    found = {}
    for site in costs:
        quantizer = quantizer_of(rules, site)
        if quantizer is not None and quantizer.traits.learns_bits is not None:
            found[site] = quantizer.traits.learns_bits
    return found
