"""A product as a matrix: every output is a product of the kernel with a patch of the input.

What is a patch follows from the traced equation's own dimension numbers, whatever wrote it.
Patches are taken at random positions of every example: a solver needs only a layer's second
moments, and a sample is enough to estimate them.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class PatchView(NamedTuple):
    """Turns one product's tensors into matrices: N inputs and M filters in each of G groups."""

    # x is the other operand as the equation reads it. `out` is what the equation gives, or a
    # reshaped or cast copy. Both may have another number of examples than the view was made of.
    groups: int
    # (x, places) -> [G, T, N], the patches at T places
    patches: Callable[[jax.Array, jax.Array], jax.Array]
    outputs: Callable[[Any, Any], Any]  # (out, places) -> [G, T, M]
    matrix: Callable[[Any], Any]  # kernel -> [G, M, N]
    kernel: Callable[[Any], Any]  # the inverse of `matrix`
    positions: Callable[[jax.Array, jax.Array], int]  # (x, out) -> positions of an example
    places: Callable[[jax.Array], int]  # out -> positions of all examples


class Moves(NamedTuple):
    """A parameter as the operand of a product, with the same elements elsewhere, and back."""

    forward: Callable[[Any], Any]  # parameter -> operand
    back: Callable[[Any], Any]  # operand -> parameter


def patch_view(
    layer: str,
    primitive: str,
    params: Mapping[str, Any],
    lhs: Any,
    rhs: Any,
    which: int,
    moves: Moves | None = None,
) -> PatchView:
    """The view of an equation whose operand `which` is the kernel, or is moved from it.

    `lhs` and `rhs` are the operands or their avals, `params` the equation's parameters. A
    ValueError names a layer whose product has no patches.
    """
    if primitive == "dot_general":
        view = _product(params, lhs, rhs, which)
    elif primitive == "conv_general_dilated":
        view = _convolution(layer, params, lhs, rhs, which)
    else:
        raise _no_patches(layer, f"({primitive}) is no plain product or convolution")
    if moves is None:
        return view
    return view._replace(
        matrix=lambda parameter: view.matrix(moves.forward(parameter)),
        kernel=lambda matrix: moves.back(view.kernel(matrix)),
    )


def moves_of(layer: str, forward: Callable[[Any], Any], parameter: Any) -> Moves:
    """How `forward` moves the elements of a parameter, an array or an aval, and the way back.

    `forward` may reshape, transpose, reverse and cast. The moves cast nothing, so that a solved
    kernel stays on its codes. A ValueError names a layer whose operand is anything else than the
    parameter's elements in an order, such as a masked or a concatenated kernel.
    """
    size = math.prod(parameter.shape)
    # Every element carries its number: from 1, as a mask makes 0, and by digits of 8 bits, as a
    # cast to bfloat16 keeps no more.
    number = np.arange(1, size + 1, dtype=np.int32).reshape(parameter.shape)
    found, shape = np.zeros(()), ()
    # Also during a trace the numbers are wanted now.
    with jax.ensure_compile_time_eval():
        for shift in range(0, size.bit_length(), 8):
            moved = forward(jnp.asarray((number >> shift) & 255, parameter.dtype))
            found, shape = found + np.asarray(moved, np.float64) * 2.0**shift, moved.shape
    there, back = found.reshape(-1), np.zeros(size, np.int32)
    inside = there.size == size and ((there >= 1) & (there <= size)).all()
    if inside:
        back[there.astype(np.int32) - 1] = np.arange(size)
    if not inside or not np.array_equal(there[back], number.reshape(-1)):
        raise _no_patches(layer, "computes with other elements than its parameter's")
    order = there.astype(np.int32) - 1
    if np.array_equal(order, np.arange(size)):
        return Moves(lambda array: array.reshape(shape), lambda array: array.reshape(number.shape))
    return Moves(
        lambda array: array.reshape(-1)[order].reshape(shape),
        lambda array: array.reshape(-1)[back].reshape(number.shape),
    )


def draw_places(key: jax.Array, examples: int, positions: int, per_example: int) -> jax.Array:
    """Flat places `example * positions + position`, `per_example` of each and no one twice."""
    if per_example >= positions:
        return jnp.arange(examples * positions)
    keys = jax.random.split(key, examples)
    draw = jax.vmap(lambda k: jax.random.choice(k, positions, (per_example,), replace=False))
    return (draw(keys) + positions * jnp.arange(examples)[:, None]).reshape(-1)


def _no_patches(layer, why):
    return ValueError(
        f"layer {layer!r} {why}, so it has no patches to be solved from: leave it out of `layers`."
    )


def _product(params, lhs, rhs, which):
    contract, batch = params["dimension_numbers"]
    shape = (lhs, rhs)[which].shape
    # Inputs in the kernel's order, so that a matrix is the kernel as it lies wherever it can be.
    pairs = sorted(zip(contract[which], contract[1 - which], strict=True))
    kernel_in, x_in = [k for k, _ in pairs], [x for _, x in pairs]
    kernel_out = [a for a in range(len(shape)) if a not in (*kernel_in, *batch[which])]
    x_rank = len((lhs, rhs)[1 - which].shape)
    places_axes = [a for a in range(x_rank) if a not in (*x_in, *batch[1 - which])]
    axes = (*batch[which], *kernel_out, *kernel_in)
    groups, filters, inputs = (
        math.prod(shape[a] for a in part) for part in (batch[which], kernel_out, kernel_in)
    )

    def patches(x, places):
        x = x.transpose(*batch[1 - which], *places_axes, *x_in)
        return x.reshape(groups, -1, inputs)[:, places]

    def outputs(out, places):
        if which == 1:
            return out.reshape(groups, -1, filters)[:, places]
        return out.reshape(groups, filters, -1)[:, :, places].swapaxes(1, 2)

    def positions(x, out):
        examples = x.shape[places_axes[0]] if places_axes else 1
        return out.size // (groups * filters) // examples

    return PatchView(
        groups,
        patches,
        outputs,
        lambda kernel: kernel.transpose(axes).reshape(groups, filters, inputs),
        lambda matrix: _restored(matrix, shape, axes),
        positions,
        lambda out: out.size // (groups * filters),
    )


def _convolution(layer, params, lhs, rhs, which):
    if which == 0:
        raise _no_patches(layer, "moves its input over its kernel")
    if any(n != 1 for n in params["lhs_dilation"]):
        raise _no_patches(layer, "dilates its input, as a transposed convolution does")
    if params["batch_group_count"] != 1:
        raise _no_patches(layer, "splits its examples into groups")
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    strides, dilation = params["window_strides"], params["rhs_dilation"]
    out_axis, in_axis, *window_axes = numbers.rhs_spec
    filters, inputs = rhs.shape[out_axis], rhs.shape[in_axis]
    window = [rhs.shape[a] for a in window_axes]
    span = [(n - 1) * d + 1 for n, d in zip(window, dilation, strict=True)]
    padded = [
        lhs.shape[a] + low + high
        for a, (low, high) in zip(numbers.lhs_spec[2:], params["padding"], strict=True)
    ]
    sizes = [(n - s) // t + 1 for n, s, t in zip(padded, span, strides, strict=True)]
    # The number of examples is free.
    out_shape = [
        size for _, size in sorted(zip(numbers.out_spec, (-1, filters, *sizes), strict=True))
    ]

    def patches(x, places):
        x = x.transpose(_channels_last(numbers.lhs_spec))
        pads = [(0, 0, 0), *((low, high, 0) for low, high in params["padding"]), (0, 0, 0)]
        x = lax.pad(x, jnp.zeros((), x.dtype), pads)
        example, *index = jnp.unravel_index(places, (len(x), *sizes))

        def one(example, *index):
            start = (example, *(i * t for i, t in zip(index, strides, strict=True)), 0)
            cut = lax.dynamic_slice(x, start, (1, *span, x.shape[-1]))[0]
            cut = cut[tuple(slice(None, None, d) for d in dilation)]
            return cut.reshape(-1, groups, inputs).swapaxes(0, 1).reshape(groups, -1)

        return jax.vmap(one, out_axes=1)(example, *index)

    def outputs(out, places):
        out = out.reshape(out_shape).transpose(_channels_last(numbers.out_spec))
        return out.reshape(-1, groups, filters // groups)[places].swapaxes(0, 1)

    axes = (out_axis, *window_axes, in_axis)
    return PatchView(
        groups,
        patches,
        outputs,
        lambda kernel: kernel.transpose(axes).reshape(groups, filters // groups, -1),
        lambda matrix: _restored(matrix, rhs.shape, axes),
        lambda x, out: out.size // filters // x.shape[numbers.lhs_spec[0]],
        lambda out: out.size // filters,
    )


def _channels_last(spec):
    batch, channels, *spatial = spec
    return (batch, *spatial, channels)


def _restored(matrix, shape, axes):
    """The array of which `matrix` is a reshaped transpose by `axes`."""
    return matrix.reshape([shape[a] for a in axes]).transpose(np.argsort(axes))
