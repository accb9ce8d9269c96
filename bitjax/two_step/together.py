"""Solves the layers that read one input, from one pass over the batches.

Queries, keys and values read one array, say. They share its forward pass and its second moments.
The steps are those of Two-Step Quantization: Wang et al., CVPR 2018.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.frameworks.leaves import read_leaf, write_leaf
from bitjax.frameworks.probe import ask_outside
from bitjax.frameworks.targets import Plan, float_at, float_kernels, levels_of
from bitjax.program.consumers import addend_of, layers_behind
from bitjax.program.layers import places_of
from bitjax.program.program import Program
from bitjax.rules import Rules, quantizer_of
from bitjax.two_step.data import sampler
from bitjax.two_step.fits import (
    GroupFit,
    SolveOptions,
    away_from_0,
    fit_behind,
    fit_group,
    fit_group_to_samples,
)
from bitjax.two_step.layer import Affine, Layer, layer_of
from bitjax.two_step.moments import Collected, collect, moments_of, part_of
from bitjax.two_step.starts import Problem, grid_of, is_judged, rounded, start_of
from bitjax.variables import QUANT, Inputs, as_call, read_site, site_name, write_site

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


class Shared(NamedTuple):
    """What the layers of a group are solved with."""

    model: Any
    variables: Variables
    teacher: Variables
    kwargs: Mapping[str, Any]
    settings: SolveOptions
    key: jax.Array
    ahead: Sequence[str]  # the layers of this group and behind, which are not solved yet


def groups_of(
    model: Any, variables: Variables, inputs: Inputs, plans: Sequence[Plan]
) -> list[tuple[int, list[Plan]]]:
    """The plans in groups of one input each, with the index of each group's first one."""
    # Only plain products in a row that are solved for their own outputs, of an input that no
    # quantizer changes.
    _, asked = ask_outside(model, variables, *inputs)
    found: list[tuple[int, list[Plan]]] = []
    last = None
    for index, plan in enumerate(plans):
        key = _input_of(asked.call.program, plan, model.rules)
        if key is not None and key == last:
            found[-1][1].append(plan)
        else:
            found.append((index, [plan]))
        last = key
    return found


def twice(model: Any, variables: Variables, inputs: Inputs, plans: Sequence[Plan]) -> list[Plan]:
    """The plans, with layers once more whose sum has an addend that is solved after them."""
    # A projection in a shortcut is solved for the sum that the branch beside it has left, and the
    # branch's last layer then for what the projection has left.
    program = ask_outside(model, variables, *inputs)[1].call.program
    after: dict[int, list[Plan]] = {}
    for index, plan in enumerate(plans):
        if plan.target == "sum":
            behind = layers_behind(program, addend_of(program, plan.layer))
            later = [i for i, p in enumerate(plans) if i > index and p.layer in behind]
            if later:
                after.setdefault(later[-1], []).append(plan)
    return [one for i, plan in enumerate(plans) for one in (plan, *after.get(i, ()))]


def _input_of(program: Program, plan: Plan, rules: Rules) -> Any:
    """What tells the input of a plain product apart; None of another layer."""
    if plan.target != "output":
        return None
    place, *others = places_of(program, plan.layer)
    if others or place.outer or place.op.name != "dot_general":
        return None
    which = 1 - place.position
    operand = place.product.operands.get(which)
    if operand is None or quantizer_of(rules, operand.site.name) is not None:
        return None
    contracted, batched = place.op.eqn.params["dimension_numbers"]
    return place.op.ins[which], which, tuple(contracted[which]), tuple(batched[which])


def solve_group(
    shared: Shared,
    plans: Sequence[Plan],
    batches: Callable[[], Iterable[Any]],
    weights: Callable[[], Iterable[Any]] | None,
) -> Iterator[tuple[Variables, Report]]:
    """The variables after each of the layers, with its report."""
    model, variables, teacher, kwargs, settings, *_ = shared
    float_model = model.with_rules(() if settings.float_inputs else float_kernels(model.rules))
    first = as_call(next(iter(batches())), kwargs)
    layers = [layer_of(float_model, teacher, *first, plan.layer) for plan in plans]
    kernels = [layer.matrix(teacher) for layer in layers]
    if weights is not None and _resident(plans[0], settings):
        raise ValueError(
            f"`weights` do not go with the target {plans[0].target!r}, which is fitted to patches "
            "themselves: give target='sum' or 'output'."
        )
    given = zip(batches(), weights() if weights else itertools.repeat(None), strict=False)
    data = _collected(shared, float_model, plans, layers, kernels, given)
    at = 0
    for plan, layer, float_GxMxN in zip(plans, layers, kernels, strict=True):
        own = slice(at, at := at + float_GxMxN.shape[1])
        variables, report = _solved(
            shared._replace(variables=variables), plan, layer, float_GxMxN, _part(data, own)
        )
        yield variables, report


def _part(data: Collected, own: slice) -> Collected:
    """A layer's part of the group's data."""
    return data._replace(
        sums=None if data.sums is None else part_of(data.sums, own),
        held=None if data.held is None else part_of(data.held, own),
        z_GxTxM=None if data.z_GxTxM is None else data.z_GxTxM[..., own],
    )


def _resident(plan: Plan, settings: SolveOptions) -> bool:
    """Whether a layer is solved from its patches as they are, too."""
    return plan.target in ("codes", "relu") and settings.iterations > 0


def _collected(shared: Shared, float_model, plans, layers, kernels, given) -> Collected:
    """The patches of the input, or their sums, with the targets of all layers."""
    model, variables, teacher, kwargs, settings, key, ahead = shared
    source, tree = (model, variables) if settings.asymmetric else (float_model, teacher)
    resident = _resident(plans[0], settings)
    lost = settings.correction if settings.asymmetric else 1.0
    beside = None
    if plans[0].target == "sum" and settings.asymmetric and lost > 0:
        # What is not solved yet will not lose what its rounded kernel does: a projection, say.
        beside = model.with_rules(float_at(model.rules, ahead))
    groups, filters, _ = kernels[0].shape
    biases = [layer.bias(teacher) for layer in layers]
    take = sampler(
        source, float_model if lost > 0 else None, [plan.layer for plan in plans], kwargs,
        per_example=settings.positions, beside=beside,
    )  # fmt: skip

    def taken():
        for index, (batch, weights) in enumerate(given):
            weights = None if weights is None else jnp.asarray(weights)
            one = jax.random.fold_in(key, index)
            found = take(tree, teacher, as_call(batch), weights, one)
            x, targets = found.x_GxTxN, found.z_GxTxM
            if beside is not None:
                owed, affine = found.owed_GxTxM, layers[0].affine
                if affine is not None:
                    owed = owed / away_from_0(affine.gain_M).reshape(groups, 1, filters)
                    targets = [targets[0] + owed]
            if lost < 1:
                own = [_outputs(x, w, b) for w, b in zip(kernels, biases, strict=True)]
                pairs = zip(targets or own, own, strict=True)
                targets = [z + (1 - lost) * (o - z) for z, o in pairs]
            yield x, jnp.concatenate(targets, axis=2), found.weight_T

    kept = {"resident": resident, "judged": is_judged(settings.start)}
    return collect(taken(), **kept, summed=settings.max_sweeps == 0)


def _outputs(x_GxTxN, kernel_GxMxN, bias_GxM):
    """What a float kernel gives for the input as it is."""
    kernel, bias = (jnp.asarray(a, jnp.float32) for a in (kernel_GxMxN, bias_GxM))
    out = jnp.einsum("gtn,gmn->gtm", x_GxTxN, kernel, precision=jax.lax.Precision.HIGHEST)
    return out + bias[:, None]


def _solved(shared: Shared, plan: Plan, layer: Layer, float_GxMxN, data: Collected):
    """The variables with one layer solved, and its report."""
    model, variables, teacher, _, settings, key, _ = shared
    bits = np.max(read_site(variables[QUANT], site_name(plan.layer, "kernel"))["bits"])
    grid, affine = grid_of(plan.quantizer, bits), layer.affine
    groups, filters, _ = float_GxMxN.shape
    intercept = layer.slot is not None
    fits: list[GroupFit] = []
    for g in range(groups):
        problem = Problem(plan.quantizer, float_GxMxN[g], grid, settings)
        if data.sums is None:
            start = rounded(plan.quantizer, float_GxMxN[g], grid).codes_MxN
            given = data.x_GxTxN[g], data.z_GxTxM[g], float_GxMxN[g], start, grid, settings
            fits.append(fit_group_to_samples(*given, intercept=intercept))
            continue
        moments = moments_of(data.sums, g, intercept=intercept)
        start = start_of(problem, data.sums, data.held, g, intercept)
        found = fit_group(
            moments, float_GxMxN[g], start, grid, settings, jax.random.fold_in(key, g)
        )
        if _resident(plan, settings) and affine is not None:
            levels = levels_of(model.rules, variables, plan.consumer.site or "")
            own = Affine(*(leaf[g * filters : (g + 1) * filters] for leaf in affine))
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
    return _with_fits(variables, teacher, layer, [found.fit for found in fits]), report


def _with_fits(variables, teacher, layer, fits):
    codes, scale, offset = (
        np.stack([np.asarray(fit[i], np.float32) for fit in fits]) for i in range(3)
    )
    site = site_name(layer.name, "kernel")
    own = read_site(variables[QUANT], site)
    kernel, scales = (
        layer.view.kernel(matrix)
        for matrix in (scale[..., None] * codes, np.broadcast_to(scale[..., None], codes.shape))
    )
    dtype = read_leaf(variables, layer.path).dtype
    found = write_leaf(variables, layer.path, jax.device_put(kernel.astype(dtype)))
    if layer.slot is not None:
        old = read_leaf(teacher, layer.slot.path)
        found = write_leaf(found, layer.slot.path, layer.slot.written(old, offset))
    # A filter's scale is the same for all of its elements.
    shape = own["scale"].shape
    scales = scales[tuple(slice(None) if n > 1 else slice(0, 1) for n in shape)].reshape(shape)
    return {
        **found,
        QUANT: write_site(variables[QUANT], site, {**own, "scale": jax.device_put(scales)}),
    }
