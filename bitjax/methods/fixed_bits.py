"""Training with fixed bits: `uniform`, `lsq`, `pact`, `hwgq` and `twn`.

Weights are trained behind straight-through estimators. The methods differ in the quantizers that
go with them and in what becomes of the ranges that those learn.
"""

from typing import Unpack

from bitjax.checks import NONE, checked, either
from bitjax.methods.base import Method
from bitjax.methods.recipe import RATE, RECIPE, STEPS, Keywords, Recipe, reestimate, training
from bitjax.methods.solved_start import START, starting
from bitjax.rules import RULES, Rules

_TABLE = {"rules": RULES, "steps": STEPS, "start": START, **RECIPE}


@checked(**_TABLE)
def uniform(
    rules: Rules, *, steps: int = 0, start: str = "float", **recipe: Unpack[Keywords]
) -> Method:
    """The plain baseline: ranges are observed; `steps=0` is post-training quantization.

    Args:
      rules: rules with fixed-bit quantizers, `bitjax.uniform` say; ranges that others learn stay.
      steps: steps of training.
      start: `float` kernels, or `solved` ones: `bitjax.solve_layers` gives those of at most 6 bits
        codes before the training.
      **recipe: the other fields of `bitjax.methods.Recipe`.

    Example:
      >>> [stage.name for stage in uniform((), steps=0, reestimate_batches=4).stages]
      ['calibrate', 'reestimate_batch_stats']
    """
    return _fixed_bits("uniform", rules, steps, start, recipe, range_decay=None)


@checked(range_learning_rate=either(NONE, RATE), **_TABLE)
def lsq(
    rules: Rules,
    *,
    steps: int,
    range_learning_rate: float | None = None,
    start: str = "float",
    **recipe: Unpack[Keywords],
) -> Method:
    """Learned step size quantization: weights and scales trained together.

    The scales' gradient is already normalised inside the quantizer (the paper's section 2.2); they
    are not decayed.

    Args:
      rules: rules with `bitjax.lsq` quantizers.
      steps: steps of training.
      range_learning_rate: Adam's rate for the scales' logarithms. None is the paper's: scales have
        the weights' optimizer and rate, which in a few hundred steps leaves them where they start.
      start: `float` kernels, or `solved` ones: `bitjax.solve_layers` gives those of at most 6 bits
        codes before the training.
      **recipe: the other fields of `bitjax.methods.Recipe`.

    Example:
      >>> sorted(lsq((), steps=10).stages[0].optimizers)
      ['ranges', 'weights']

    Source: Esser et al., arXiv 1902.08153. Departure: `range_learning_rate`, where it is given.
    """
    return _fixed_bits("lsq", rules, steps, start, recipe, 0.0, range_learning_rate)


@checked(clip_decay=RATE, **_TABLE)
def pact(
    rules: Rules,
    *,
    steps: int,
    clip_decay: float = 1e-4,
    start: str = "float",
    **recipe: Unpack[Keywords],
) -> Method:
    """Parameterized clipping activation: weights and clips trained together, the clips decayed.

    Args:
      rules: rules with `bitjax.pact` quantizers.
      steps: steps of training.
      clip_decay: weight of the L2 term on the clips, by which clipping pays.
      start: `float` kernels, or `solved` ones: `bitjax.solve_layers` gives those of at most 6 bits
        codes before the training.
      **recipe: the other fields of `bitjax.methods.Recipe`.

    Example:
      >>> pact((), steps=10).name
      'pact'

    Source: Choi et al., arXiv 1805.06085.
    """
    return _fixed_bits("pact", rules, steps, start, recipe, range_decay=clip_decay)


@checked(**_TABLE)
def hwgq(rules: Rules, *, steps: int, start: str = "float", **recipe: Unpack[Keywords]) -> Method:
    """Half-wave activations, whose levels stay as they start, and binary weights.

    The paper's levels are those of a unit Gaussian, so its networks normalise in front of every
    quantizer without a learned scale; where a network does not, `hwgq(fit="measured")` takes them
    from the data.

    Args:
      rules: rules with `bitjax.hwgq` inputs and `bitjax.binary` kernels.
      steps: steps of training.
      start: `float` kernels, or `solved` ones: `bitjax.solve_layers` gives those of at most 6 bits
        codes before the training.
      **recipe: the other fields of `bitjax.methods.Recipe`.

    Example:
      >>> sorted(hwgq((), steps=10).stages[0].optimizers)
      ['weights']

    Source: Cai et al., CVPR 2017.
    """
    return _fixed_bits("hwgq", rules, steps, start, recipe, range_decay=None)


@checked(range_learning_rate=either(NONE, RATE), **_TABLE)
def twn(
    rules: Rules,
    *,
    steps: int,
    range_learning_rate: float | None = None,
    start: str = "float",
    **recipe: Unpack[Keywords],
) -> Method:
    """Ternary weight networks: codes and scales follow the weights at every step.

    Args:
      rules: rules with `bitjax.ternary(fit="twn")` kernels (or `fit="optimal"`: OTWN), inputs float
        or with any quantizer.
      steps: steps of training.
      range_learning_rate: Adam's rate for the logarithms of inputs' learned ranges; None: they have
        the weights' optimizer and rate.
      start: `float` kernels, or `solved` ones: `bitjax.solve_layers` gives those of at most 6 bits
        codes before the training.
      **recipe: the other fields of `bitjax.methods.Recipe`.

    Example:
      >>> sorted(twn((), steps=10).stages[0].optimizers)
      ['ranges', 'weights']

    Source: Li and Liu, arXiv 1605.04711, with a scale per filter as later work has it; theirs is
      per layer.
    """
    return _fixed_bits("twn", rules, steps, start, recipe, 0.0, range_learning_rate)


def _fixed_bits(name, rules, steps, start, keywords, range_decay, range_rate=None) -> Method:
    """All five: `range_decay` is the L2 decay of learned ranges; None leaves them as they start."""
    recipe = Recipe(steps, **keywords)
    stage_name = "fine_tune" if steps else "calibrate"
    stage = training(stage_name, rules, recipe, range_decay, range_rate)
    method = Method(name, (stage, *reestimate(rules, recipe.reestimate_batches)))
    return starting(method, start)
