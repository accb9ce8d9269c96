"""Fixed-bit quantization-aware training: what `uniform`, `lsq` and `pact` share."""

import optax

from bitjax.methods.base import Method, Stage
from bitjax.methods.labels import default_labels
from bitjax.methods.optimizers import scheduled, sgd
from bitjax.methods.recipe import reestimate, teaching
from bitjax.rules import Rules


def fixed_bits(
    name: str,
    rules: Rules,
    *,
    steps: int,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    warmup: int,
    range_direction: optax.GradientTransformation | None = None,
    range_learning_rate: float = 0.0,
    distill: float = 0.0,
    temperature: float = 1.0,
    reestimate_batches: int = 0,
) -> Method:
    """Calibrates the rules' quantizers, trains weights and ranges, perhaps re-estimates statistics.

    Args:
      name: of the method.
      rules: with fixed-bit quantizers.
      steps: of training; 0 is post-training quantization.
      learning_rate: peak for the weights.
      momentum: of SGD.
      weight_decay: on parameters.
      warmup: steps of linear rise.
      range_direction: the ranges' direction; None freezes them.
      range_learning_rate: their peak.
      distill: share of the float teacher's soft labels in the loss.
      temperature: of the soft labels; above 1 every logit counts, not the likely classes alone.
      reestimate_batches: batches of augmented training images that re-estimate batch
        normalisation's statistics at the end; 0 does not.

    Example:
      >>> method = fixed_bits("uniform", (), steps=0, learning_rate=0.1, momentum=0.9,
      ...                     weight_decay=0.0, warmup=0, reestimate_batches=4)
      >>> [stage.name for stage in method.stages]
      ['calibrate', 'reestimate_batch_stats']
    """
    optimizers = {
        "weights": scheduled(sgd(momentum, weight_decay), learning_rate, steps, warmup=warmup)
    }
    if range_direction is not None:
        optimizers["ranges"] = scheduled(range_direction, range_learning_rate, steps, warmup=warmup)
    stage = Stage(
        "fine_tune" if steps else "calibrate",
        rules,
        steps,
        labels=default_labels,
        optimizers=optimizers,
        **teaching(distill, temperature),
    )
    last = (reestimate(rules, reestimate_batches),) if reestimate_batches else ()
    return Method(name, (stage, *last))
