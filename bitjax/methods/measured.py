"""Bits of every site chosen by what they do to the outputs, under budgets, without training."""

import re
from collections.abc import Iterator, Sequence

import jax

from bitjax.bottleneck.allocate_bits import ALLOCATE_BITS, SolvedKernels, allocate_bits
from bitjax.checks import SWITCH, checked, integer
from bitjax.costs.bits import bits_of, with_bits
from bitjax.costs.budget import Budget, budget_sites
from bitjax.costs.site import Costs
from bitjax.frameworks.targets import is_stored
from bitjax.methods.base import Context, Method, Stage, Variables
from bitjax.methods.solved import solving
from bitjax.program.naming import path_of
from bitjax.rules import RULES, Rules, quantizer_of
from bitjax.two_step.fits import SOLVE, SolveOptions
from bitjax.two_step.solve import solve_each
from bitjax.variables import floats_of, site_name


@checked(
    rules=RULES,
    calibration_batches=integer(2),
    augment=SWITCH,
    positions=SOLVE["positions"],
    ridge=SOLVE["ridge"],
    float_inputs=SWITCH,
    **ALLOCATE_BITS,
)
def measured(
    rules: Rules,
    *,
    budgets: Sequence[Budget],
    calibration_batches: int = 8,
    augment: bool = False,
    sites: str = ".*",
    candidates: Sequence[int] = (2, 3, 4, 5, 6, 7, 8),
    held_out: float = 0.5,
    rounds: int = 2,
    trials: int = 50,
    positions: int = 512,
    ridge: float = 0.3,
    float_inputs: bool = True,
) -> Method:
    """Gives every site the bits that serve the outputs best within all budgets.

    One stage, `allocate`, by `bitjax.allocate_bits`: the float network's classes are what outputs
    are compared with. What it predicted and what was measured is logged. Kernels whose quantizer
    stores its scale are solved: for every candidate, so that effects are those of solved kernels,
    and by a second stage, `solve`, once more at the bits that were chosen.

    Args:
      rules: rules whose quantizers take any number of bits, `bitjax.uniform` say, or for kernels
        `bitjax.low_bit` with fit="stored".
      budgets: limits that hold together.
      calibration_batches: training batches that are measured on, 2 or more.
      augment: whether those batches are augmented.
      sites: a regular expression for the sites to choose bits for, matched in full; other sites
        keep theirs.
      candidates: the bits to choose from.
      held_out: the share of the batches that judges allocations and gives no effects.
      rounds: how often effects are measured anew.
      trials: how many exchanges are measured.
      positions: positions that kernels are solved from, of an example.
      ridge: strength of the solver's pull towards the float filters.
      float_inputs: whether kernels are solved for what the float network gives from float inputs.

    Raises:
      ValueError: there is no budget, or a setting is out of its range.

    Example:
      >>> import bitjax as bj
      >>> rules = [bj.rule(".*", bj.uniform(bits=8))]
      >>> [stage.name for stage in measured(rules, budgets=[bj.budget("bits", 4.0)]).stages]
      ['allocate']
    """

    options = SolveOptions(
        target="sum", positions=positions, ridge=ridge, float_inputs=float_inputs
    )

    def prepare(context: Context, variables: Variables, start: int) -> Iterator[Variables]:
        if start:
            return
        weights = context.weights
        batches = list(context.batches(calibration_batches, augment))
        chosen = [s for s in bits_of(variables) if re.fullmatch(sites, s)]
        found = allocate_bits(
            context.model,
            variables,
            batches,
            budgets,
            sites=sites,
            candidates=candidates,
            held_out=held_out,
            rounds=rounds,
            trials=trials,
            weights=None if weights is None else weights(calibration_batches, augment),
            solved=_solved_levels(context, variables, chosen, candidates, batches, options),
            costs=context.costs,
            log=context.log,
        )
        context.log(
            f"allocate: {found.chosen} bits, distance {found.distance:.4g} where single effects "
            f"promised {found.predicted:.4g} and equal bits have {found.uniform:.4g}"
        )
        # SolvedKernels kernels are those of equal bits: they are solved anew from the float ones.
        yield {**found.variables, **floats_of(variables)}

    def check(costs: Costs) -> None:
        for limit in budgets:
            budget_sites(limit, costs)

    stages = [Stage("allocate", rules, prepare=prepare, check=check)]
    if any(is_stored(r.quantizer) for r in rules):
        # What stays is worth a third start.
        solve = solving(options._replace(start="all"), calibration_batches, augment)
        stages.append(Stage("solve", rules, prepare=solve))
    return Method("measured", tuple(stages))


def _solved_levels(
    context, variables, chosen, candidates, batches, options
) -> SolvedKernels | None:
    """Kernels solved at each candidate, with inputs at the most bits; None without any."""
    rules = context.model.rules
    kernels = [
        site
        for site in chosen
        if context.costs[site].role == "kernel" and is_stored(quantizer_of(rules, site))
    ]
    if not kernels:
        return None
    layers = "|".join(re.escape(context.costs[site].layer) for site in kernels)
    levels, leaves = {}, {}
    for bits in sorted(set(candidates)):
        given = dict.fromkeys(chosen, max(candidates)) | dict.fromkeys(kernels, bits)
        before: Variables = with_bits(variables, given, rules)
        steps = solve_each(context.model, before, lambda: batches, layers=layers, settings=options)
        for after, report in steps:
            leaves[site_name(report.layer, "kernel")] = _changed(before, after)
            before = after
        levels[bits] = before
        context.log(f"allocate: kernels solved at {bits} bits")
    return SolvedKernels(levels, leaves)


def _changed(before: Variables, after: Variables) -> tuple[str, ...]:
    """Paths of the leaves of the float model that are others."""
    old = dict(jax.tree_util.tree_leaves_with_path(floats_of(before)))
    new = jax.tree_util.tree_leaves_with_path(floats_of(after))
    return tuple(path_of(path) for path, leaf in new if leaf is not old[path])
