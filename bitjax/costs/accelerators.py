"""Estimates the speed-up of few bits on three accelerators by their published cost rules.

Times are relative to 16-bit weights and inputs on the same accelerator, as in these papers. A
tensor of more bits, float ones included, counts as 16 bits.

The rules are simplified and so give an upper limit: every unit is busy in every cycle (no tiling,
no ragged edges), and memory is never waited for. A tensor whose channels differ in bits counts its
mean.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from bitjax.checks import FUNCTION, check_one, checked, instance, several

BASELINE_BITS = 16.0
_FUSED = (2.0, 4.0, 8.0, 16.0)  # operand widths that Bit Fusion supports


class LayerBits(NamedTuple):
    """The figures of a layer that the rules read.

    Attributes:
      macs: multiply-adds per example.
      weights: elements of the kernel.
      weight_bits: bits of a weight; 0 for a layer that is removed.
      input_bits: bits of an element of the layer's input.
    """

    macs: float
    weights: float
    weight_bits: float
    input_bits: float


def reuses_weights(layer: LayerBits) -> bool:
    """Whether an example uses a weight more than once: a convolution does, a dense layer does not.

    Example:
      >>> reuses_weights(LayerBits(macs=2560, weights=2560, weight_bits=4, input_bits=4))
      False
    """
    return layer.macs > layer.weights


def stripes(layer: LayerBits) -> float:
    """Stripes' time relative to 16 bits: input bits / 16 where weights are reused, else 1.

    Inputs are fed bit by bit. The 16 units that this takes work on 16 windows that share weights; a
    dense layer has no such windows.

    Example:
      >>> stripes(LayerBits(macs=73728, weights=4608, weight_bits=2, input_bits=4))
      0.25

    Source: Judd et al., "Stripes: Bit-Serial Deep Neural Network Computing", MICRO 2016; for
      dense layers: Delmas et al., "Tartan", arXiv 1707.09068, section 1.
    """
    w, a = _clipped(layer)
    if w == 0 or a == 0:
        return 0.0
    return a / BASELINE_BITS if reuses_weights(layer) else 1.0


def loom(layer: LayerBits) -> float:
    """Loom's time relative to 16 bits: weight bits * input bits / 256, dense: weight bits / 16.

    Example:
      >>> loom(LayerBits(macs=73728, weights=4608, weight_bits=2, input_bits=4))
      0.03125

    Source: Sharify et al., "Loom: Exploiting Weight and Activation Precisions to Accelerate
      Convolutional Neural Networks", DAC 2018.
    """
    w, a = _clipped(layer)
    if w == 0 or a == 0:
        return 0.0
    return w / BASELINE_BITS * (a / BASELINE_BITS if reuses_weights(layer) else 1.0)


def bit_fusion(layer: LayerBits) -> float:
    """Bit Fusion's time relative to 16 bits: the product of both widths / 256, dense or not.

    Widths are rounded up to 2, 4, 8 or 16: sixteen 2-bit multipliers fuse into products of
    8 x 8 bits, and 16 bits take two passes for each operand.

    Example:
      >>> bit_fusion(LayerBits(macs=73728, weights=4608, weight_bits=2, input_bits=3))
      0.03125

    Source: Sharma et al., "Bit Fusion: Bit-Level Dynamically Composable Architecture for
      Accelerating Deep Neural Networks", ISCA 2018.
    """
    w, a = (next(f for f in _FUSED if bits <= f) if bits else 0.0 for bits in _clipped(layer))
    return w * a / BASELINE_BITS**2


RULES: dict[str, Callable[[LayerBits], float]] = {
    "stripes": stripes,
    "loom": loom,
    "bit_fusion": bit_fusion,
}


@checked(rule=FUNCTION, layers=instance(Iterable))
def speedup(rule: Callable[[LayerBits], float], layers: Iterable[LayerBits]) -> float:
    """The speed-up of a network over 16 bits everywhere; layers run one after the other.

    Args:
      rule: a cost rule, such as `stripes`.
      layers: the layers of the network. At 16 bits a layer's time is its `macs`.

    Returns:
      The speed-up, at least 1; 1 if there is nothing to compute, infinity if no layer is left.

    Example:
      >>> speedup(stripes, [LayerBits(100, 10, 8, 4), LayerBits(100, 10, 8, 16)])
      1.6
    """
    layers = list(layers)
    check_one("layers", several(instance(LayerBits)), layers)
    before = math.fsum(layer.macs for layer in layers)
    after = math.fsum(layer.macs * rule(layer) for layer in layers)
    if before == 0:
        return 1.0
    return before / after if after else math.inf


def _clipped(layer: LayerBits) -> tuple[float, float]:
    for name in ("weight_bits", "input_bits"):
        if not getattr(layer, name) >= 0:
            raise ValueError(f"`{name}` must be 0 or more, got {getattr(layer, name)}.")
    return min(layer.weight_bits, BASELINE_BITS), min(layer.input_bits, BASELINE_BITS)
