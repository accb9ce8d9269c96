"""Solves low-bit kernels layer by layer from the outputs of a teacher's layers, without gradients.

This is the second step of Two-Step Quantization: Wang et al., "Two-Step Quantization for Low-bit
Neural Networks", CVPR 2018. Layers are solved in forward order; the inputs of each come from the
network as far as it is solved. The tree of variables keeps its form: the kernel becomes
scale * codes, the scale goes to the quantizer's leaf, the intercept to the layer's bias or to the
mean of the batch normalisation behind it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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
from bitjax.frameworks.leaves import read_leaf, write_leaf
from bitjax.frameworks.models import as_model
from bitjax.frameworks.targets import float_kernels, levels_of, plan_layers
from bitjax.two_step.data import collect, moments_of, sampler
from bitjax.two_step.fits import (
    SOLVE,
    GroupFit,
    SolveOptions,
    away_from_0,
    fit_behind,
    fit_group,
    fit_group_to_samples,
    start_of,
)
from bitjax.two_step.layer import Affine, layer_of
from bitjax.variables import QUANT, VARIABLES, as_call, read_site, site_name, write_site

Variables = Mapping[str, Any]


class Report(NamedTuple):
    """How well one layer was solved.

    Attributes:
      layer: path of the layer.
      target: `codes`, `relu`, `sum` or `output`; one of the last two if there were fewer patches
        than inputs.
      error: the linear fit's E (z - v)^2 over E (z - mean z)^2 of the layer's outputs.
      mismatch: share of the consumer's codes that differ from the teacher's on held-out patches;
        None for other targets than `codes`.
      sparsity: share of codes that are 0.
      patches: number of patches that the layer was solved from.
    """

    layer: str
    target: str
    error: float
    mismatch: float | None
    sparsity: float
    patches: int


@checked(
    variables=VARIABLES,
    batches=either(FUNCTION, BATCHES),
    kwargs=either(NONE, mapping()),
    bits=either(NONE, integer(1, 16)),
    layers=PATTERN,
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
    log: Callable[[Report], None] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Gives kernels low-bit codes with which each layer does what its float kernel does.

    Args:
      model: a wrapped model with kernels whose quantizer stores its scale, such as
        `bitjax.ternary(fit="stored")`, `binary` or `low_bit`; inputs may be quantized or not.
      variables: all collections of the model, with float kernels; of a function
        `{"params": its parameters}` and its state.
      batches: the model's inputs, arrays, tuples of arguments or `bitjax.Inputs`: a list, or a
        function that gives the same batches at every call.
      bits: the number of bits of the kernels to solve; None takes all with a stored scale.
      layers: a regular expression, matched in full against layers' paths.
      kwargs: keyword arguments of the model, the same for every batch.
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
    settings, kwargs = settings or SolveOptions(), dict(kwargs or {})
    net = as_model(model)
    teacher = variables if teacher is None else teacher
    _, first = next(numbered(batches(), "solve_layers"))
    call = as_call(first, kwargs)
    plans = plan_layers(net, variables, *call, layers=layers, bits=bits, target=settings.target)
    for index, plan in enumerate(plans[start:], start):
        key = jax.random.fold_in(jax.random.key(settings.seed), index)
        try:
            variables, report = _solve(
                net, variables, teacher, plan, batches, kwargs, settings, key
            )
        except ValueError as error:
            raise ValueError(f"layer {plan.layer!r}: {error}") from error
        yield variables, report


def _solve(model, variables, teacher, plan, batches, kwargs, settings, key):
    float_model = model.with_rules(() if settings.float_inputs else float_kernels(model.rules))
    source, tree = (model, variables) if settings.asymmetric else (float_model, teacher)
    first = as_call(next(iter(batches())), kwargs)
    added = plan.target == "sum" and settings.asymmetric
    layer = layer_of(float_model, teacher, *first, plan.layer)
    take = sampler(
        source, float_model, plan.layer, kwargs, per_example=settings.positions, added=added
    )
    float_GxMxN, affine = layer.matrix(teacher), layer.affine
    start_GxMxN, grid = start_of(plan.quantizer, float_GxMxN)
    groups, filters, _ = float_GxMxN.shape
    resident = plan.target in ("codes", "relu") and settings.iterations > 0

    def pairs():
        for index, batch in enumerate(batches()):
            one = jax.random.fold_in(key, index)
            x, z, owed = take(tree, teacher, as_call(batch), one)
            if added and affine is not None:
                z = z + owed / away_from_0(affine.gain_M).reshape(groups, 1, filters)
            yield x, z

    data = collect(pairs(), resident=resident)
    intercept = layer.slot is not None
    fits: list[GroupFit] = []
    for g in range(groups):
        own = None
        if affine is not None:
            own = Affine(*(leaf[g * filters : (g + 1) * filters] for leaf in affine))
        given = float_GxMxN[g], start_GxMxN[g], grid, settings
        if data.sums is None:
            x, z = data.x_GxTxN[g], data.z_GxTxM[g]
            fits.append(fit_group_to_samples(x, z, *given, intercept=intercept))
            continue
        moments = moments_of(data.sums, g, intercept=intercept)
        found = fit_group(moments, *given, jax.random.fold_in(key, g))
        if resident and own is not None:
            levels = levels_of(model.rules, variables, plan.consumer.site or "")
            found = fit_behind(
                found, data.x_GxTxN[g], data.z_GxTxM[g], own, levels, float_GxMxN[g], grid, settings
            )
        fits.append(found)
    mismatches = [found.mismatch for found in fits if found.mismatch is not None]
    report = Report(
        plan.layer,
        "output" if data.sums is None and plan.target != "sum" else plan.target,
        sum(f.error for f in fits) / max(sum(f.energy for f in fits), 1e-30),
        float(np.mean(mismatches)) if mismatches else None,
        float(np.mean([np.mean(np.asarray(f.fit.codes_MxN) == 0) for f in fits])),
        data.count,
    )
    changed = [found.fit for found in fits]
    return _with_fits(variables, teacher, layer, changed), report


def _with_fits(variables, teacher, layer, fits):
    codes, scale, offset = (
        np.stack([np.asarray(fit[i], np.float32) for fit in fits]) for i in range(3)
    )
    site = site_name(layer.name, "kernel")
    own = read_site(variables[QUANT], site)
    kernel, scales = (
        layer.view.kernel(jnp.asarray(matrix))
        for matrix in (scale[..., None] * codes, np.broadcast_to(scale[..., None], codes.shape))
    )
    dtype = read_leaf(variables, layer.path).dtype
    found = write_leaf(variables, layer.path, kernel.astype(dtype))
    if layer.slot is not None:
        old = read_leaf(teacher, layer.slot.path)
        found = write_leaf(found, layer.slot.path, layer.slot.written(old, offset))
    # A filter's scale is the same for all of its elements.
    shape = own["scale"].shape
    scales = scales[tuple(slice(None) if n > 1 else slice(0, 1) for n in shape)].reshape(shape)
    return {**found, QUANT: write_site(variables[QUANT], site, {**own, "scale": scales})}
