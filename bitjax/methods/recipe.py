"""How weights are trained, whatever the method: schedule, decay, teacher."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bitjax.methods.base import Stage
from bitjax.rules import Rules


def teaching(distill: float, temperature: float = 1.0) -> dict[str, Any]:
    """The fields of a stage whose loss listens to the float teacher for the share `distill`.

    Raises:
      ValueError: `distill` is outside [0, 1], or `temperature` is not above 0.

    Example:
      >>> teaching(0.0)
      {}
    """
    if not 0.0 <= distill <= 1.0:
        raise ValueError(f"`distill` must be in [0, 1], got {distill:g}.")
    if not temperature > 0.0:
        raise ValueError(f"`temperature` must be above 0, got {temperature:g}.")
    return {"loss": distillation(temperature, distill), "teacher": True} if distill else {}


def distillation(temperature: float = 1.0, share: float = 1.0) -> Callable[..., jax.Array]:
    """A loss that mixes the float teacher's soft labels with the task's own loss.

    share * T^2 * KL(teacher / T || student / T) + (1 - share) * task loss, mean over examples.

    Example:
      >>> logits = jnp.array([[1.0, 2.0]])
      >>> round(float(distillation()(jnp.float32(0.3), logits, logits)), 6)
      0.0

    Source: Hinton et al., arXiv 1503.02531.
    """

    def loss(task_loss, logits, teacher_logits):
        log_p = jax.nn.log_softmax(teacher_logits / temperature)
        log_q = jax.nn.log_softmax(logits / temperature)
        soft = jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)) * temperature**2
        return share * soft + (1.0 - share) * task_loss

    return loss


def reestimate(rules: Rules, batches: int) -> Stage:
    """A stage without training: batch normalisation's statistics from augmented training images.

    Example:
      >>> reestimate((), 20).steps
      0
    """

    def prepare(context, variables, start):
        from bitjax.linen.calibrate import reestimate_batch_stats

        if start == 0:
            yield reestimate_batch_stats(context.model, variables, context.batches(batches, True))

    return Stage("reestimate_batch_stats", rules, prepare=prepare)
