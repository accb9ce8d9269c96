"""Two-step quantization (Wang et al., CVPR 2018): learn the codes, then solve for the weights."""

from collections.abc import Callable, Iterator
from typing import Any, Unpack

import jax

from bitjax.bottleneck.allocate import allocate, check_sites
from bitjax.checks import SWITCH, checked, choice, integer
from bitjax.frameworks.targets import float_kernels, is_stored
from bitjax.methods.base import Context, Method, Stage, Variables
from bitjax.methods.labels import FROZEN, default_labels
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
from bitjax.methods.solved import check_rules, solving, stored_check
from bitjax.program.naming import layers_of, path_of
from bitjax.program.values import Leaf
from bitjax.rules import RULES, Rules, quantizer_of
from bitjax.two_step.fits import SOLVE, SolveOptions
from bitjax.variables import QUANT, read_site, site_name

TRAINED = ("scales", "straight_through")

_LEFT = ("damping", "correction", "max_sweeps", "seed")
_SOLVE = {name: allowed for name, allowed in SOLVE.items() if name not in _LEFT}


@checked(
    rules=RULES,
    code_steps=STEPS,
    fine_tune_steps=STEPS,
    trained=choice(*TRAINED),
    fine_tune_rate=RATE,
    input_bits=integer(0, 8),
    calibration_batches=BATCHES,
    augment=SWITCH,
    **_SOLVE,
    **RECIPE,
)
def tsq(
    rules: Rules,
    *,
    code_steps: int,
    fine_tune_steps: int = 0,
    trained: str = "scales",
    fine_tune_rate: float = 0.01,
    input_bits: int = 0,
    calibration_batches: int = 16,
    augment: bool = False,
    target: str = "codes",
    start: str = "rounded",
    asymmetric: bool = True,
    float_inputs: bool = False,
    positions: int = 16,
    ridge: float = 0.1,
    joint: bool = True,
    pair_moves: bool = False,
    starts: int = 1,
    strengths: tuple[float, ...] = (1.0,),
    iterations: int = 5,
    **recipe: Unpack[Keywords],
) -> Method:
    """Trains with low-bit activations and float weights, then finds weights that give their codes.

    Stage `codes`: kernels with a stored scale stay float; weights, and ranges of inputs that are
    learned, by SGD. Stage `transform`: layer by layer in forward order, without gradients, codes
    and a scale per filter from patches of the network as far as it is solved; each layer is kept
    as it is done. Stage `reestimate_batch_stats`: if asked for. Stage `fine_tune`: if asked for,
    with the codes frozen or by the straight-through estimator.

    Args:
      rules: rules that give kernels to be solved `ternary`, `binary` or `low_bit` quantizers with
        fit="stored", and inputs `halfwave`, any other quantizer, or none; others keep theirs.
      code_steps: steps of the first stage; 0 calibrates its quantizers only.
      fine_tune_steps: steps of the last stage; 0 leaves it out.
      trained: what the last stage trains: `scales`, all but the solved kernels, or
        `straight_through`, all.
      fine_tune_rate: the learning rate's peak in the last stage.
      input_bits: planes of `bitplane` inputs, whose scales are then those of least error on the
        calibration batches, see `bitjax.allocate`; 0 leaves inputs as they start.
      calibration_batches: training batches that layers are solved from.
      augment: whether those batches are augmented.
      target: what each layer is solved for: `codes` for the finest target that is known of it,
        `sum` or `output`.
      start: codes that the descent starts from: `rounded`, `gptq`, `adaround`, or the better of the
        first two, `best`, or of all three, `all`.
      asymmetric: whether a layer's inputs come from the network as far as it is solved; else they
        are the float network's own.
      float_inputs: whether the float network computes its targets from float inputs; else from
        inputs quantized as the first stage has learned.
      positions: patches taken of an example.
      ridge: strength of the pull towards the float filters, see `solvers.fit_codes`.
      joint: whether each code is tried at its own best scale; else there is one scale a sweep.
      pair_moves: whether two codes may change at once, too; not where patches are fewer than
        inputs.
      starts: number of starts of the descent.
      strengths: strengths lambda of the splitting, one after the other, for the finest targets.
      iterations: iterations of the splitting for each strength.
      **recipe: the other fields of `bitjax.methods.Recipe`; the rate is the first stage's, all else
        holds in both stages that train, and statistics are re-estimated behind `transform`.

    Raises:
      ValueError: no rule stores a kernel's scale, or a setting is out of its range.

    Example:
      >>> import bitjax as bj
      >>> rules = [bj.rule(".*/kernel", bj.ternary(fit="stored"))]
      >>> [stage.name for stage in tsq(rules, code_steps=10, fine_tune_steps=5).stages]
      ['codes', 'transform', 'fine_tune']

    Source: the paper's two steps. Departures: see `bitjax.solve_layers`; where an intercept has a
      place it is solved for; fine-tuning is ours, the paper is not known to have one.
    """
    check_rules(rules, "tsq")
    options = SolveOptions(
        target=target,
        start=start,
        asymmetric=asymmetric,
        float_inputs=float_inputs,
        positions=positions,
        ridge=ridge,
        joint=joint,
        pair_moves=pair_moves,
        starts=starts,
        strengths=tuple(strengths),
        iterations=iterations,
    )
    made = Recipe(code_steps, **recipe)
    first = training("codes", float_kernels(rules), made, range_decay=0.0)
    if input_bits:
        first = first._replace(
            prepare=_place(input_bits, calibration_batches),
            check=lambda costs: check_sites(rules, costs, "free", input_bits),
        )
    solve = solving(options, calibration_batches, augment)
    stages = [
        first,
        Stage("transform", rules, prepare=solve, check=stored_check(rules, "tsq")),
        *reestimate(rules, made.reestimate_batches),
    ]
    if fine_tune_steps:
        tuned = made._replace(steps=fine_tune_steps, learning_rate=fine_tune_rate)
        last = training("fine_tune", rules, tuned, range_decay=0.0)
        if trained == "scales":
            last = last._replace(rules=_held(rules), labels=_frozen_codes(rules))
        stages.append(last)
    return Method("tsq", tuple(stages))


def _place(bits: int, batches: int):
    """The preparation that gives inputs of planes so many bits."""

    def place(context: Context, variables: Variables, start: int) -> Iterator[Variables]:
        if not start:
            yield allocate(
                context.model, variables, lambda: context.batches(batches, False),
                rate=bits, min_bits=bits, max_bits=bits, costs=context.costs,
            )  # fmt: skip

    return place


def _held(rules: Rules) -> Rules:
    """The rules with the codes of stored scales held."""
    return tuple(
        r._replace(quantizer=r.quantizer.frozen())
        if r.quantizer and r.quantizer.frozen and is_stored(r.quantizer)
        else r
        for r in rules
    )


def _frozen_codes(rules: Rules) -> Callable[[Any], Any]:
    """`default_labels` with kernels of stored scales frozen: only what surrounds codes moves."""

    def labels(trained):
        leaves = jax.tree_util.tree_leaves_with_path(trained["params"])
        layers = layers_of(Leaf(path_of(path), leaf.size) for path, leaf in leaves)

        def label(path, name):
            if path[0].key != "params":
                return name
            site = site_name(layers[path_of(path[1:])], "kernel")
            # Of all leaves only kernels have variables of such a site.
            kernel = read_site(trained.get(QUANT, {}), site, None) is not None
            return FROZEN if kernel and is_stored(quantizer_of(rules, site)) else name

        return jax.tree_util.tree_map_with_path(label, default_labels(trained))

    return labels
