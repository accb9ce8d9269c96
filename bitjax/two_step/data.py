"""Collects the data that a layer is solved from: patches of its input, targets, second moments.

Inputs come from the network as it will be, quantized up to the layer. Targets come from a teacher
that sees the same images. This is the asymmetric form of Two-Step Quantization (Wang et al., CVPR
2018).
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from bitjax.frameworks.consumers import addend
from bitjax.program.patches import PatchView, draw_places, patch_view
from bitjax.frameworks.probe import probe
from bitjax.program.state import Seen
from bitjax.variables import read_site

Variables = Mapping[str, Any]


class Sums(NamedTuple):
    """Sums over patches x and targets z: N inputs and M filters in each of G groups."""

    count: Any  # patches
    x_GxN: Any  # sum of x
    z_GxM: Any  # sum of z
    xx_GxNxN: Any  # sum of x x^T
    zx_GxMxN: Any  # sum of z x^T
    zz_GxM: Any  # sum of z^2


class PatchMoments(NamedTuple):
    """Means over a group's patches, centred where there is an intercept; solvers read them."""

    gram_NxN: NDArray[np.float64]
    cross_MxN: NDArray[np.float64]
    energy_M: NDArray[np.float64]
    mean_N: NDArray[np.float64] | None
    target_mean_M: NDArray[np.float64] | None


class Sampler(NamedTuple):
    """Takes patches and targets of one layer."""

    view: PatchView  # the layer as a matrix
    # (variables, teacher's, args, key) -> x [G, T, N], z [G, T, M], owed as z or 0
    take: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


def sampler(
    model: nn.Module,
    teacher: nn.Module,
    layer: str,
    variables: Variables,
    args: tuple,
    *,
    per_example: int,
    added: bool = False,
) -> Sampler:
    """Patches of a layer's input in `model`, and the outputs of the same layer in `teacher`."""
    # The model's inputs are those that the layer computes with, after quantization. Both networks
    # are read at the same places, drawn anew for each key, `per_example` of each example.
    views: list[PatchView] = []

    def of_layer(function):
        def on_layer(seen: Seen):
            if seen.layer.name != layer:
                return None
            kernel = seen.tensors["kernel"]
            # A view reads the module's settings, which are only there during the call.
            view = patch_view(seen.layer, kernel.shape)
            views.append(view)
            positions = view.positions(seen.tensors["input"], seen.out)
            return function(view, seen, positions)

        return on_layer

    @jax.jit
    def take(variables, teacher_variables, args, key):
        def places(seen, positions):
            # A layer's input may have another leading axis than the model's: the examples of a call
            # are the rows of its own input, by which its positions are counted.
            return draw_places(key, len(seen.tensors["input"]), positions, per_example)

        def inputs(view, seen, positions):
            return {"x": view.patches(seen.tensors["input"], places(seen, positions))}

        def outputs(view, seen, positions):
            return {"z": view.outputs(seen.out, places(seen, positions))}

        found = []
        for net, tree, function in (
            (model, variables, inputs),
            (teacher, teacher_variables, outputs),
        ):
            records = probe(net, tree, args, {}, of_layer(function)).records
            found.append([leaf for _, record in records for leaf in record.values()])
        # A layer that is called several times has one kernel, so its calls are one set of patches.
        x, z = (jnp.concatenate(calls, axis=1) for calls in found)
        # The layer must also compensate the teacher's addend less the model's.
        owed = jnp.zeros((1, 1, 1))
        if added:
            owed = addend(teacher, teacher_variables, args, layer)
            owed -= addend(model, variables, args, layer)
            positions = owed.size // len(owed) // (z.shape[0] * z.shape[2])
            owed = view.outputs(owed, draw_places(key, len(owed), positions, per_example))
        return x, z, owed

    def trace(variables, args):
        seen = probe(model, variables, args, {}, of_layer(lambda *_: {"x": jnp.zeros(())}))
        return [record for _, record in seen.records]

    # Traced once before any batch is read, for `views` and for the errors.
    if not jax.eval_shape(trace, variables, args):
        raise ValueError(f"`layer` {layer!r} is no layer of the model.")
    view = views[0]
    if not _fits(view, read_site(variables["params"], layer)["kernel"]):
        raise ValueError(
            f"layer {layer!r} stands for the layers of a scan, which have no patches of their own: "
            "leave it out of `layers`."
        )
    return Sampler(view, take)


def _fits(view, kernel):
    """Whether the parameter is the kernel of one layer."""
    # A scanned layer is viewed from inside the scan, where its kernel lacks the leading axis that
    # the parameter has.
    try:
        return jax.eval_shape(view.matrix, kernel).ndim == 3
    except (TypeError, ValueError):
        return False


@jax.jit
def sums_of(x_GxTxN: jax.Array, z_GxTxM: jax.Array) -> Sums:
    """The sums of one batch, float32; psum merges them over devices."""
    # At full precision: centring subtracts large moments, and TF32 would leave only rounding.
    x, z = x_GxTxN.astype(jnp.float32), z_GxTxM.astype(jnp.float32)
    product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    return Sums(
        jnp.float32(x.shape[1]),
        x.sum(1),
        z.sum(1),
        product("gtn,gtk->gnk", x, x),
        product("gtm,gtn->gmn", z, x),
        (z * z).sum(1),
    )


def merge(one: Sums | None, other: Sums) -> Sums:
    """The sums of all batches so far and of one more, float64 on the host."""
    # In float64, so that adding thousands of batches adds no rounding.
    wide = Sums(*(np.asarray(leaf, np.float64) for leaf in other))
    return wide if one is None else Sums(*(a + b for a, b in zip(one, wide, strict=True)))


class Collected(NamedTuple):
    """A layer's patches and targets of all batches, or their sums."""

    count: int  # patches
    sums: Sums | None  # over all patches; None where they are fewer than the layer's inputs
    x_GxTxN: Any  # all patches, where they are wanted or too few for sums; else None
    z_GxTxM: Any  # the patches' targets, where the patches are kept; else None


def collect(pairs: Iterable[tuple[jax.Array, jax.Array]], *, resident: bool) -> Collected:
    """Sums over batches of (patches, targets), and the patches where `resident` asks for them."""
    # A Gram matrix is made once there are as many patches as inputs. Before that the patches are
    # smaller than it would be, and the solvers take them as they are: `waiting` holds them.
    sums, count, kept, waiting = None, 0, [], []
    for pair in pairs:
        count += pair[0].shape[1]
        waiting.append(pair)
        if resident:
            kept.append(pair)
        if count >= pair[0].shape[2]:
            for one in waiting:
                sums = merge(sums, sums_of(*one))
            waiting = []
    kept = kept or waiting
    if not kept:
        return Collected(count, sums, None, None)
    x, z = (jnp.concatenate(leaves, axis=1) for leaves in zip(*kept, strict=True))
    return Collected(count, sums, x, z)


def moments_of(sums: Sums, group: int, *, intercept: bool) -> PatchMoments:
    """Means of a group's sums, centred where there is an intercept."""
    n = sums.count
    x, z = sums.x_GxN[group] / n, sums.z_GxM[group] / n
    gram, cross, energy = (a[group] / n for a in (sums.xx_GxNxN, sums.zx_GxMxN, sums.zz_GxM))
    # An intercept that is free makes the centred moments all that a solver needs.
    if not intercept:
        return PatchMoments(gram, cross, energy, None, None)
    return PatchMoments(gram - np.outer(x, x), cross - np.outer(z, x), energy - z**2, x, z)
