"""The float control: the same model, data and schedule without a quantizer."""

from bitjax.methods.base import Method, Stage
from bitjax.methods.labels import default_labels
from bitjax.methods.optimizers import scheduled, sgd
from bitjax.methods.recipe import reestimate, teaching


def full_precision(
    *,
    steps: int,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    warmup: int = 0,
    distill: float = 0.0,
    temperature: float = 1.0,
    reestimate_batches: int = 0,
) -> Method:
    """Trains the float model by SGD with a cosine schedule; no site has a quantizer.

    Args:
      steps: of training; 0 evaluates the start.
      learning_rate: the peak.
      momentum: of SGD.
      weight_decay: on all parameters.
      warmup: steps of linear rise.
      distill: share of the starting network's soft labels in the loss, as the quantized ones learn.
      temperature: of the soft labels.
      reestimate_batches: as in `quantization_aware.fixed_bits`.

    Example:
      >>> [stage.name for stage in full_precision(steps=10).stages]
      ['train']
    """
    weights = scheduled(sgd(momentum, weight_decay), learning_rate, steps, warmup=warmup)
    stage = Stage(
        "train",
        (),
        steps,
        labels=default_labels,
        optimizers={"weights": weights},
        **teaching(distill, temperature),
    )
    last = (reestimate((), reestimate_batches),) if reestimate_batches else ()
    return Method("full_precision", (stage, *last))
