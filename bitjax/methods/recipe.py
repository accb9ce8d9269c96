"""The recipe of training that methods share, its settings checked once."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bitjax.checks import Allowed, checked, choice, integer, number
from bitjax.costs.site import Costs
from bitjax.methods.base import Stage
from bitjax.methods.labels import default_labels
from bitjax.methods.optimizers import DIRECTIONS, adam, relative, scheduled
from bitjax.quantizers.dampening import dampened
from bitjax.rules import Rule, Rules, quantizer_of
from bitjax.variables import QUANT


class Recipe(NamedTuple):
    """How weights are trained: SGD or Adam, a linear rise and a cosine, perhaps a teacher.

    Every method takes the fields as keywords, `lsq(rules, steps=100, learning_rate=0.02)`, and so
    do configs, `config.method.learning_rate = 0.02`.

    Attributes:
      steps: steps of training; where 0, quantizers are only calibrated.
      learning_rate: the weights' rate at its peak. `full_precision` has a default of 0.1.
      momentum: momentum of SGD, decay of Adam's first moment.
      weight_decay: decay of the parameters, L2 with SGD, apart from the gradient with Adam; learned
        ranges are not decayed.
      warmup: steps in which the rate rises linearly to its peak; a cosine to 0 follows.
      distill: share of the float teacher's soft labels in the loss, 0 to 1. The teacher is the
        network that the run started from.
      temperature: temperature of the soft labels; above 1 unlikely classes count too.
      reestimate_batches: batches of augmented training images that re-estimate batch
        normalisation's statistics after the training; 0 leaves the moving averages.
      average: decay of a moving average of weights and learned ranges, in which the training ends;
        0 ends in the last step's. Batch normalisation's statistics are still those of the last
        steps: re-estimate them.
      dampen: strength at the end of the pull of weights to the levels they are rounded to, which
        keeps them from oscillating; it rises as half a cosine.
      optimizer: `sgd`, or `adamw` as language models need; learned ranges follow it.
    """

    steps: int
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    warmup: int = 0
    distill: float = 0.0
    temperature: float = 1.0
    reestimate_batches: int = 0
    average: float = 0.0
    dampen: float = 0.0
    optimizer: str = "sgd"


class Keywords(TypedDict, total=False):
    """The fields of `Recipe` but `steps`, as what `**recipe` of a method may be."""

    learning_rate: float
    momentum: float
    weight_decay: float
    warmup: int
    distill: float
    temperature: float
    reestimate_batches: int
    average: float
    dampen: float
    optimizer: str


STEPS, RATE, BATCHES = integer(0), number(0), integer(1)
# What every method allows its keywords to be.
RECIPE: dict[str, Allowed] = {
    "learning_rate": RATE,
    "momentum": number(0, 1, below=True),
    "weight_decay": number(0),
    "warmup": STEPS,
    "distill": number(0, 1),
    "temperature": number(0, above=True),
    "reestimate_batches": integer(0),
    "average": number(0, 1, below=True),
    "dampen": number(0),
    "optimizer": choice(*DIRECTIONS),
}


def descent(recipe: Recipe, end: float = 0.0) -> optax.GradientTransformation:
    """The recipe's optimizer along its schedule, down to the share `end` of the peak."""
    direction = DIRECTIONS[recipe.optimizer](recipe.momentum, recipe.weight_decay)
    rate, steps, warmup = recipe.learning_rate, recipe.steps, recipe.warmup
    return scheduled(direction, rate, steps, warmup=warmup, end=end)


def training(
    name: str,
    rules: Rules,
    recipe: Recipe,
    range_decay: float | None = None,
    range_learning_rate: float | None = None,
) -> Stage:
    """A stage that trains weights, and perhaps learned ranges, by a recipe.

    Args:
      name: the stage's name.
      rules: the quantizers that hold while the stage lasts.
      recipe: steps, schedule and teacher.
      range_decay: L2 decay of learned ranges, which move at the weights' rate; None leaves them as
        they are.
      range_learning_rate: moves learned ranges by Adam instead, at this rate of their logarithms.

    Example:
      >>> sorted(training("train", (), Recipe(steps=10), range_decay=0.0).optimizers)
      ['ranges', 'weights']
    """
    optimizers = {"weights": descent(recipe)}
    if range_learning_rate is not None:
        direction = optax.chain(adam(), relative())
        optimizers["ranges"] = scheduled(direction, range_learning_rate, recipe.steps)
    elif range_decay is not None:
        optimizers["ranges"] = descent(recipe._replace(weight_decay=range_decay))
    return Stage(
        name,
        rules,
        recipe.steps,
        labels=default_labels,
        optimizers=optimizers,
        **teaching(recipe),
        **settling(recipe),
    )


def settling(recipe: Recipe) -> dict[str, Any]:
    """The fields of a stage whose weights come to rest as the recipe says; none where it does not.

    Of a method's stages, those have them that train with the bits that are deployed.
    """
    fields = {}
    if recipe.average and recipe.steps:
        fields |= _averaging(recipe.average, recipe.steps)
    if recipe.dampen:
        fields["anneal"] = _dampening(recipe.dampen)
    return fields


def _averaging(decay: float, steps: int) -> dict[str, Any]:
    """The fields of a stage that ends in a moving average of what it trains."""

    def trained(variables):
        return {name: variables[name] for name in ("params", QUANT) if name in variables}

    def start(variables):
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), trained(variables))

    def after_step(variables, controls, costs, step):
        del costs
        # The plain average at first: nothing of where the training started is in it.
        rate = jnp.maximum(1.0 - decay, 1.0 / step)
        now = trained(variables)

        def follow(mean, x):
            return mean + rate.astype(x.dtype) * (x - mean)

        mean = jax.tree.map(follow, controls["average"], now)
        last = jax.tree.map(lambda mean, x: jnp.where(step == steps, mean, x), mean, now)
        return {**variables, **last}, {**controls, "average": mean}

    return {"controls": {"average": start}, "after_step": after_step}


def _dampening(most: float) -> Callable[[Rules, Costs, jax.Array], Rules]:
    """Dampens the kernels of a training step, from 0 up to `most` as Nagel et al. anneal it."""

    def anneal(rules, costs, progress):
        strength = most * 0.5 * (1.0 - jnp.cos(jnp.pi * progress))
        kernels = [site for site, cost in costs.items() if cost.role == "kernel"]
        found = {site: quantizer_of(rules, site) for site in kernels}
        ours = (Rule(re.escape(site), dampened(q, strength)) for site, q in found.items() if q)
        return (*ours, *rules)

    return anneal


def teaching(recipe: Recipe) -> dict[str, Any]:
    """The fields of a stage whose loss listens to the recipe's teacher; none without one."""
    if not recipe.distill:
        return {}
    return {"loss": distillation(recipe.temperature, recipe.distill), "teacher": True}


@checked(temperature=RECIPE["temperature"], share=RECIPE["distill"])
def distillation(temperature: float = 1.0, share: float = 1.0) -> Callable[..., jax.Array]:
    """A loss that mixes the float teacher's soft labels with the task's own loss.

    share * T^2 * KL(teacher / T || student / T) + (1 - share) * task loss, mean over predictions,
    weighted by the fourth argument where it is given.

    Args:
      temperature: T, above 0.
      share: weight of the soft labels, 0 to 1.

    Example:
      >>> logits = jnp.array([[1.0, 2.0]])
      >>> round(float(distillation()(jnp.float32(0.3), logits, logits)), 6)
      0.0

    Source: Hinton et al., arXiv 1503.02531.
    """

    def loss(task_loss, logits, teacher_logits, weights=None):
        log_p = jax.nn.log_softmax(teacher_logits / temperature)
        log_q = jax.nn.log_softmax(logits / temperature)
        each = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
        soft = jnp.mean(each) if weights is None else _weighted_mean(each, weights)
        return share * soft * temperature**2 + (1.0 - share) * task_loss

    return loss


def _weighted_mean(x, weights):
    return jnp.sum(x * weights) / jnp.maximum(jnp.sum(weights), 1e-6)


def reestimate(rules: Rules, batches: int) -> tuple[Stage, ...]:
    """A stage that re-estimates batch normalisation's statistics; none where there are no batches.

    Args:
      rules: the quantizers that hold while statistics are taken.
      batches: number of batches of augmented training images.

    Example:
      >>> [stage.name for stage in reestimate((), 20)], reestimate((), 0)
      (['reestimate_batch_stats'], ())
    """

    def prepare(context, variables, start):
        from bitjax.frameworks.calibrate import reestimate_batch_stats

        if start == 0:
            yield reestimate_batch_stats(context.model, variables, context.batches(batches, True))

    return (Stage("reestimate_batch_stats", rules, prepare=prepare),) if batches else ()
