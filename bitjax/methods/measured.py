"""Bits of every site chosen by what they do to the outputs, under budgets, without training."""

from collections.abc import Iterator, Sequence

from bitjax.bottleneck.allocate_bits import ALLOCATE_BITS, allocate_bits
from bitjax.checks import SWITCH, checked, integer
from bitjax.costs.budget import Budget, budget_sites
from bitjax.costs.site import Costs
from bitjax.methods.base import Context, Method, Stage, Variables
from bitjax.rules import RULES, Rules


@checked(
    rules=RULES,
    calibration_batches=integer(2),
    augment=SWITCH,
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
) -> Method:
    """Gives every site the bits that serve the outputs best within all budgets.

    One stage, `allocate`, by `bitjax.allocate_bits`: the float network's classes are what outputs
    are compared with. What it predicted and what was measured is logged.

    Args:
      rules: rules whose quantizers take any number of bits, `bitjax.uniform` say.
      budgets: limits that hold together.
      calibration_batches: training batches that are measured on, 2 or more.
      augment: whether those batches are augmented.
      sites: a regular expression for the sites to choose bits for, matched in full; other sites
        keep theirs.
      candidates: the bits to choose from.
      held_out: the share of the batches that judges allocations and gives no effects.
      rounds: how often effects are measured anew.
      trials: how many exchanges are measured.

    Raises:
      ValueError: there is no budget, or a setting is out of its range.

    Example:
      >>> import bitjax as bj
      >>> rules = [bj.rule(".*", bj.uniform(bits=8))]
      >>> [stage.name for stage in measured(rules, budgets=[bj.budget("bits", 4.0)]).stages]
      ['allocate']
    """

    def prepare(context: Context, variables: Variables, start: int) -> Iterator[Variables]:
        if start:
            return
        weights = context.weights
        found = allocate_bits(
            context.model,
            variables,
            context.batches(calibration_batches, augment),
            budgets,
            sites=sites,
            candidates=candidates,
            held_out=held_out,
            rounds=rounds,
            trials=trials,
            weights=None if weights is None else weights(calibration_batches, augment),
            costs=context.costs,
            log=context.log,
        )
        context.log(
            f"allocate: {found.chosen} bits, distance {found.distance:.4g} where single effects "
            f"promised {found.predicted:.4g} and equal bits have {found.uniform:.4g}"
        )
        yield found.variables

    def check(costs: Costs) -> None:
        for limit in budgets:
            budget_sites(limit, costs)

    return Method("measured", (Stage("allocate", rules, prepare=prepare, check=check),))
