"""BitPruning (Nikolić et al., arXiv 2002.03090): learn bitlengths, round and freeze, fine-tune."""

import re
from collections.abc import Mapping, Sequence
from typing import Unpack

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
    penalty,
)
from bitjax.costs.constraints import allowed, steered, within
from bitjax.costs.measures import average_bits
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
    settling,
    teaching,
)
from bitjax.methods.solved_start import START, starting
from bitjax.quantizers.base import freeze
from bitjax.rules import RULES, Rules, quantizer_of
from bitjax.variables import read_site, write_site

_ARRIVAL = 0.5  # share of the stage that learns bits after which budgets hold
_TAKEN = 0.1  # average bits that rounding may take without a word

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
    start=START,
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
    start: str = "float",
    **recipe: Unpack[Keywords],
) -> Method:
    """Learns every bitlength beside the weights, then fixes integers and trains on with them.

    Stage `learn_bits`: loss + gamma * penalty(criterion); bits by Adam without decay, projected to
    their bounds and the budgets after each step. At a budget the gradient loses what would raise
    the cost, so that sites trade bits. Stage
    `freeze_bits`: bits are rounded, ranges move so that 0.0 is a code, and the weights and ranges
    are trained with that. What is reported is after both.

    Args:
      rules: rules with quantizers that learn their bits, `bitjax.bitlength` or others whose traits
        say so; other sites keep theirs.
      steps: steps of both stages together.
      fine_tune: share of the steps that the second stage gets.
      gamma: strength of the soft penalty; 0 where only budgets act.
      criterion: what the penalty counts, see `bitjax.penalty`.
      budgets: hard limits, reached by the middle of the stage and kept from there on, whatever the
        bits to start from: no strength has to be tuned.
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
      start: `float` kernels, or `solved` ones: `bitjax.solve_layers` gives those that begin with at
        most 6 bits codes before the training.
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
    rounding = _rounding(rounding, budgets, tied)
    made = Recipe(steps, **recipe)
    learned = steps - (tuned := round(steps * fine_tune))
    left = 0.5 * (1.0 + float(jnp.cos(jnp.pi * learned / max(1, steps))))
    rate = made.learning_rate * left if fine_tune_learning_rate is None else fine_tune_learning_rate
    bits_direction = optax.chain(*(tie(pattern) for pattern in tied), adam())
    first = Stage(
        "learn_bits",
        tuple(rules),
        learned,
        labels=learned_labels(rules),
        optimizers={
            "weights": descent(made._replace(steps=learned), left),
            "bits": scheduled(bits_direction, bits_learning_rate, learned, decay="constant"),
            "ranges": scheduled(adam(), range_learning_rate, learned, end=0.1),
        },
        prepare=_begin(rules, rounding, budgets, start_bits),
        check=_sites(rules, criterion, budgets, tied, start_bits),
        controls={"gamma": gamma, **({"start": np.zeros(len(budgets))} if budgets else {})},
        penalty=_objective(criterion, settle),
        steer=_steer(rules, budgets, settle) if budgets else None,
        after_step=_projection(rules, budgets, sharpness, learned, settle),
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
        **settling(made._replace(steps=tuned)),
    )
    stages = first, last, *reestimate(frozen_rules, made.reestimate_batches)
    return starting(Method("bitpruning", stages), start, start_bits)


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
        before, after = (average_bits(n, context.costs) for n in (bits, {**bits, **rounded}))
        if (taken := float(before - after)) > _TAKEN:
            fix = (
                "more steps or a looser budget may bring them closer"
                if budgets
                else "give a budget, which bits meet while they are learned"
            )
            context.log(
                f"bitpruning: rounding takes {taken:.2f} of {float(before):.2f} learned bits on "
                f"average, so that they are not what was learned: {fix}."
            )
        yield with_bits(variables, rounded, context.model.rules)

    return round_and_freeze


def _objective(criterion, settle):
    """What the loss gains: the soft penalty."""
    if not isinstance(criterion, str) and not any(criterion.values()):
        raise ValueError(f"`criterion` must weigh at least one site above 0, got {criterion!r}.")

    def soft(quant, costs, controls, progress):
        awake = jnp.where(progress >= settle, 1.0, 0.0)
        return awake * controls["gamma"] * penalty(quant, costs, criterion)

    return soft


def _most(budgets, start, progress, settle):
    """The costs allowed now: the limits from half of the stage on, any until the ranges settled."""
    share = (progress - settle) / max(_ARRIVAL - settle, 1e-6)
    return jnp.where(progress >= settle, allowed(budgets, start, share), jnp.inf)


def _steer(rules, budgets, settle):
    """What budgets make of the gradient: bits trade at equal cost."""

    def steer(grads, quant, costs, controls, progress):
        every, limits = bits_of(grads), bit_limits(rules, costs)
        most = _most(budgets, controls["start"], progress, settle)
        found = {s: every[s] for s in limits}
        for site, g in steered(found, bits_of(quant), limits, costs, budgets, most).items():
            grads = write_site(grads, site, {**read_site(grads, site), "bits": g})
        return grads

    return steer


def _projection(rules, budgets, sharpness, steps, settle):
    """What follows each of `steps` steps: bits return to their bounds and within the budgets."""

    def after_step(variables, controls, costs, step):
        quant, limits = variables["quant"], bit_limits(rules, costs)
        bits, progress = bits_of(quant), step / max(1, steps)
        if budgets:
            cost = jnp.stack([cost_of(b, bits, costs) for b in budgets])
            # Where the way to the limits begins: the cost at which the ranges have settled.
            start = jnp.where(progress <= settle + 1.0 / max(1, steps), cost, controls["start"])
            controls = {**controls, "start": start}
            bits = within(bits, limits, costs, budgets, _most(budgets, start, progress, settle))
        for site, (low, high) in limits.items():
            leaves = read_site(quant, site)
            new = {**leaves, "bits": jnp.clip(bits[site], low, high)}
            if "sharpness" in leaves:
                new["sharpness"] = sharpness ** progress.astype(jnp.float32)
            quant = write_site(quant, site, new)
        return {**variables, "quant": quant}, controls

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
