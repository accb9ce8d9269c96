"""Solves low-bit kernels layer by layer from the outputs of a teacher's layers, without gradients.

This is the second step of Two-Step Quantization: Wang et al., "Two-Step Quantization for Low-bit
Neural Networks", CVPR 2018. Layers are solved in forward order; the inputs of each come from the
network as far as it is solved. A layer whose sum has an addend that is solved after it is solved
once more. The tree of variables keeps its form: the kernel becomes
scale * codes, the scale goes to the quantizer's leaf, the intercept to the layer's bias or to the
mean of the batch normalisation behind it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from bitjax.checks import (
    BATCHES,
    FUNCTION,
    NONE,
    PATTERN,
    check_names,
    checked,
    either,
    integer,
    mapping,
)
from bitjax.frameworks.calibrate import numbered
from bitjax.frameworks.call import Model
from bitjax.frameworks.models import as_model
from bitjax.frameworks.targets import plan_layers
from bitjax.two_step.fits import SOLVE, SolveOptions
from bitjax.two_step.together import Report, Shared, groups_of, solve_group, twice
from bitjax.variables import VARIABLES, as_call

Variables = Mapping[str, Any]


@checked(
    variables=VARIABLES,
    batches=either(FUNCTION, BATCHES),
    kwargs=either(NONE, mapping()),
    bits=either(NONE, integer(1, 16)),
    layers=PATTERN,
    weights=either(NONE, FUNCTION),
    log=either(NONE, FUNCTION),
    **SOLVE,
)
def solve_layers(
    model: Model,
    variables: Variables,
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    *,
    bits: int | None = None,
    layers: str = ".*",
    kwargs: Mapping[str, Any] | None = None,
    weights: Callable[[Any], Any] | None = None,
    log: Callable[[Report], None] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Gives kernels low-bit codes with which each layer does what its float kernel does.

    Args:
      model: a wrapped model with kernels whose quantizer stores its scale, such as
        `bitjax.ternary(fit="stored")`, `binary` or `low_bit`; inputs may be quantized or not.
      variables: all collections of the model, with float kernels; of a function
        `{"params": its parameters}` and its state. Weights that are exactly 0 stay 0 where the
        quantizer has that level: a pruned network stays pruned.
      batches: the model's inputs, arrays, tuples of arguments or `bitjax.Inputs`: a list, or a
        function that gives the same batches at every call.
      bits: the number of bits of the kernels to solve; None takes all with a stored scale.
      layers: a regular expression, matched in full against layers' paths.
      kwargs: keyword arguments of the model, the same for every batch.
      weights: a function of a batch that gives how much each position of it counts, in the shape
        of the layers' inputs without their channels, `[n, tokens]` say: 0 leaves padding out.
        None: all positions count alike. Not with targets of codes or of a ReLU.
      log: a function that is called with each layer's `Report`.
      **settings: the fields of `bitjax.two_step.fits.SolveOptions`.

    Returns:
      The variables with these layers' kernels on their codes, with their scales, and with their
      intercepts in a bias, or in a batch normalisation's mean; everything else as it was.

    Raises:
      ValueError: no kernel has a stored scale, a layer has no patches, or a statistic is not
        finite; it names the layer.

    Example:
      >>> import flax.linen as nn
      >>> import jax.numpy as jnp
      >>> import bitjax as bj
      >>> x = jax.random.normal(jax.random.key(0), (256, 8))
      >>> model = bj.Quantized(nn.Dense(4), [bj.rule("kernel", bj.ternary(fit="stored"))])
      >>> variables = model.init(jax.random.key(1), x)
      >>> solved = solve_layers(model, variables, [x], bits=2)
      >>> scale = solved["quant"]["kernel"]["scale"]
      >>> sorted(set(jnp.unique(jnp.round(solved["params"]["kernel"] / scale, 3)).tolist()))
      [-1.0, 0.0, 1.0]

    Source: the paper's second step. Departures: an intercept, a ridge, joint descent, and the best
      iterate on held-out patches; its schedule is not known.
    """
    check_names(settings, SOLVE, "solve_layers")
    given = batches if callable(batches) else list(batches)
    source = given if callable(given) else lambda: given
    steps = solve_each(
        model, variables, source,
        weights=None if weights is None else (lambda: map(weights, source())),
        bits=bits, layers=layers, kwargs=kwargs, settings=SolveOptions(**settings),
    )  # fmt: skip
    found: Variables = variables
    for found, report in steps:  # noqa: B007  the last one is returned
        if log is not None:
            log(report)
    return dict(found)


def solve_each(
    model: Any,
    variables: Variables,
    batches: Callable[[], Iterable[Any]],
    *,
    weights: Callable[[], Iterable[Any]] | None = None,
    bits: int | None = None,
    layers: str = ".*",
    kwargs: Mapping[str, Any] | None = None,
    settings: SolveOptions | None = None,
    teacher: Variables | None = None,
    start: int = 0,
) -> Iterator[tuple[Variables, Report]]:
    """As `solve_layers`, giving the variables after every layer, so that work can be kept."""
    # `variables` have their first `start` layers solved already. The float kernels to imitate are
    # those of `teacher`; if None, those of `variables`, which must then be those of the start.
    # `weights` are those of the batches, in their order.
    settings, kwargs = settings or SolveOptions(), dict(kwargs or {})
    net = as_model(model)
    teacher = variables if teacher is None else teacher
    _, first = next(numbered(batches(), "solve_layers"))
    call = as_call(first, kwargs)
    plans = plan_layers(net, variables, *call, layers=layers, bits=bits, target=settings.target)
    plans = twice(net, variables, call, plans)
    for first, together in groups_of(net, variables, call, plans):
        left = together[max(start - first, 0) :]
        if not left:
            continue
        key = jax.random.fold_in(jax.random.key(settings.seed), first)
        done = {plan.layer for plan in plans[: first + len(together) - len(left)]}
        ahead = [plan.layer for plan in plans if plan.layer not in done]
        shared = Shared(net, variables, teacher, kwargs, settings, key, ahead)
        steps = solve_group(shared, left, batches, weights)
        for plan in left:
            try:
                variables, report = next(steps)
            except ValueError as error:
                raise ValueError(f"layer {plan.layer!r}: {error}") from error
            yield variables, report
