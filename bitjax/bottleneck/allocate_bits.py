"""Chooses every site's bits under budgets by what they do to the outputs, without training.

Effects of single sites do not add up at few bits. They only rank the moves here: where to go is
decided by what the whole network does on batches that the effects have not seen.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bitjax.bottleneck.bit_search import Mixed, Search, blended, cautious, descend
from bitjax.bottleneck.outputs import Distance, divergence, judges, weighted
from bitjax.checks import (
    BATCHES,
    FUNCTION,
    NONE,
    PATTERN,
    TEXT,
    Allowed,
    check,
    checked,
    either,
    instance,
    integer,
    mapping,
    number,
    several,
)
from bitjax.costs.bits import bits_of, with_bits
from bitjax.costs.budget import Budget
from bitjax.costs.choosing import choices_of, choose, total_of
from bitjax.costs.site import SITE_COSTS, Costs
from bitjax.frameworks.calibrate import averages
from bitjax.frameworks.call import Model
from bitjax.frameworks.costs import costs_with
from bitjax.frameworks.leaves import shapes_of
from bitjax.frameworks.models import float_model
from bitjax.variables import QUANT, STATS, VARIABLES, as_call, floats_of, read_site

Variables = Mapping[str, Any]


class AllocatedBits(NamedTuple):
    """Bits that were chosen by what they do to the outputs, and how far the prediction held.

    Distances are means over the predictions of the held-out batches, from the float network.

    Attributes:
      variables: the variables with these bits, and ranges of inputs observed at them.
      bits: `{site: bits}` of the sites that were chosen for.
      chosen: `measured`, or `uniform` where nothing did better than equal bits.
      distance: the distance at `bits`.
      predicted: what the effects of single sites promised of the first allocation.
      joint: what was measured of it.
      uniform: the distance of the best equal bits within the budgets, one number for kernels and
        one for inputs.
      uniform_bits: `{site: bits}` of these.
      exchanges: how many exchanges were kept.
      evaluations: how often the effects' batches and the held-out ones were run.
    """

    variables: dict[str, Any]
    bits: dict[str, int]
    chosen: str
    distance: float
    predicted: float
    joint: float
    uniform: float
    uniform_bits: dict[str, int]
    exchanges: int
    evaluations: tuple[int, int]


class SolvedKernels(NamedTuple):
    """Kernels that were solved for each candidate.

    Attributes:
      levels: `{bits: variables}` with kernels for so many bits; for all candidates.
      leaves: `{site: paths}` of the leaves that differ there and go with the site's bits:
        `params/conv1/kernel`, and where the layer's intercept is.
    """

    levels: Mapping[int, Variables]
    leaves: Mapping[str, Sequence[str]]


SOLVED: dict[str, Allowed] = {
    "solved.levels": instance(Mapping, hint="give {bits: variables}."),
    "solved.leaves": mapping(several(TEXT)),
}
# What the settings may be, here and in the method.
ALLOCATE_BITS: dict[str, Allowed] = {
    "budgets": several(instance(Budget), 1, hint="make each by bitjax.budget('bits', 4.0), say."),
    "sites": PATTERN,
    "candidates": several(integer(1, 16), 2),
    "held_out": number(0, 1, above=True, below=True),
    "rounds": integer(0),
    "trials": integer(0),
}


@checked(
    variables=VARIABLES,
    batches=BATCHES,
    weights=either(NONE, BATCHES),
    distance=either(NONE, FUNCTION),
    solved=either(NONE, instance(SolvedKernels)),
    kwargs=either(NONE, mapping()),
    costs=either(NONE, SITE_COSTS),
    log=either(NONE, FUNCTION),
    **ALLOCATE_BITS,
)
def allocate_bits(
    model: Model,
    variables: Variables,
    batches: Iterable[Any],
    budgets: Sequence[Budget],
    *,
    sites: str = ".*",
    candidates: Sequence[int] = (2, 3, 4, 5, 6, 7, 8),
    held_out: float = 0.5,
    rounds: int = 2,
    trials: int = 50,
    weights: Iterable[Any] | None = None,
    distance: Distance | None = None,
    solved: SolvedKernels | None = None,
    kwargs: Mapping[str, Any] | None = None,
    costs: Costs | None = None,
    log: Callable[[str], None] | None = None,
) -> AllocatedBits:
    """Gives every site the bits that serve the outputs best within all budgets, without training.

    1. Every site is run at every candidate alone, while the others have the most bits; a sum of
       these effects predicts the distance of any allocation from the float network. Its least
       values within the budgets are tried on held-out batches, with fewer and fewer sites moved
       away from equal bits.
    2. At the best of them the effects of a candidate more or less are measured, and the next
       allocations chosen near it; so for `rounds`, while the held-out distance falls.
    3. Exchanges follow: one site up, another one down, likely ones first. One is kept if the
       held-out distance falls.

    Bits are data: all networks are one compiled program. Ranges of inputs are observed once for
    each candidate, with all sites at it.

    Args:
      model: a wrapped model whose quantizers take any number of bits, such as `bitjax.uniform` or
        `bitjax.bitlength`; sites whose scale was fitted at its own bits have to be left out.
      variables: all collections of the model, as `attach` gives them. Other sites keep their bits.
      batches: calibration batches, two or more of one shape: arrays, tuples of the model's
        arguments, or `bitjax.Inputs`. All stay in memory, and what the float network says of them.
      budgets: limits that hold together, each from `bitjax.budget`.
      sites: a regular expression for the sites to choose bits for, matched in full.
      candidates: the bits to choose from.
      held_out: the share of the batches, from the end, that judges allocations and gives no
        effects.
      rounds: how often the effects are measured anew, at the allocation of the last round.
      trials: how many exchanges are measured.
      weights: what each prediction counts, for every batch an array [...]: 0 where it is padding.
      distance: `(float outputs, outputs) -> [...]`, one number a prediction; by default the
        divergence KL of logits [..., classes], in nats.
      solved: kernels solved for each candidate; effects and allocations are then those of such
        kernels, which a scale that is stored needs.
      kwargs: keyword arguments of the model, the same for every batch.
      costs: the costs of the sites, from `site_costs`; measured on the first batch if None.
      log: a function that is called with a line of text after every step.

    Returns:
      The variables at the best bits found, what was predicted and measured of them, and the best
      equal bits. Those are returned themselves where nothing did better.

    Raises:
      ValueError: no site matches, there are fewer than two batches, the budgets are not met by the
        least candidates, or outputs are not finite.

    Example:
      >>> import flax.linen as nn, jax
      >>> import bitjax as bj
      >>> x = jax.random.normal(jax.random.key(0), (64, 8))
      >>> net = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)])
      >>> model = bj.Quantized(net, [bj.rule(".*", bj.uniform(bits=8))])
      >>> variables = model.init(jax.random.key(1), x)
      >>> limit = bj.budget("bits", 4.0)
      >>> found = allocate_bits(model, variables, [x[:32], x[32:]], [limit], candidates=(3, 4, 5))
      >>> sum(found.bits.values()) <= 16, found.distance <= found.uniform
      (True, True)

    Source: effects of single sites by KL as in ZeroQ, arXiv 2001.00281; that they only rank moves,
      and that joint measurements on other batches decide, is ours.
    """
    names = _sites(variables, sites, solved)
    given = list(weighted(batches, weights))
    if len(given) < 2:
        raise ValueError(
            f"`batches` must be 2 or more, some of them to be held out, got {len(given)}."
        )
    kwargs = dict(kwargs or {})
    costs = _costs(model, variables, as_call(given[0][0], kwargs), names, costs)
    levels = sorted(set(candidates))
    choices = choices_of(names, levels, bits_of(variables), costs, budgets)
    kept = min(max(1, round(len(given) * held_out)), len(given) - 1)
    parts, far = (given[:-kept], given[-kept:]), divergence if distance is None else distance
    first, second = judges(model, floats_of(variables), parts, kwargs, far)
    starts = _starts(variables, levels, solved)
    owned = {} if solved is None else solved.leaves
    mixed = Mixed(choices, _at_levels(model, starts, names, given, kwargs), owned)
    search = Search(mixed, first, second, log or (lambda line: None))
    even, uniform = search.uniform(costs)
    alone, start = search.alone()
    promised = choose(choices, alone)
    joint = second(mixed.at(promised))
    at, now = search.best("single effects", cautious(choices, even, alone))
    losses = alone
    for count in range(rounds):
        losses = blended(alone, search.around(at), at)
        better, now = search.best(f"round {count + 1}", cautious(choices, at, losses))
        if np.array_equal(better, at):
            break
        at = better
    at, now, kept = descend(search, at, now, losses, trials)
    return AllocatedBits(
        variables=mixed.at(at),
        bits=choices.bits(at),
        chosen="uniform" if np.array_equal(at, even) else "measured",
        distance=now,
        predicted=start + float(total_of(alone)(promised)),
        joint=joint,
        uniform=uniform,
        uniform_bits=choices.bits(even),
        exchanges=kept,
        evaluations=(first.seen[0], second.seen[0]),
    )


def _check_solved(variables, solved):
    """Refuses solved kernels that are not those of these variables."""
    if solved is None:
        return
    check(SOLVED, {"solved.levels": solved.levels, "solved.leaves": solved.leaves})
    known = shapes_of({name: tree for name, tree in variables.items() if name != STATS})
    for bits, own in solved.levels.items():
        found = shapes_of(own)
        if differ := [path for path in known if found.get(path) != known[path]]:
            raise ValueError(
                f"`solved.levels[{bits}]` must have the leaves and shapes of `variables`, and "
                f"differs at {differ[0]!r}: solve kernels of this very model."
            )
    sites = bits_of(variables)
    for site, paths in solved.leaves.items():
        if site not in sites:
            raise ValueError(
                f"`solved.leaves` has {site!r}, which is no quantized site. Sites: "
                f"{', '.join(sites)}."
            )
        if wrong := [path for path in paths if path not in known]:
            raise ValueError(
                f"`solved.leaves[{site!r}]` has {wrong[0]!r}, which is no leaf of the variables: "
                f"give paths such as {next(iter(known))!r}."
            )


def _sites(variables, pattern, solved):
    """The sites to choose bits for."""
    known = bits_of(variables)
    if not known:
        raise ValueError("`variables` hold no bits: make them by bitjax.attach.")
    _check_solved(variables, solved)
    found = [site for site in known if re.fullmatch(pattern, site)]
    if not found:
        raise ValueError(
            f"`sites` {pattern!r} matches no quantized site in full. Sites: {', '.join(known)}."
        )
    for site in found:
        leaves = read_site(variables[QUANT], site)
        if "scale" in leaves and (solved is None or site not in solved.leaves):
            raise ValueError(
                f"site {site!r} keeps a scale that was fitted at its own bits: allocate with "
                "bj.uniform() or bj.bitlength() there, or leave it out by `sites`."
            )
    return found


def _starts(variables, levels, solved):
    """The variables at each candidate, before their bits are set."""
    if solved is None:
        return dict.fromkeys(levels, variables)
    if lacks := [k for k in levels if k not in solved.levels]:
        raise ValueError(
            f"`solved` must have variables for every one of `candidates`, it has none for "
            f"{lacks[0]}."
        )
    return {k: solved.levels[k] for k in levels}


def _costs(model, variables, call, names, costs):
    """The costs that are given, or those of a call of the float model."""
    if costs is None:
        return costs_with(float_model(model), floats_of(variables), *call)
    if lacks := [site for site in names if site not in costs]:
        raise ValueError(
            f"`costs` must have those of every site, there are none of {lacks[0]!r}: take "
            "bitjax.site_costs of this model, or leave `costs` out."
        )
    return costs


def _at_levels(model, starts, names, given, kwargs):
    """The variables with all sites at each candidate, ranges observed behind such sites."""
    inputs = [x for x, _ in given]
    at = (with_bits(start, dict.fromkeys(names, k), model.rules) for k, start in starts.items())
    return [averages(model, each, inputs, kwargs) for each in at]
