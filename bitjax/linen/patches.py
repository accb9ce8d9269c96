"""A layer as a matrix: every output is a product of the kernel with a patch of the input.

Patches are taken at random positions of every example: a solver needs only a layer's second
moments, and a sample is enough to estimate them.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bitjax.linen.visit import Layer


class PatchView(NamedTuple):
    """Turns one layer's tensors into matrices: N inputs and M filters in each of G groups."""

    groups: int
    # (x, places) -> [G, T, N], the patches at T places
    patches: Callable[[jax.Array, jax.Array], jax.Array]
    outputs: Callable[[jax.Array, jax.Array], jax.Array]  # (out, places) -> [G, T, M]
    matrix: Callable[[Any], Any]  # kernel -> [G, M, N]
    kernel: Callable[[Any], Any]  # the inverse of `matrix`
    positions: Callable[[jax.Array, jax.Array], int]  # (x, out) -> positions of an example


def patch_view(layer: Layer, kernel_shape: tuple[int, ...]) -> PatchView:
    """The view of a layer during its call; a ValueError names a layer that has no patches."""
    # Dense, DenseGeneral (attention's projections) and Conv of any stride, dilation, zero padding
    # and number of groups have patches.
    module = layer.module
    if type(module) is nn.Conv:
        return _convolution(layer, module, kernel_shape)
    if isinstance(module, nn.Dense | nn.DenseGeneral) and not getattr(module, "batch_dims", ()):
        return _product(module, kernel_shape)
    raise ValueError(
        f"layer {layer.name!r} ({layer.kind}) is no plain product or convolution, so it has no "
        "patches to be solved from: leave it out of `layers`."
    )


def draw_places(key: jax.Array, examples: int, positions: int, per_example: int) -> jax.Array:
    """Flat places `example * positions + position`, `per_example` of each and no one twice."""
    if per_example >= positions:
        return jnp.arange(examples * positions)
    keys = jax.random.split(key, examples)
    draw = jax.vmap(lambda k: jax.random.choice(k, positions, (per_example,), replace=False))
    return (draw(keys) + positions * jnp.arange(examples)[:, None]).reshape(-1)


def _product(module, shape):
    general = isinstance(module, nn.DenseGeneral)
    many = general and isinstance(module.features, tuple | list)
    outs = len(module.features) if many else 1
    size = math.prod(shape[-outs:])
    inputs = math.prod(shape[:-outs])
    axis = module.axis if general else -1
    axes: tuple[int, ...] = (axis,) if isinstance(axis, int) else tuple(axis)

    def rows(x):
        last = tuple(range(x.ndim - len(axes), x.ndim))
        return jnp.moveaxis(x, axes, last).reshape(-1, inputs)

    return PatchView(
        groups=1,
        patches=lambda x, places: rows(x)[places][None],
        outputs=lambda out, places: out.reshape(-1, size)[places][None],
        matrix=lambda kernel: kernel.reshape(inputs, size).T[None],
        kernel=lambda matrix: matrix[0].T.reshape(shape),
        positions=lambda x, out: out.size // size // len(x),
    )


def _convolution(layer, module, shape):
    *window, inputs, filters = shape
    rank, groups = len(window), module.feature_group_count
    if any(n != 1 for n in _per_axis(module.input_dilation, rank)) or module.mask is not None:
        raise ValueError(
            f"layer {layer.name!r} (Conv) dilates its input or masks its kernel, so it has no "
            "patches to be solved from: leave it out of `layers`."
        )
    strides = _per_axis(module.strides, rank)
    dilation = _per_axis(module.kernel_dilation, rank)
    span = [(n - 1) * d + 1 for n, d in zip(window, dilation, strict=True)]

    def patches(x, places):
        x = x.reshape(-1, *x.shape[-rank - 1 :])
        pads = _padding(layer, module.padding, x.shape[1:-1], span, strides)
        padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        sizes = [
            (n - s) // t + 1 for n, s, t in zip(padded.shape[1:-1], span, strides, strict=True)
        ]
        example, *index = jnp.unravel_index(places, (len(x), *sizes))

        def one(example, *index):
            start = (example, *(i * t for i, t in zip(index, strides, strict=True)), 0)
            cut = jax.lax.dynamic_slice(padded, start, (1, *span, x.shape[-1]))[0]
            cut = cut[tuple(slice(None, None, d) for d in dilation)]
            cut = cut.reshape(-1, groups, inputs)
            return jnp.moveaxis(cut, 1, 0).reshape(groups, -1)

        return jnp.moveaxis(jax.vmap(one)(example, *index), 1, 0)

    def outputs(out, places):
        return jnp.moveaxis(out.reshape(-1, groups, filters // groups)[places], 1, 0)

    def matrix(kernel):
        return kernel.reshape(-1, groups, filters // groups).transpose(1, 2, 0)

    return PatchView(
        groups,
        patches,
        outputs,
        matrix,
        lambda matrix: matrix.transpose(2, 0, 1).reshape(shape),
        lambda x, out: out.size // filters // len(x),
    )


def _per_axis(value, rank):
    if value is None:
        return (1,) * rank
    return (value,) * rank if isinstance(value, int) else tuple(value)


def _padding(layer, padding, sizes, span, strides):
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID", "SAME_LOWER"):
            raise ValueError(
                f"layer {layer.name!r} (Conv) pads by {padding!r}, of which no patches are known: "
                "leave it out of `layers`."
            )
        return jax.lax.padtype_to_pads(sizes, span, strides, padding)
    pairs = [padding] * len(sizes) if isinstance(padding, int) else padding
    return [(int(np.ravel(p)[0]), int(np.ravel(p)[-1])) for p in pairs]
