"""Collects the data that layers are solved from: patches of their input, and targets.

Inputs come from the network as it will be, quantized up to the layer. Targets come from a teacher
that sees the same batches. This is the asymmetric form of Two-Step Quantization (Wang et al., CVPR
2018).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bitjax.frameworks.call import run
from bitjax.frameworks.compiled import compile_quickly, jit_arrays
from bitjax.frameworks.probe import ask_outside, probe
from bitjax.program.consumers import addend_of
from bitjax.program.layers import giving, places_of, view_of
from bitjax.program.patches import draw_places
from bitjax.program.state import Seen
from bitjax.variables import as_call

Variables = Mapping[str, Any]


class Taken(NamedTuple):
    """A batch's patches, which all layers of a group read, and these layers' targets."""

    x_GxTxN: jax.Array
    z_GxTxM: list[jax.Array]  # one of each layer
    owed_GxTxM: jax.Array | None  # what the sum behind the only layer has lost so far
    weight_T: jax.Array | None  # how much a patch counts; None counts all alike


# (variables, teacher's, inputs, weights or None, key) -> `Taken`
Take = Callable[..., Taken]


def sampler(
    model: Any,
    teacher: Any,
    layers: Sequence[str],
    kwargs: Mapping[str, Any],
    *,
    per_example: int,
    beside: Any = None,
) -> Take:
    """Patches of the layers' input in `model`, and the outputs of the same layers in `teacher`.

    Without a teacher there are no outputs. With `beside`, a model of the same variables, there is
    what the sum behind the only layer lacks if that model gives its other addend.
    """
    # The model's inputs are those that the layers compute with, after quantization; several layers
    # read the same. Both networks are read at the same places, drawn anew for each key,
    # `per_example` of each example. `kwargs` are those of all batches, beside those of `inputs`.

    def take(variables, teacher_variables, inputs, weights, key):
        call = as_call(inputs, kwargs)
        return jit_arrays(
            _taken, variables, teacher_variables, call, weights, key,
            static=(model, teacher, tuple(layers), per_example, beside),
            **compile_quickly(exact=True),
        )  # fmt: skip

    return take


def _taken(model, teacher, layers, per_example, beside, variables, given, inputs, weights, key):
    """What `sampler` takes; `given` are the teacher's variables."""
    args, kwargs = inputs

    def read(net, variables, names, function):
        _, asked = ask_outside(net, variables, args, kwargs)
        # By identity: a layer that is called several times has as many products.
        views = {id(p.product): view_of(p) for n in names for p in places_of(asked.call.program, n)}

        def watch(seen: Seen):
            view = views.get(id(seen.product))
            if view is None:
                return None
            x, out = seen.tensors["input"], seen.out
            positions, count = view.positions(x, out), view.places(out)
            places = draw_places(key, count // positions, positions, per_example)
            return function(view, seen, places)

        return probe(net, variables, args, kwargs, watch).records

    def joined(records, layer, axis=1):
        # Its calls have one kernel, so they are one set of patches.
        return jnp.concatenate([record for name, record in records if name == layer], axis)

    def patches(view, seen, places):
        return view.patches(seen.tensors["input"], places)

    def outputs(view, seen, places):
        return view.outputs(seen.out, places)

    def weighed(view, seen, places):
        return _weights_at(weights, view.places(seen.out), places)

    first, *_ = layers
    x = joined(read(model, variables, [first], patches), first)
    z = []
    if teacher is not None:
        wanted = read(teacher, given, layers, outputs)
        z = [joined(wanted, layer) for layer in layers]
    weight = owed = None
    if weights is not None:
        weight = joined(read(model, variables, [first], weighed), first, 0)
    if beside is not None:
        # The layer must also compensate the teacher's addend less the model's.
        both = (teacher, given), (beside, variables)
        wanted, found = (addend(*one, args, kwargs, first) for one in both)

        def owes(view, seen, places):
            return view.outputs(wanted - found, places)

        owed = joined(read(teacher, given, [first], owes), first)
    return Taken(x, z, owed, weight)


def _weights_at(weights, count, places):
    """The weights of a batch's positions at the places of a call."""
    if weights.size != count:
        raise ValueError(
            f"`weights` must give one number for each of its {count} positions in a batch, got "
            f"shape {weights.shape}: leave it out of `layers`, or weigh what it reads."
        )
    return weights.reshape(-1)[places].astype(jnp.float32)


def addend(
    model: Any, variables: Variables, args: tuple, kwargs: Mapping[str, Any], layer: str
) -> jax.Array:
    """The array that a layer's normalised output is added to: a residual block's shortcut."""
    net, asked = ask_outside(model, variables, args, kwargs)
    # Only the addend is asked for, and dead code is dropped when this is compiled.
    program = giving(asked.call.program, [addend_of(asked.call.program, layer)])
    call = asked.call._replace(program=program, out=jax.tree.structure((0, {})))
    return run(net, asked._replace(call=call), variables).out
