"""The plain baseline: fixed bits, ranges from data, weights trained through the rounding or not."""

from bitjax.methods.base import Method
from bitjax.methods.fixed_bits import fixed_bits
from bitjax.rules import Rules


def uniform(
    rules: Rules,
    *,
    steps: int = 0,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    warmup: int = 0,
    distill: float = 0.0,
    temperature: float = 1.0,
    reestimate_batches: int = 0,
) -> Method:
    """Fixed bits with observed ranges; `steps=0` is post-training quantization.

    Args: as `quantization_aware.fixed_bits`, without learned ranges.

    Example:
      >>> [stage.name for stage in uniform((), steps=0).stages]
      ['calibrate']
    """
    return fixed_bits(
        "uniform",
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
