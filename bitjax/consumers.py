"""Which normalisation follows a layer, and which one layer's input its output reaches alone.

A layer whose output goes through a normalisation, a ReLU and perhaps a pooling into exactly one
quantizer need only be right behind that quantizer; one that is added to something must be right
itself. Two-step quantization (Wang et al., CVPR 2018) solves the two differently.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from bitjax.probe import Seen, inner_model, probe

# Elementwise with the quantizer, or they only move elements; a maximum commutes with it.
_PASSING = {"reduce_window_max", "reshape", "convert_element_type", "transpose", "squeeze", "copy"}
_PASSING |= {"broadcast_in_dim", "name"}
_LAYERS = {"conv_general_dilated", "dot_general"}


class Consumer(NamedTuple):
    """What reads a layer's output.

    Attributes:
      norm: path of the normalisation that reads it; None where there is none.
      site: the only input site that it reaches from there through ReLU, max-pooling, reshaping and
        casts; None where it reaches something else too, a sum say.
      epsilon: of the normalisation where it is a batch normalisation, an affine map per channel in
        evaluation; None of any other.
    """

    norm: str | None
    site: str | None
    epsilon: float | None = None


def consumers(model: nn.Module, variables: Mapping[str, Any], *args: Any) -> dict[str, Consumer]:
    """What reads every layer's output, from the traced program of one forward pass.

    Args:
      model: a Linen module; of a wrapped one, the module inside.
      variables: its collections, or their shapes.
      *args: what the model is called with, or shapes.

    Returns:
      `{layer: Consumer}` in forward order; of a layer that a lifted transform hides, nothing is
      known: `Consumer(None, None)`, or it is not there.

    Example:
      >>> import jax.numpy as jnp
      >>> net = nn.Sequential([nn.Dense(4), nn.BatchNorm(True), nn.relu, nn.Dense(2)])
      >>> x = jnp.ones((1, 3))
      >>> found = consumers(net, net.init(jax.random.key(0), x), x)
      >>> found["layers_0"]
      Consumer(norm='layers_1', site='layers_3/input', epsilon=1e-05)
      >>> found["layers_3"]
      Consumer(norm=None, site=None, epsilon=None)
    """
    names: list[str] = []
    epsilons: dict[str | None, float | None] = {}
    net = inner_model(model)

    def on_layer(seen: Seen):
        return {"input": seen.tensors.get("input", seen.out), "output": seen.out}

    def on_other(name, module, args, out):
        if args and any("Norm" in base.__name__ for base in type(module).__mro__):
            epsilons[name] = module.epsilon if isinstance(module, nn.BatchNorm) else None
            return {"reads": args[0], "gives": out}

    def run(variables, args):
        seen = probe(net, variables, args, {}, on_layer, on_other, strict=False)
        names[:] = [name for name, _ in seen.records]
        return seen.out, [record for _, record in seen.records]

    program, (shape, records) = jax.make_jaxpr(run, return_shape=True)(variables, args)
    outputs = program.jaxpr.outvars
    count = len(jax.tree.leaves(shape))
    kinds = jax.tree.unflatten(jax.tree.structure(records), outputs[count:])
    inputs: dict[Any, list[str]] = {}
    norms: dict[Any, tuple[str, Any]] = {}
    layers: dict[str, Any] = {}
    for name, record in zip(names, kinds, strict=True):
        if "output" in record:
            layers[name] = record["output"]
            inputs.setdefault(record["input"], []).append(f"{name}/input" if name else "input")
        else:
            norms.setdefault(record["reads"], (name, record["gives"]))
    walk = _Walk(program.jaxpr, set(outputs[:count]), inputs)
    found = {}
    for name, output in layers.items():
        norm, value = norms.get(output, (None, output))
        reached = walk.sites(value)
        only = next(iter(reached)) if len(reached) == 1 else None
        found[name] = Consumer(norm, only, epsilons.get(norm))
    return found


class _Walk:
    """Follows an array forwards through a program."""

    def __init__(self, jaxpr, outputs, inputs):
        self.outputs, self.inputs = outputs, inputs
        self.users: dict[Any, list[Any]] = {}
        for eqn in jaxpr.eqns:
            for operand in eqn.invars:
                if isinstance(operand, jax.extend.core.Var):
                    self.users.setdefault(operand, []).append(eqn)

    def sites(self, value, inside: bool = False) -> set[str | None]:
        """The input sites it reaches; None among them where it reaches anything else.

        `inside` a layer is its input that was cast.
        """
        here = self.inputs.get(value, [])
        found: set[str | None] = set(here)
        if value in self.outputs:
            found.add(None)
        for eqn in self.users.get(value, []):
            if _passes(eqn):
                cast = eqn.primitive.name == "convert_element_type"
                found |= self.sites(eqn.outvars[0], cast and bool(here))
            elif not ((here or inside) and eqn.primitive.name in _LAYERS):
                found.add(None)
        return found


def _passes(eqn) -> bool:
    """Whether an operation is a ReLU, or one that quantizing commutes with."""
    name = eqn.primitive.name
    if name in _PASSING:
        return True
    if name == "max":  # with a constant 0: anything else would have another operand
        return any(getattr(v, "val", None) == 0 for v in eqn.invars)
    inner = eqn.params.get("call_jaxpr", eqn.params.get("jaxpr"))
    inner = getattr(inner, "jaxpr", inner)
    return hasattr(inner, "eqns") and len(inner.invars) == 1 and all(map(_passes, inner.eqns))
