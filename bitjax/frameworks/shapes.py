"""A model's program from its arguments alone: variables of the right shapes, computing nothing."""

from collections.abc import Mapping
from typing import Any

import jax

from bitjax.frameworks.compiled import jit_arrays
from bitjax.frameworks.linen import Quantized
from bitjax.frameworks.models import float_model
from bitjax.frameworks.plain import Function
from bitjax.program.program import Program
from bitjax.variables import floats_of


def program_of(
    model: Any, args: tuple, kwargs: Mapping[str, Any], variables: Any = None
) -> tuple[Program, int]:
    """The float model's program, and the size of the batch in it."""
    net = float_model(model)
    if variables is None and isinstance(net, Function):
        # A function takes its parameters first, as it does when it is called.
        variables, args = {"params": args[0] if args else {}}, args[1:]
    apart = net.neutral if isinstance(net, Function) else ()
    data = [x for i, x in enumerate(args) if i not in apart]
    data += [x for name, x in kwargs.items() if name not in apart]
    arrays = [x for x in jax.tree.leaves(data) if hasattr(x, "shape")]
    batch = next((x.shape[0] for x in arrays if x.shape), 0)
    if not batch:
        raise ValueError("site_costs needs an argument with a batch axis of 1 or more.")
    if variables is not None:
        variables = floats_of(variables)
    elif isinstance(net, Quantized):
        variables = shapes_of(net, args, kwargs)
    else:
        variables = getattr(net, "shapes", {})  # NNX's, which has its variables before a call
    return net.ask(variables, args, kwargs, rngs=one_key(), mutable=True).call.program, batch


def shapes_of(net: Quantized, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The shapes of a Linen model's variables."""
    return jit_arrays(_init, args, dict(kwargs), static=(net.model,), over=jax.eval_shape)


def _init(model, args, kwargs):
    return model.init(one_key(), *args, **kwargs)


def one_key() -> dict[str, jax.Array]:
    """Random streams of a call that computes nothing to keep: every stream falls back on this."""
    return {"params": jax.random.key(0)}
