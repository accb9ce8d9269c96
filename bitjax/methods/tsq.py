"""Two-step quantization (Wang et al., CVPR 2018): learn the codes, then solve for the weights."""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from bitjax.bottleneck.allocate import allocate
from bitjax.methods.base import Context, Method, Stage, Variables
from bitjax.methods.fixed_bits import fixed_bits
from bitjax.methods.labels import FROZEN, default_labels
from bitjax.methods.optimizers import scheduled, sgd
from bitjax.methods.recipe import reestimate, teaching
from bitjax.rules import Rules, quantizer_of
from bitjax.two_step.fits import Settings
from bitjax.two_step.solve import solve_each
from bitjax.two_step.targets import is_stored

TRAINED = ("scales", "straight_through")


def tsq(
    rules: Rules,
    *,
    code_steps: int,
    fine_tune_steps: int = 0,
    trained: str = "scales",
    learning_rate: float = 0.01,
    fine_tune_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    warmup: int = 0,
    distill: float = 0.0,
    temperature: float = 1.0,
    input_bits: int = 0,
    calibration_batches: int = 16,
    augment: bool = False,
    reestimate_batches: int = 0,
    target: str = "codes",
    asymmetric: bool = True,
    float_inputs: bool = False,
    positions: int = 16,
    ridge: float = 0.1,
    joint: bool = True,
    pair_moves: bool = False,
    starts: int = 1,
    strengths: tuple[float, ...] = (1.0,),
    iterations: int = 5,
) -> Method:
    """Trains with low-bit activations and float weights, then finds weights that give their codes.

    Stage `codes`: kernels with a stored scale stay float; weights, and ranges of inputs that are
    learned, by SGD. Stage `transform`: layer by layer in forward order, without gradients, codes
    and a scale per filter from patches of the network as far as it is solved; each layer is kept
    as it is done. Stage `reestimate_batch_stats`: if asked for. Stage `fine_tune`: if asked for,
    with the codes frozen or by the straight-through estimator.

    Args:
      rules: kernels to be solved with `ternary`, `binary` or `low_bit` quantizers and
        fit="stored"; inputs with `halfwave`, or any other, or float; others keep theirs.
      code_steps: of the first stage; 0 calibrates its quantizers only.
      fine_tune_steps: of the last stage; 0 leaves it out.
      trained: in it: `scales`, all but the solved kernels; `straight_through`, all.
      learning_rate: peak in the first stage.
      fine_tune_rate: peak in the last.
      momentum: of SGD.
      weight_decay: on parameters, in both.
      warmup: steps of linear rise, in both.
      distill: share of the float teacher's soft labels in the loss, in both.
      temperature: of the soft labels.
      input_bits: planes of `bitplane` inputs, whose scales are then those of least error on the
        calibration batches, see `bitjax.allocate`; 0 leaves inputs as they start.
      calibration_batches: training batches that layers are solved from.
      augment: whether those are augmented.
      reestimate_batches: augmented batches that re-estimate batch normalisation's statistics after
        the transformation; 0 does not.
      target: see `bitjax.two_step.fits.Settings`, as for what follows.
      asymmetric: likewise.
      float_inputs: likewise.
      positions: likewise.
      ridge: likewise.
      joint: likewise.
      pair_moves: likewise.
      starts: likewise.
      strengths: likewise.
      iterations: likewise.

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
    if trained not in TRAINED:
        raise ValueError(f"`trained` must be one of {list(TRAINED)}, got {trained!r}.")
    if not any(is_stored(r.quantizer) for r in rules):
        raise ValueError(
            "tsq has no kernel to solve: give one a ternary, binary or low_bit quantizer with "
            "fit='stored'."
        )
    settings = Settings(
        target,
        asymmetric,
        float_inputs,
        positions,
        ridge,
        joint,
        pair_moves,
        starts,
        tuple(strengths),
        iterations,
    )
    codes = fixed_bits(
        "tsq",
        float_kernels(rules),
        steps=code_steps,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        warmup=warmup,
        range_direction=sgd(momentum),
        range_learning_rate=learning_rate,
        distill=distill,
        temperature=temperature,
    ).stages[0]

    def place(context: Context, variables: Variables, start: int) -> Iterator[Variables]:
        if not start:
            yield allocate(
                context.model, variables, lambda: context.batches(calibration_batches, False),
                rate=input_bits, min_bits=input_bits, max_bits=input_bits, costs=context.costs,
            )  # fmt: skip

    def transform(context: Context, variables: Variables, start: int) -> Iterator[Variables]:
        solved = solve_each(
            context.model,
            variables,
            lambda: context.batches(calibration_batches, augment),
            settings=settings,
            teacher=context.previous,
            costs=context.costs,
            start=start,
        )
        for found, report in solved:
            behind = "" if report.mismatch is None else f", codes {report.mismatch:.1%} off"
            context.log(
                f"{report.layer}: error {report.error:.1%}{behind}, "
                f"{report.sparsity:.0%} zeros, {report.patches:,} patches"
            )
            yield found

    codes = codes._replace(name="codes", prepare=place if input_bits else None)
    stages = [codes, Stage("transform", rules, prepare=transform)]
    if reestimate_batches:
        stages.append(reestimate(rules, reestimate_batches))
    if fine_tune_steps:
        last = scheduled(
            sgd(momentum, weight_decay), fine_tune_rate, fine_tune_steps, warmup=warmup
        )
        ranges = scheduled(sgd(momentum), fine_tune_rate, fine_tune_steps, warmup=warmup)
        held = tuple(
            r._replace(quantizer=r.quantizer.frozen())
            if r.quantizer and r.quantizer.frozen and is_stored(r.quantizer)
            else r
            for r in rules
        )
        stages.append(
            Stage(
                "fine_tune",
                held if trained == "scales" else rules,
                fine_tune_steps,
                labels=frozen_codes(rules) if trained == "scales" else default_labels,
                optimizers={"weights": last, "ranges": ranges},
                **teaching(distill, temperature),
            )
        )
    return Method("tsq", tuple(stages))


def float_kernels(rules: Rules) -> Rules:
    """The rules with kernels of stored scales left float.

    Example:
      >>> import bitjax as bj
      >>> float_kernels([bj.rule(".*/kernel", bj.ternary(fit="stored"))])
      (Rule(pattern='.*/kernel', quantizer=None),)
    """
    return tuple(r._replace(quantizer=None) if is_stored(r.quantizer) else r for r in rules)


def frozen_codes(rules: Rules) -> Callable[[Any], Any]:
    """`default_labels`, with kernels of stored scales frozen: only what surrounds the codes moves.

    Example:
      >>> import bitjax as bj
      >>> labels = frozen_codes([bj.rule("head/kernel", bj.ternary(fit="stored"))])
      >>> labels({"params": {"head": {"kernel": 0.0, "bias": 0.0}}})
      {'params': {'head': {'bias': 'weights', 'kernel': 'frozen'}}}
    """

    def label(path, name):
        if path[0].key != "params" or path[-1].key != "kernel":
            return name
        quantizer = quantizer_of(rules, "/".join(key.key for key in path[1:]))
        return FROZEN if is_stored(quantizer) else name

    return lambda trained: jax.tree_util.tree_map_with_path(label, default_labels(trained))
