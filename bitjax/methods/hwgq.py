"""HWGQ (Cai et al., CVPR 2017): half-wave activations and binary weights, trained together."""

from bitjax.methods.base import Method
from bitjax.methods.fixed_bits import fixed_bits
from bitjax.rules import Rules


def hwgq(
    rules: Rules,
    *,
    steps: int,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    warmup: int = 0,
    distill: float = 0.0,
    temperature: float = 1.0,
    reestimate_batches: int = 0,
) -> Method:
    """Weights by SGD behind straight-through estimators; levels of activations stay as they start.

    The paper's levels are those of a unit Gaussian, so its networks normalise in front of every
    quantizer without a learned scale; where a network does not, `hwgq(fit="measured")` takes them
    from the data.

    Args: as `quantization_aware.fixed_bits`; `rules` with `bitjax.hwgq` inputs and `bitjax.binary`
      kernels.

    Example:
      >>> sorted(hwgq((), steps=10).stages[0].optimizers)
      ['weights']
    """
    return fixed_bits(
        "hwgq",
        rules,
        steps=steps,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        warmup=warmup,
        distill=distill,
        temperature=temperature,
        reestimate_batches=reestimate_batches,
    )
