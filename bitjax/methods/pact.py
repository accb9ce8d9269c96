"""Parameterized clipping activation (Choi et al., arXiv 1805.06085): fixed bits, learned clips."""

from bitjax.methods.base import Method
from bitjax.methods.fixed_bits import fixed_bits
from bitjax.methods.optimizers import sgd
from bitjax.rules import Rules


def pact(
    rules: Rules,
    *,
    steps: int,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    warmup: int = 0,
    clip_decay: float = 1e-4,
    distill: float = 0.0,
    temperature: float = 1.0,
    reestimate_batches: int = 0,
) -> Method:
    """Weights and clips trained together by SGD; the clips decay, so that clipping pays.

    Args: as `quantization_aware.fixed_bits`; `rules` with `bitjax.pact` quantizers, and
      `clip_decay`, the weight of the L2 term on the clips.

    Example:
      >>> pact((), steps=10).name
      'pact'
    """
    return fixed_bits(
        "pact",
        rules,
        steps=steps,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        warmup=warmup,
        range_direction=sgd(momentum, clip_decay),
        range_learning_rate=learning_rate,
        distill=distill,
        temperature=temperature,
        reestimate_batches=reestimate_batches,
    )
