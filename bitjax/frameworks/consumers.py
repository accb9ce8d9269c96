"""Finds what reads a layer's output: a normalisation, one quantizer alone, or a sum.

A layer whose output goes through a normalisation, a ReLU and perhaps a pooling into exactly one
quantizer need only be right behind that quantizer. A layer whose output is added to something must
be right itself. Two-step quantization (Wang et al., CVPR 2018) solves the two differently.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from bitjax.frameworks.probe import probe
from bitjax.program.state import Seen
from bitjax.variables import site_name

# Quantizing commutes with these operations. Max-pooling does because a quantizer never decreases;
# the others only move, repeat or cast elements.
_PASSING = {"reduce_window_max", "reshape", "convert_element_type", "transpose", "squeeze", "copy"}
_PASSING |= {"broadcast_in_dim", "name"}
# A layer's own product: its input site is already known by its tensor, so this is not another use.
_LAYERS = {"conv_general_dilated", "dot_general"}


class Consumer(NamedTuple):
    """What reads a layer's output."""

    norm: str | None  # path of the normalisation that reads the output itself
    # the only input site that the output reaches; None if it reaches anything else
    site: str | None
    epsilon: float | None = None  # a batch normalisation's epsilon; None of any other normalisation
    added: bool = False  # whether one sum with an array of its shape is all that reads it
    rectified: bool = False  # whether there is a ReLU on the way to `site`


def consumers(model: nn.Module, variables: Mapping[str, Any], *args: Any) -> dict[str, Consumer]:
    """What reads every layer's output, `{layer: Consumer}`, from one traced forward pass."""
    # The float model is traced: quantizers' own operations would count as further readers. Of a
    # layer inside a lifted transform nothing is known: its arrays are those of an inner program.
    traced = _trace(inner_model(model), variables, args)
    found = {}
    for name, output in traced.layers.items():
        norm, value = traced.norms.get(output, (None, output))  # the walk starts behind the norm
        reached = traced.walk.sites(value)
        only = next(iter(reached)) if len(reached) == 1 else None
        added = traced.walk.addend(value) is not None
        rectified = only is not None and traced.walk.rectifies(value)
        found[name] = Consumer(norm, only, traced.epsilons.get(norm), added, rectified)
    return found


def addend(model: nn.Module, variables: Mapping[str, Any], args: tuple, layer: str) -> jax.Array:
    """The array that a layer's normalised output is added to: a residual block's shortcut."""
    traced = _trace(model, variables, args)
    output = traced.layers.get(layer)
    _, value = traced.norms.get(output, (None, output))
    other = None if output is None else traced.walk.addend(value)
    if other is None:
        raise ValueError(f"layer {layer!r} is not read by one sum alone.")
    # Only the addend is asked for, and dead code is dropped when this is compiled.
    program = traced.program.jaxpr.replace(outvars=[other])
    leaves = jax.tree.leaves((variables, args))
    (found,) = jax.core.eval_jaxpr(program, traced.program.consts, *leaves)
    return found


class _Traced(NamedTuple):
    program: Any
    walk: "_Walk"
    layers: dict[str, Any]  # a layer's output
    norms: dict[Any, tuple[str, Any]]  # by the array a normalisation reads: its path, its output
    epsilons: dict[str | None, float | None]  # by the normalisation's path


def _trace(model, variables, args) -> _Traced:
    # `probe` returns the layers' arrays as outputs of the program. The program's variables at these
    # outputs are then the arrays themselves, by identity: the walk compares those.
    names: list[str] = []
    epsilons: dict[str | None, float | None] = {}

    def on_layer(seen: Seen):
        return {
            "input": seen.raw("input") if "input" in seen.tensors else seen.out,
            "out": seen.out,
        }

    def on_other(name, module, args, out):
        if args and any("Norm" in base.__name__ for base in type(module).__mro__):
            epsilons[name] = module.epsilon if isinstance(module, nn.BatchNorm) else None
            return {"reads": args[0], "gives": out}

    def run(variables, args):
        seen = probe(model, variables, args, {}, on_layer, on_other, strict=False)
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
        if "out" in record:
            layers[name] = record["out"]
            inputs.setdefault(record["input"], []).append(site_name(name, "input"))
        else:
            norms.setdefault(record["reads"], (name, record["gives"]))
    walk = _Walk(program.jaxpr, set(outputs[:count]), inputs)
    return _Traced(program, walk, layers, norms, epsilons)


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
        """The input sites that an array reaches; None among them where it reaches anything else."""
        # `inside` says that this array is a layer's input after the layer cast it.
        here = self.inputs.get(value, [])
        found: set[str | None] = set(here)
        if value in self.outputs:  # the caller reads it as it is
            found.add(None)
        for eqn in self.users.get(value, []):
            if _passes(eqn):
                cast = eqn.primitive.name == "convert_element_type"
                found |= self.sites(eqn.outvars[0], cast and bool(here))
            elif not ((here or inside) and eqn.primitive.name in _LAYERS):
                found.add(None)
        return found

    def rectifies(self, value) -> bool:
        """Whether a ReLU is on the way that `sites` follows."""
        users = [eqn for eqn in self.users.get(value, []) if _passes(eqn)]
        # What passes without being in the list is a ReLU, see `_passes`.
        moving = [eqn for eqn in users if eqn.primitive.name in _PASSING]
        return len(moving) < len(users) or any(self.rectifies(e.outvars[0]) for e in moving)

    def addend(self, value):
        """The other array of the one sum that reads a value; None where other things do too."""
        users = self.users.get(value, [])
        if value in self.outputs or self.inputs.get(value) or len(users) != 1:
            return None
        (eqn,) = users
        if eqn.primitive.name not in ("add", "add_any"):
            return None
        # x + x has no other array.
        others = [v for v in eqn.invars if v is not value and isinstance(v, jax.extend.core.Var)]
        same = len(others) == 1 and _shape(others[0]) == _shape(value)
        return others[0] if same else None


def _shape(value):
    return getattr(value.aval, "shape", None)


def _passes(eqn) -> bool:
    """Whether an operation is a ReLU, or one that quantizing commutes with."""
    name = eqn.primitive.name
    if name in _PASSING:
        return True
    if name == "max":  # with a constant 0: anything else would have another operand
        return any(getattr(v, "val", None) == 0 for v in eqn.invars)
    # `nn.relu` is a call of an inner program, with a custom derivative.
    inner = eqn.params.get("call_jaxpr", eqn.params.get("jaxpr"))
    inner = getattr(inner, "jaxpr", inner)
    return hasattr(inner, "eqns") and len(inner.invars) == 1 and all(map(_passes, inner.eqns))
