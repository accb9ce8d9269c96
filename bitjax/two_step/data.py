"""Collects the data that a layer is solved from: patches of its input, targets, second moments.

Inputs come from the network as it will be, quantized up to the layer. Targets come from a teacher
that sees the same images. This is the asymmetric form of Two-Step Quantization (Wang et al., CVPR
2018).
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from bitjax.frameworks.call import run
from bitjax.frameworks.probe import ask_outside, probe
from bitjax.program.consumers import addend_of
from bitjax.program.layers import giving, places_of, view_of
from bitjax.program.patches import draw_places
from bitjax.program.state import Seen
from bitjax.variables import as_call

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


# (variables, teacher's, inputs, key) -> x [G, T, N], z [G, T, M], owed as z or 0
Take = Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


def sampler(
    model: Any,
    teacher: Any,
    layer: str,
    kwargs: Mapping[str, Any],
    *,
    per_example: int,
    added: bool = False,
) -> Take:
    """Patches of a layer's input in `model`, and the outputs of the same layer in `teacher`."""
    # The model's inputs are those that the layer computes with, after quantization. Both networks
    # are read at the same places, drawn anew for each key, `per_example` of each example.

    def drawn(view, x, out, key):
        positions = view.positions(x, out)
        examples = view.places(out) // positions
        return draw_places(key, examples, positions, per_example)

    def read(net, variables, inputs, key, function):
        call = as_call(inputs, kwargs)
        _, asked = ask_outside(net, variables, *call)
        # By identity: a layer that is called several times has as many products.
        views = {id(p.product): view_of(p) for p in places_of(asked.call.program, layer)}

        def watch(seen: Seen):
            view = views.get(id(seen.product))
            if view is None:
                return None
            return function(view, seen, drawn(view, seen.tensors["input"], seen.out, key))

        records = probe(net, variables, *call, watch).records
        # Its calls have one kernel, so they are one set of patches.
        return jnp.concatenate([record for _, record in records], axis=1)

    @jax.jit
    def take(variables, teacher_variables, given, key):
        def inputs(view, seen, places):
            return view.patches(seen.tensors["input"], places)

        def outputs(view, seen, places):
            return view.outputs(seen.out, places)

        x = read(model, variables, given, key, inputs)
        z = read(teacher, teacher_variables, given, key, outputs)
        if not added:
            return x, z, jnp.zeros((1, 1, 1))

        # The layer must also compensate the teacher's addend less the model's.
        call = as_call(given, kwargs)
        owed = addend(teacher, teacher_variables, *call, layer)
        owed -= addend(model, variables, *call, layer)

        def owes(view, seen, places):
            return view.outputs(owed, places)

        return x, z, read(teacher, teacher_variables, given, key, owes)

    return take


def addend(
    model: Any, variables: Variables, args: tuple, kwargs: Mapping[str, Any], layer: str
) -> jax.Array:
    """The array that a layer's normalised output is added to: a residual block's shortcut."""
    net, asked = ask_outside(model, variables, args, kwargs)
    # Only the addend is asked for, and dead code is dropped when this is compiled.
    program = giving(asked.call.program, [addend_of(asked.call.program, layer)])
    call = asked.call._replace(program=program, out=jax.tree.structure((0, {})))
    return run(net, asked._replace(call=call), variables).out


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
