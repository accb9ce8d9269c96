"""Ternary weight networks (Li and Liu, arXiv 1605.04711): weights in {-a, 0, a}, trained so."""

from bitjax.methods.base import Method
from bitjax.methods.fixed_bits import fixed_bits
from bitjax.methods.optimizers import sgd
from bitjax.rules import Rules


def twn(
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
    """Weights by SGD; codes and scales follow them at every step, their gradient passes straight.

    Ranges of inputs that are learned move at the same rate.

    Args: as `quantization_aware.fixed_bits`; `rules` with `bitjax.ternary(fit="twn")` kernels (or
      `fit="optimal"`: OTWN), inputs float or with any quantizer.

    Example:
      >>> sorted(twn((), steps=10).stages[0].optimizers)
      ['ranges', 'weights']

    Source: the paper, with a scale per filter as later work has it; theirs is per layer.
    """
    return fixed_bits(
        "twn",
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
