"""Reads the integers that a model's kernels are quantized to, as evaluation quantizes them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bitjax.checks import checked
from bitjax.costs.bits import bits_of
from bitjax.frameworks.call import Model
from bitjax.frameworks.compiled import jit_arrays
from bitjax.frameworks.models import rules_of
from bitjax.frameworks.probe import ask_outside, probe
from bitjax.program.state import Seen
from bitjax.quantizers.base import Numbers, Params, Quantizer, Stats
from bitjax.rules import quantizer_of
from bitjax.variables import VARIABLES


class KernelCodes(NamedTuple):
    """A kernel's integers, with what decodes them; a scanned layer's have its steps in front.

    Attributes:
      codes: int32, the kernel's shape.
      side: the scales of examples that the codes need, if any, by name.
      levels: the numbers that evaluation multiplies by, in the kernel's shape and dtype; they are
        `quantizer.decode(params, stats, Codes(codes, side))`.
      quantizer: the site's quantizer.
      params: the quantizer's leaves in `quant`, with `bits` among them.
      stats: the range or the scale that the quantizer took from this kernel; empty where it takes
        none.
      numbers: the scale and the ends of the integers that the codes hold; None where levels are no
        multiples of one scale.
    """

    codes: jax.Array
    side: Mapping[str, jax.Array]
    levels: jax.Array
    quantizer: Quantizer
    params: Params
    stats: Stats
    numbers: Numbers | None


@checked(variables=VARIABLES)
def codes_of(
    model: Model, variables: Mapping[str, Any], *args: Any, **kwargs: Any
) -> dict[str, KernelCodes]:
    """The integer codes of every quantized kernel, and the levels that they stand for.

    The model is run as for evaluation, and each kernel is coded where it is quantized, with the
    range that it has there. So the codes are those of these variables at any moment. The ranges
    in `quant_stats` are not: a training step leaves those of the kernels before its update.

    Args:
      model: a wrapped model.
      variables: all collections of the model.
      *args: positional arguments of the model; of a batch only the shapes count.
      **kwargs: keyword arguments of the model.

    Returns:
      `{site: KernelCodes}` in forward order.

    Raises:
      ValueError: no kernel is quantized; a kernel has a bitlength between two integers, and so lies
        on no grid; or one is read in a loop or a branch.

    Example:
      >>> import bitjax as bj, flax.linen as nn, jax.numpy as jnp
      >>> model = bj.Quantized(nn.Dense(2), [bj.rule("kernel", bj.lsq(bits=2))])
      >>> x = jnp.ones((1, 3))
      >>> found = codes_of(model, model.init(jax.random.key(0), x), x)["kernel"]
      >>> levels = found.quantizer.decode(found.params, found.stats, bj.Codes(found.codes))
      >>> found.codes.shape, bool((levels == found.levels).all())
      ((3, 2), True)
    """
    wanted = _kernels(model, variables, args, kwargs)
    found: dict[str, KernelCodes] = {}
    for record in jit_arrays(_encoded, variables, args, kwargs, static=(model,)):
        for site, (codes, side, levels, *rest) in record.items():
            quantizer = quantizer_of(rules_of(model), site)
            assert quantizer is not None, "a kernel with codes has a quantizer"
            found[site] = KernelCodes(codes, side, levels, quantizer, *rest)
    hidden = [site for site in wanted if site not in found]
    if hidden:
        raise ValueError(
            f"the kernel of {hidden[0]!r} is read in a loop or a branch, which cannot hand out its "
            "codes: write the loop as a scan."
        )
    return found


def _encoded(model, variables, args, kwargs):
    """By layer and kernel the fields of `KernelCodes`, but for the quantizer."""

    def watch(seen: Seen):
        use = seen.uses.get("kernel")
        if use is None:
            return None
        codes, side = use.quantizer.encode(use.params, use.stats, use.x)
        numbers = use.quantizer.numbers and use.quantizer.numbers(use.params, use.stats)
        # Not what the product reads, which may be moved, as a tied head's table is.
        levels = use.quantizer.apply(use.params, use.stats, use.x)
        return {seen.site("kernel"): (codes, side, levels, use.params, use.stats, numbers)}

    return [record for _, record in probe(model, variables, args, kwargs, watch).records]


def _kernels(model, variables, args, kwargs):
    """The sites of the quantized kernels, if there are any and all of them lie on a grid."""
    net, asked = ask_outside(model, variables, args, kwargs)
    sites = [site for site, entry in asked.call.program.sites.items() if entry.role == "kernel"]
    wanted = [site for site in sites if quantizer_of(net.rules, site) is not None]
    if not wanted:
        raise ValueError(
            "the rules quantize no kernel: give one a quantizer. Kernels: "
            f"{', '.join(sites) or 'none'}."
        )
    bits = bits_of(variables)
    for site in wanted:
        given = np.asarray(bits[site]) if site in bits else np.zeros(())
        if (given != np.rint(given)).any():
            raise ValueError(
                f"{site!r} has {given.ravel()[0]:g} bits, which lie between two grids: round them "
                "first, by bitjax.round_bits and bitjax.with_bits."
            )
    return wanted
