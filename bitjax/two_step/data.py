"""What a layer is solved from: patches of its input, its target there, and their second moments.

Inputs come from the network as it will be, quantized up to the layer; targets from a teacher that
sees the same images: the asymmetric form of Two-Step Quantization (Wang et al., CVPR 2018).
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

from bitjax.linen.consumers import addend
from bitjax.linen.patches import PatchView, draw_places, patch_view
from bitjax.linen.probe import Seen, probe
from bitjax.variables import read_site

Variables = Mapping[str, Any]


class Sums(NamedTuple):
    """Sums of second moments of patches x and targets z; N inputs, M filters in each of G groups.

    Attributes:
      count: patches.
      x_GxN: of x.
      z_GxM: of z.
      xx_GxNxN: of x x^T.
      zx_GxMxN: of z x^T.
      zz_GxM: of z^2.
    """

    count: Any
    x_GxN: Any
    z_GxM: Any
    xx_GxNxN: Any
    zx_GxMxN: Any
    zz_GxM: Any


class Moments(NamedTuple):
    """Means over patches of one group, centred where there is an intercept; what solvers take."""

    gram_NxN: NDArray[np.float64]
    cross_MxN: NDArray[np.float64]
    energy_M: NDArray[np.float64]
    mean_N: NDArray[np.float64] | None
    target_mean_M: NDArray[np.float64] | None


class Sampler(NamedTuple):
    """How patches and targets of one layer are taken.

    Attributes:
      view: of the layer.
      take: `(variables, teacher_variables, args, key) -> (x [G, T, N], z [G, T, M], owed)`,
        compiled; `owed`, as z, is what the model's addend falls short of the teacher's, or 0.
    """

    view: PatchView
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
    """Patches of a layer's input in `model`, and the outputs of the same layer in `teacher`.

    Args:
      model: whose inputs are taken, as the layer computes with them, quantized.
      teacher: whose outputs are the target; of the same sites.
      layer: path of a layer that both have.
      variables: of the model, or their shapes.
      args: what the models are called with, or shapes.
      per_example: patches of an example, at places drawn by the key.
      added: whether to look at what the layer's output is added to.

    Raises:
      ValueError: there is no such layer, it has no patches, or it has a leading axis of a scan.
    """
    views: list[PatchView] = []

    def of_layer(function):
        def on_layer(seen: Seen):
            if seen.layer.name != layer:
                return None
            kernel = seen.tensors["kernel"]
            view = patch_view(seen.layer, kernel.shape)
            views.append(view)
            positions = view.positions(seen.tensors["input"], seen.out)
            return function(view, seen, positions)

        return on_layer

    def run(variables, teacher_variables, args, key):
        def places(seen, positions):
            # A call's examples are what its input has of them: positions were counted per row.
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
        x, z = (jnp.concatenate(calls, axis=1) for calls in found)
        owed = jnp.zeros((1, 1, 1))
        if added:
            owed = addend(teacher, teacher_variables, args, layer)
            owed -= addend(model, variables, args, layer)
            positions = owed.size // len(owed) // (z.shape[0] * z.shape[2])
            owed = view.outputs(owed, draw_places(key, len(owed), positions, per_example))
        return x, z, owed

    @functools.partial(jax.jit)
    def take(variables, teacher_variables, args, key):
        return run(variables, teacher_variables, args, key)

    def trace(variables, args):
        seen = probe(model, variables, args, {}, of_layer(lambda *_: {"x": jnp.zeros(())}))
        return [record for _, record in seen.records]

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
    try:
        return jax.eval_shape(view.matrix, kernel).ndim == 3
    except (TypeError, ValueError):
        return False


@jax.jit
def sums_of(x_GxTxN: jax.Array, z_GxTxM: jax.Array) -> Sums:
    """The sums of one batch, float32 products at full precision; psum merges them over devices.

    Example:
      >>> sums = sums_of(jnp.ones((1, 4, 2)), jnp.ones((1, 4, 3)))
      >>> sums.count, sums.xx_GxNxN.tolist()
      (Array(4., dtype=float32), [[[4.0, 4.0], [4.0, 4.0]]])
    """
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
    """Two batches' sums added, in float64 on the host."""
    wide = Sums(*(np.asarray(leaf, np.float64) for leaf in other))
    return wide if one is None else Sums(*(a + b for a, b in zip(one, wide, strict=True)))


class Collected(NamedTuple):
    """What a layer's batches came to.

    Attributes:
      count: patches.
      sums: over all of them; None where they are fewer than the layer's inputs.
      x_GxTxN: all patches, where they are wanted or too few for sums; else None.
      z_GxTxM: their targets; likewise.
    """

    count: int
    sums: Sums | None
    x_GxTxN: Any
    z_GxTxM: Any


def collect(pairs: Iterable[tuple[jax.Array, jax.Array]], *, resident: bool) -> Collected:
    """Sums over batches of patches and targets, and the patches themselves where they are wanted.

    A Gram matrix is made once there are as many patches as inputs: before that the patches are
    smaller than it is, and solvers take them as they are.

    Args:
      pairs: (x [G, T, N], z [G, T, M]) of one batch after the other, at least one.
      resident: whether patches are kept all the same.

    Example:
      >>> few = collect([(jnp.ones((1, 4, 8)), jnp.ones((1, 4, 3)))], resident=False)
      >>> few.sums is None, few.x_GxTxN.shape
      (True, (1, 4, 8))
    """
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


def moments_of(sums: Sums, group: int, *, intercept: bool) -> Moments:
    """Means of a group's sums; centred with an intercept, which then needs no part in a solver.

    Example:
      >>> sums = merge(None, sums_of(jnp.array([[[1.0], [3.0]]]), jnp.array([[[0.0], [2.0]]])))
      >>> found = moments_of(sums, 0, intercept=True)
      >>> found.gram_NxN.item(), found.cross_MxN.item(), found.mean_N.item()
      (1.0, 1.0, 2.0)
    """
    n = sums.count
    x, z = sums.x_GxN[group] / n, sums.z_GxM[group] / n
    gram, cross, energy = (a[group] / n for a in (sums.xx_GxNxN, sums.zx_GxMxN, sums.zz_GxM))
    if not intercept:
        return Moments(gram, cross, energy, None, None)
    return Moments(gram - np.outer(x, x), cross - np.outer(z, x), energy - z**2, x, z)
