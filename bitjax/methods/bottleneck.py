"""Bitwise bottleneck (Zhou et al., arXiv 2006.05210): keep the planes that pay, under a rate."""

from collections.abc import Iterator
from typing import Unpack

import numpy as np

from bitjax.bottleneck.allocate import ALLOCATE, allocate, check_settings, check_sites
from bitjax.bottleneck.coefficients import solve_coefficients
from bitjax.checks import checked, integer
from bitjax.costs.bits import bits_of
from bitjax.methods.base import Context, Method, Stage, Variables
from bitjax.methods.recipe import (
    BATCHES,
    RATE,
    RECIPE,
    STEPS,
    Keywords,
    Recipe,
    reestimate,
    training,
)
from bitjax.rules import RULES, Rules


@checked(
    rules=RULES,
    steps=STEPS,
    float_steps=STEPS,
    resolve_every=integer(0),
    calibration_batches=BATCHES,
    float_learning_rate=RATE,
    **ALLOCATE,
    **RECIPE,
)
def bottleneck(
    rules: Rules,
    *,
    rate: float = 4.0,
    psnr_loss: float | None = None,
    steps: int = 0,
    float_steps: int = 0,
    weighting: str = "fisher",
    cost: str = "equal",
    grid: str = "free",
    resolve_every: int = 0,
    min_bits: int = 2,
    max_bits: int = 8,
    exact: bool = False,
    calibration_batches: int = 8,
    float_learning_rate: float = 0.1,
    **recipe: Unpack[Keywords],
) -> Method:
    """Counts the float network's activations once, gives every site its planes, fine-tunes.

    Stage `allocate`: one pass over calibration batches makes a histogram of every site with a
    `bitplane` quantizer; from it come the distortion and the scale at every rate, and the rates
    that make  sum of F_l n_l D_l(k_l)  least while their average is at most `rate`. Stage
    `fine_tune`: weights, scales and `free` coefficients by SGD, the planes fixed; left out with
    steps=0. Coefficients that are `solved` follow moving averages instead.

    Args:
      rules: rules with `bitjax.bitplane` quantizers on inputs behind a ReLU, see `bitjax.allocate`;
        other sites keep theirs.
      rate: the budget, planes per element on average over sites.
      psnr_loss: the paper's knob T in dB instead of a budget: each site by itself gets the least
        rate whose PSNR is at least 55 - T; `rate`, `weighting` and `cost` are then not read.
      steps: steps of fine-tuning.
      float_steps: steps that train the float network first; 0 where the run starts from a trained
        one.
      weighting: the weights F_l, `fisher` (what an error costs the loss) or `none` (1 everywhere).
      cost: what the rate is averaged over: `equal`, `elements` or `macs`.
      grid: `free` scales, the best `window` of an 8-bit code (scales are powers of two of its
        step), or the paper's `truncated` and `lasso`, see `bitjax.allocate`.
      resolve_every: steps of fine-tuning between two solutions of the `solved` coefficients; 0
        leaves those of the calibration batches.
      min_bits: the least rate of a site; with `max_bits` the same, rates are uniform.
      max_bits: the greatest rate of a site, at most 8.
      exact: whether the rates are the best ones, see `solvers.allocation.allocate`.
      calibration_batches: training batches that are counted, not augmented.
      float_learning_rate: the rate's peak while the float network is trained.
      **recipe: the other fields of `bitjax.methods.Recipe`; the teacher is fine-tuning's.

    Raises:
      ValueError: an unknown choice, or bounds that the rate is not between.

    Example:
      >>> [stage.name for stage in bottleneck((), rate=3.0, steps=10).stages]
      ['allocate', 'fine_tune']

    Source: arXiv 2006.05210 and the authors' program. Departures: sites are layers' inputs, after
      ReLU; a budget over all sites weighted by the loss in place of equal PSNR; rounding and
      saturation at a scale of least error in place of LASSO on truncated planes; no dither. The
      support of solved coefficients is that of the allocation from the first step on.
    """
    check_settings(rate, psnr_loss, grid, min_bits, max_bits)

    def prepare(context: Context, variables: Variables, start: int) -> Iterator[Variables]:
        if start:
            return
        found = allocate(
            context.model, variables, lambda: context.batches(calibration_batches, False),
            rate=rate, psnr_loss=psnr_loss, weighting=weighting, cost=cost, grid=grid,
            min_bits=min_bits, max_bits=max_bits, exact=exact, costs=context.costs,
        )  # fmt: skip
        sites = check_sites(rules, context.costs, grid, max_bits)
        bits = [float(np.mean(bits_of(found)[site])) for site in sites]
        context.log(
            f"allocate: {sum(bits) / len(bits):.2f} planes on average over {len(bits)} sites, "
            f"from {min(bits):.0f} to {max(bits):.0f}"
        )
        yield found

    made = Recipe(steps, **recipe)
    before = made._replace(steps=float_steps, learning_rate=float_learning_rate, distill=0.0)
    tuned = training("fine_tune", rules, made, range_decay=0.0)
    if resolve_every:

        def resolve(context: Context, variables: Variables) -> Variables:
            return solve_coefficients(context.model, variables)

        tuned = tuned._replace(every=(resolve_every, resolve))
    stages = (
        *((training("float", (), before),) if float_steps else ()),
        Stage(
            "allocate",
            rules,
            prepare=prepare,
            check=lambda costs: check_sites(rules, costs, grid, max_bits),
        ),
        *((tuned,) if steps else ()),
        *reestimate(rules, made.reestimate_batches),
    )
    return Method("bottleneck", stages)
