"""The float control: the same model, data and schedule without a quantizer."""

from typing import Unpack

from bitjax.checks import checked
from bitjax.methods.base import Method
from bitjax.methods.recipe import RECIPE, STEPS, Keywords, Recipe, reestimate, training


@checked(steps=STEPS, **RECIPE)
def full_precision(*, steps: int, **recipe: Unpack[Keywords]) -> Method:
    """Trains the float model by SGD with a cosine schedule; no site has a quantizer.

    Args:
      steps: steps of training; 0 evaluates the start.
      **recipe: the other fields of `bitjax.methods.Recipe`; `learning_rate` is 0.1 by default, and
        the teacher of `distill` is the starting network, from which the quantized ones learn too.

    Example:
      >>> [stage.name for stage in full_precision(steps=10).stages]
      ['train']
    """
    made = Recipe(steps, **recipe)
    made = made._replace(learning_rate=recipe.get("learning_rate", 0.1))
    last = reestimate((), made.reestimate_batches)
    return Method("full_precision", (training("train", (), made), *last))
