"""Learned step size quantization (Esser et al., arXiv 1902.08153): fixed bits, learned scales."""

from bitjax.methods.base import Method
from bitjax.methods.fixed_bits import fixed_bits
from bitjax.methods.optimizers import sgd
from bitjax.rules import Rules


def lsq(
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
    """Weights and scales trained together by SGD at one learning rate, as in the paper.

    The scales' gradient is already normalised inside the quantizer (the paper's section 2.2); they
    are not decayed.

    Args: as `quantization_aware.fixed_bits`; `rules` with `bitjax.lsq` quantizers.

    Example:
      >>> sorted(lsq((), steps=10).stages[0].optimizers)
      ['ranges', 'weights']
    """
    return fixed_bits(
        "lsq",
        rules,
        steps=steps,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        warmup=warmup,
        range_direction=sgd(momentum),
        range_learning_rate=learning_rate,
        distill=distill,
        temperature=temperature,
        reestimate_batches=reestimate_batches,
    )
