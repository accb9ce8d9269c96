"""Solved kernels as the start of training: a stage in front of a method's own stages.

Training begins where `bitjax.solve_layers` ends: latent weights lie on solved levels, and scales
that are learned are the solved ones. A range that is observed follows the solved kernel, and may
miss its levels: the log says by how much.
"""

import re
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.checks import choice
from bitjax.costs.site import Costs
from bitjax.frameworks.attach import attach
from bitjax.frameworks.compiled import compile_quickly, jit_arrays
from bitjax.frameworks.tap import tap
from bitjax.methods.base import Context, Method, Stage, Variables
from bitjax.quantizers.base import RANGES, Axes, Quantizer
from bitjax.quantizers.ternary import binary, low_bit, ternary
from bitjax.rules import Rules, quantizer_of, rule
from bitjax.two_step.fits import SolveOptions
from bitjax.two_step.solve import solve_each
from bitjax.variables import QUANT, STATS, as_call, floats_of, pick, read_site, write_site

START = choice("float", "solved")
MOST_BITS = 6  # kernels of more bits lose nothing by rounding that a solver would have to find
_BATCHES = 4
_OPTIONS = SolveOptions(target="sum", ridge=0.3, positions=512)


def starting(method: Method, start: str, bits: Mapping[str, float] | None = None) -> Method:
    """The method, from solved kernels if `start` is `solved`; `bits` are those of some sites."""
    if start == "float":
        return method
    bits = bits or {}
    rules = method.stages[0].rules
    front = Stage("solve", rules, prepare=_solving(rules, bits), check=_check(rules, bits))
    return method._replace(stages=(front, *method.stages))


def _check(rules: Rules, bits: Mapping[str, float]):
    """The check that kernels of few bits are there, each with a range of its own per filter."""

    def check(costs: Costs) -> None:
        found = _stand_ins(rules, costs, bits)
        if not found:
            raise ValueError(
                f"start='solved' has no kernel of 1 to {MOST_BITS} bits to solve: give kernels "
                "fewer bits, or leave start='float'."
            )
        for site in found:
            q = quantizer_of(rules, site)
            assert q is not None, "found by it"
            leaves = jax.eval_shape(lambda q=q: q.init(jnp.ones((2, 3)), Axes((1,), 0)))
            if not any(3 in leaf.shape for leaf in jax.tree.leaves(leaves)):
                raise ValueError(
                    f"start='solved' finds a scale per filter, and the quantizer of {site!r} has "
                    "one range: give it granularity='per_channel', or leave start='float'."
                )

    return check


def _stand_ins(
    rules: Rules, costs: Costs, bits: Mapping[str, float], quant: Variables | None = None
) -> dict[str, Quantizer]:
    """For each kernel of few bits the quantizer of the same integers whose scale is stored."""
    made: dict[tuple, Quantizer | None] = {}
    found = {}
    for site, entry in costs.items():
        quantizer = quantizer_of(rules, site)
        if entry.role != "kernel" or quantizer is None:
            continue
        own = bits.get(site)
        if own is None and quant is not None:
            own = float(np.max(read_site(quant, site)["bits"]))
        key = id(quantizer), own
        if key not in made:
            try:
                made[key] = _stand_in(quantizer, own)
            except ValueError as error:
                raise ValueError(
                    f"start='solved' finds signed codes and a scale per filter, which the "
                    f"quantizer of {site!r} does not have: {error}"
                ) from error
        if (stand_in := made[key]) is not None:
            found[site] = stand_in
    return found


def _stand_in(quantizer: Quantizer, bits: float | None) -> Quantizer | None:
    """A quantizer with a stored scale and the same integers; None if they are too many."""
    params, stats = quantizer.init(jnp.array([[-1.0, 0.5], [0.25, 1.0]]), Axes((1,), 0))
    params = params if bits is None else {**params, "bits": jnp.float32(bits)}
    whole = max(1, round(float(np.max(params["bits"]))))
    if quantizer.traits.stored_scale:
        return quantizer
    if whole > MOST_BITS:
        return None
    if quantizer.traits.coding == "signs":
        return binary(fit="stored")
    if quantizer.numbers is None:  # a grid between two
        return low_bit(bits=max(2, whole), fit="stored", narrow=False)
    numbers = quantizer.numbers(params, stats)
    if np.max(numbers.first) >= 0:
        raise ValueError("it has no level below 0; give it signed=True.")
    first, last = (round(float(np.max(jnp.abs(n)))) for n in (numbers.first, numbers.last))
    if first == last == 1:
        return ternary(fit="stored")
    return low_bit(bits=max(2, whole), fit="stored", narrow=first == last)


def _solving(rules: Rules, bits: Mapping[str, float]):
    """The preparation that replaces float kernels by solved ones."""

    def solve(context: Context, variables: Variables, start: int) -> Iterator[Variables]:
        if start:
            return
        kernels = _stand_ins(rules, context.costs, bits, variables[QUANT])
        # A rule for each site, so that none is there that does nothing.
        quantizers = ((s, kernels.get(s, quantizer_of(rules, s))) for s in context.costs)
        stored = context.model.with_rules([rule(re.escape(s), q) for s, q in quantizers if q])
        batch = as_call(next(iter(context.batches(1, False))))
        solved: Variables = attach(stored, variables, *batch.args, **batch.kwargs)
        weights = context.weights
        steps = solve_each(
            stored,
            solved,
            lambda: context.batches(_BATCHES, False),
            weights=None if weights is None else (lambda: weights(_BATCHES, False)),
            settings=_OPTIONS,
        )
        errors = []
        for solved, report in steps:  # noqa: B007  the last one is kept
            errors.append(report.error)
        found = _ranged(context.model, variables, solved, list(kernels), batch)
        layers = [context.costs[site].layer for site in kernels]
        moved = _moved(context.model, found, stored, solved, layers, batch)
        many = f"{len(errors)} kernel{'s' * (len(errors) > 1)}"
        context.log(
            f"start: {many} solved, error {np.mean(errors):.1%} on average; their own quantizers "
            f"move them by {moved:.1%}"
        )
        yield found

    return solve


def _ranged(model, variables, solved, kernels, batch) -> Variables:
    """Variables of the model with solved kernels; learned ranges are the solved scales."""
    quant = variables[QUANT]
    refitted = False
    for site, own in pick(quant, kernels).items():
        scale = read_site(solved[QUANT], site)["scale"]
        if own.get("scale", scale).shape != scale.shape or {*RANGES} & {*own} - {"scale"}:
            # A range of another form is fitted to the solved kernel.
            quant, refitted = write_site(quant, site, {"bits": own["bits"]}), True
        elif "scale" in own:
            quant = write_site(quant, site, {**own, "scale": scale})
    found = {**floats_of(solved), QUANT: quant}
    found |= {STATS: variables[STATS]} if STATS in variables else {}
    return attach(model, found, *batch.args, **batch.kwargs) if refitted else found


def _moved(model, variables, stored, solved, layers, batch) -> float:
    """How far quantizers move solved kernels: the share of these kernels' energy."""
    # A range that is observed, not learned, need not have the solved levels.
    pairs = (_kernels(*each, layers, batch) for each in ((model, variables), (stored, solved)))
    found, wanted = ([np.asarray(k, np.float64) for k in kernels] for kernels in pairs)
    error = sum(np.sum((a - b) ** 2) for a, b in zip(found, wanted, strict=True))
    return float(error / max(sum(np.sum(b**2) for b in wanted), 1e-30))


def _kernels(model, variables, layers, batch):
    """The kernels that layers compute with."""
    given = variables, batch.args, batch.kwargs
    return jit_arrays(_read, *given, static=(model, tuple(layers)), **compile_quickly())


def _read(model, layers, variables, args, kwargs):
    tapped = tap(model, variables, *args, **kwargs)
    return [tapped[layer].kernel for layer in layers]
