"""The float control: the same model, data and schedule without a quantizer."""

from bitjax.methods.base import Method, Stage, default_labels, scheduled, sgd


def full_precision(
    *,
    steps: int,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    warmup: int = 0,
) -> Method:
    """Trains the float model by SGD with a cosine schedule; no site has a quantizer.

    Args:
      steps: of training; 0 evaluates the start.
      learning_rate: the peak.
      momentum: of SGD.
      weight_decay: on all parameters.
      warmup: steps of linear rise.

    Example:
      >>> [stage.name for stage in full_precision(steps=10).stages]
      ['train']
    """
    weights = scheduled(sgd(momentum, weight_decay), learning_rate, steps, warmup=warmup)
    stage = Stage("train", (), steps, labels=default_labels, optimizers={"weights": weights})
    return Method("full_precision", (stage,))
