"""BitPruning (Nikolić et al., arXiv 2002.03090): learn bitlengths, round and freeze, fine-tune."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bitjax.checks import (
    NONE,
    PATTERN,
    check_one,
    checked,
    choice,
    either,
    instance,
    mapping,
    number,
    several,
)
from bitjax.costs.bits import bits_of, with_bits
from bitjax.costs.budget import (
    CRITERION,
    Budget,
    budget,
    check_criterion,
    cost_of,
    exact_cost,
    lagrangian,
    penalty,
    raise_multiplier,
)
from bitjax.costs.rounding import POLICIES, round_bits, unmet
from bitjax.methods.base import Method, Stage
from bitjax.methods.labels import bit_limits, default_labels, learned_labels
from bitjax.methods.optimizers import adam, scheduled, tie
from bitjax.methods.recipe import (
    RATE,
    RECIPE,
    STEPS,
    Keywords,
    Recipe,
    descent,
    reestimate,
    teaching,
)
from bitjax.quantizers.base import freeze
from bitjax.rules import RULES, Rules, quantizer_of
from bitjax.variables import read_site, write_site

_UPDATES = 40  # of the multipliers over the stage that learns bits
_NEAR = 0.1  # relative excess within which the multipliers move

_SHARE = number(0, 1, below=True)


@checked(
    rules=RULES,
    steps=STEPS,
    fine_tune=_SHARE,
    gamma=number(0),
    criterion=CRITERION,
    budgets=several(instance(Budget), hint="make each by bitjax.budget('bits', 4.0), say."),
    rounding=either(NONE, choice(*POLICIES)),
    settle=_SHARE,
    fine_tune_learning_rate=either(NONE, RATE),
    bits_learning_rate=RATE,
    range_learning_rate=RATE,
    sharpness=number(1),
    tied=several(PATTERN),
    start_bits=mapping(number(0, 16)),
    **RECIPE,
)
def bitpruning(
    rules: Rules,
    *,
    steps: int,
    fine_tune: float = 0.2,
    gamma: float = 0.0,
    criterion: str | Mapping[str, float] = "equal",
    budgets: Sequence[Budget] = (),
    rounding: str | None = None,
    settle: float = 0.05,
    fine_tune_learning_rate: float | None = None,
    bits_learning_rate: float = 0.01,
    range_learning_rate: float = 0.005,
    sharpness: float = 16.0,
    tied: Sequence[str] = (),
    start_bits: Mapping[str, float] = {},
    **recipe: Unpack[Keywords],
) -> Method:
    """Learns every bitlength beside the weights, then fixes integers and trains on with them.

    Stage `learn_bits`: loss + gamma * penalty(criterion) + one augmented Lagrangian term per
    budget; bits by Adam without decay, projected to their bounds after each step. Stage
    `freeze_bits`: bits are rounded, ranges move so that 0.0 is a code, and the weights and ranges
    are trained with that. What is reported is after both.

    Args:
      rules: rules with quantizers that learn their bits, `bitjax.bitlength` or others whose traits
        say so; other sites keep theirs.
      steps: steps of both stages together.
      fine_tune: share of the steps that the second stage gets.
      gamma: strength of the soft penalty; 0 where only budgets act.
      criterion: what the penalty counts, see `bitjax.penalty`.
      budgets: hard limits; multipliers start at 0 and move at 40 steps of the stage, where costs
        are within 10 % of their limits, so that no strength has to be tuned.
      rounding: `ceil` (the paper's, as we recall it), `nearest` or `budget`, see `round_bits`.
        None: `budget` where there are budgets, which nothing else is sure to meet on integers, else
        `nearest`.
      settle: share of the first stage's steps before the penalty and budgets act, for ranges to
        settle (early layers may otherwise be driven to one bit, and stay there).
      fine_tune_learning_rate: the weights' peak in the second stage; by default the rate at which
        the first stage left off, on one cosine over both.
      bits_learning_rate: Adam's rate for the bits, constant.
      range_learning_rate: Adam's rate for learned ranges (log domain).
      sharpness: slope of the mix at the end, with `mode="sharpen"`; it rises geometrically from 1.
      tied: patterns of sites that share one bitlength each; ".*" is one per network. Without
        budgets, which round each site by itself.
      start_bits: `{site: bits}` that learning begins from, such as the `bits` that
        `bitjax.allocate_bits` gives; other sites begin where their quantizers do.
      **recipe: the other fields of `bitjax.methods.Recipe`; `warmup` is of the first stage.

    Raises:
      ValueError: an unknown rounding policy or one that does not go with the budgets or with ties,
        or shares outside [0, 1).

    Example:
      >>> [stage.name for stage in bitpruning((), steps=10, gamma=0.1).stages]
      ['learn_bits', 'freeze_bits']

    Source: arXiv 2002.03090, recalled: blend, regularizer, round up and fine-tune. Departures: Adam
      for bits, nearest rounding, budgets, 0.0 made a code at the freeze.
    """
    budgets = [budget(*each) for each in budgets]  # checked, whoever made them
    if not isinstance(criterion, str) and not any(criterion.values()):
        raise ValueError(f"`criterion` must weigh at least one site above 0, got {criterion!r}.")
    rounding = _rounding(rounding, budgets, tied)
    made = Recipe(steps, **recipe)
    tuned = round(steps * fine_tune)
    learned = steps - tuned
    left_off = 0.5 * (1.0 + float(jnp.cos(jnp.pi * learned / max(1, steps))))
    rate = fine_tune_learning_rate
    rate = made.learning_rate * left_off if rate is None else rate
    bits_direction = optax.chain(*(tie(pattern) for pattern in tied), adam())
    first = Stage(
        "learn_bits",
        tuple(rules),
        learned,
        labels=learned_labels(rules),
        optimizers={
            "weights": descent(made._replace(steps=learned), left_off),
            "bits": scheduled(bits_direction, bits_learning_rate, learned, decay="constant"),
            "ranges": scheduled(adam(), range_learning_rate, learned, end=0.1),
        },
        prepare=_begin(rules, rounding, budgets, start_bits),
        check=_sites(rules, criterion, budgets, tied, start_bits),
        controls=_controls(gamma, len(budgets)),
        penalty=_objective(criterion, budgets, settle),
        after_step=_projection(rules, budgets, sharpness, learned),
        **teaching(made),
    )
    frozen_rules = tuple(r._replace(quantizer=r.quantizer and freeze(r.quantizer)) for r in rules)
    last = Stage(
        "freeze_bits",
        frozen_rules,
        tuned,
        prepare=_round_and_freeze(rules, rounding, budgets),
        labels=default_labels,
        optimizers={
            "weights": descent(made._replace(steps=tuned, learning_rate=rate, warmup=0)),
            "ranges": scheduled(adam(), 0.1 * range_learning_rate, tuned),
        },
        **teaching(made),
    )
    return Method("bitpruning", (first, last, *reestimate(frozen_rules, made.reestimate_batches)))


def _sites(rules, criterion, budgets, tied, start_bits):
    """The check that every name of a site in the settings is one of the model's."""

    def check(costs):
        learned = bit_limits(rules, costs)
        if not learned:
            raise ValueError(
                "bitpruning has no bits to learn: give at least one site a bitlength() quantizer."
            )
        check_criterion(criterion, costs, learned)
        for site, bits in start_bits.items():
            if site not in learned:
                raise ValueError(
                    f"`start_bits` has {site!r}, which is no site that learns its bits. Sites that "
                    f"do: {', '.join(learned)}."
                )
            check_one(f"start_bits[{site!r}]", number(*learned[site]), bits)
        # A site of fixed bits has one bit or more.
        quantized = (site for site in costs if quantizer_of(rules, site))
        least = {site: np.ceil(learned.get(site, (1.0,))[0]) for site in quantized}
        for limit in budgets:
            if (cost := exact_cost(limit, least, costs)) > limit.limit:
                raise unmet(limit, cost)
        for pattern in tied:
            if not any(re.fullmatch(pattern, site) for site in learned):
                raise ValueError(
                    f"`tied` {pattern!r} matches no site that learns its bits. Sites that do: "
                    f"{', '.join(learned)}."
                )
            if len({start_bits.get(s) for s in learned if re.fullmatch(pattern, s)}) > 1:
                raise ValueError(
                    f"`start_bits` must give all sites of `tied` {pattern!r} the same bits."
                )

    return check


def _begin(rules, rounding, budgets, start_bits):
    """The preparation that refuses budgets which the least bits miss, and sets the first bits."""

    def begin(context, variables, start):
        if budgets:
            bits = jax.device_get(bits_of(variables))
            limits = bit_limits(rules, context.costs)
            round_bits(bits, context.costs, limits, rounding, budgets)
        if start_bits and not start:
            yield with_bits(variables, start_bits, rules)

    return begin


def _round_and_freeze(rules, rounding, budgets):
    """The preparation that makes integers of what the first stage has learned."""

    def round_and_freeze(context, variables, start):
        if start:
            return
        limits = bit_limits(rules, context.costs)
        bits = jax.device_get(bits_of(context.previous))
        rounded = round_bits(bits, context.costs, limits, rounding, budgets)
        yield with_bits(variables, rounded, context.model.rules)

    return round_and_freeze


def _controls(gamma: float, count: int) -> dict[str, Any]:
    """The traced state: a strength, and what each of `count` budgets needs."""
    if not count:
        return {"gamma": gamma}
    zeros = np.zeros(count, np.float32)
    return {"gamma": gamma, "multiplier": zeros, "excess": zeros, "stiffness": 1.0}


def _objective(criterion, budgets, settle):
    """What the loss gains: the soft penalty, and a term of the augmented Lagrangian per budget."""

    def soft(quant, costs, controls, progress):
        awake = jnp.where(progress >= settle, 1.0, 0.0)
        bits = bits_of(quant)
        total = controls["gamma"] * penalty(quant, costs, criterion)
        for i, limit in enumerate(budgets):
            excess = cost_of(limit, bits, costs) / limit.limit - 1.0
            total += lagrangian(excess, controls["multiplier"][i], controls["stiffness"])
        return awake * total

    return soft


def _projection(rules, budgets, sharpness, steps):
    """What follows each of `steps` steps: bits return to their bounds, multipliers may rise."""

    def after_step(variables, controls, costs, step):
        quant = variables["quant"]
        for site, (low, high) in bit_limits(rules, costs).items():
            leaves = read_site(quant, site)
            new = {**leaves, "bits": jnp.clip(leaves["bits"], low, high)}
            if "sharpness" in leaves:
                new["sharpness"] = sharpness ** (step / max(1, steps)).astype(jnp.float32)
            quant = write_site(quant, site, new)
        variables = {**variables, "quant": quant}
        if not budgets:
            return variables, controls
        bits = bits_of(quant)
        excess = jnp.stack([cost_of(b, bits, costs) / b.limit - 1.0 for b in budgets])
        smooth = 0.9 * controls["excess"] + 0.1 * excess
        # Far from the limit the quadratic term pulls; a multiplier raised there would wind up and
        # overshoot, because bits travel slower than it.
        due = (step % max(1, steps // _UPDATES) == 0) & (jnp.abs(smooth) < _NEAR)
        raised = raise_multiplier(smooth, controls["multiplier"], controls["stiffness"])
        multiplier = jnp.where(due, raised, controls["multiplier"])
        # The constraint hardens tenfold over the stage: soft first, while bits travel far.
        stiffness = controls["stiffness"] * 10.0 ** (1.0 / max(1, steps))
        moved = {"excess": smooth, "multiplier": multiplier, "stiffness": stiffness}
        return variables, {**controls, **moved}

    return after_step


def _rounding(policy, budgets, tied):
    """The rounding policy, given or chosen, that goes with the budgets and the ties."""
    if policy is None:
        policy = "budget" if budgets else "nearest"
    if budgets and policy != "budget":
        raise ValueError(
            f"`rounding` must be 'budget' or None where there are budgets, got {policy!r}, which "
            "may exceed them: change it, or give a strength `gamma` instead of budgets."
        )
    if policy == "budget" and not budgets:
        raise ValueError("rounding='budget' needs a budget: bitjax.budget('bits', 4.0), say.")
    if budgets and tied:
        raise ValueError(
            f"`tied` {list(tied)} does not go with budgets, which round each site by itself: give "
            "a strength `gamma` instead of budgets, or remove `tied`."
        )
    return policy
