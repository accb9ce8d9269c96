"""Runs one batch forward and backward, once, and keeps what the doctor's checks look at."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.diagnostics.spots import Spot, hand_out, site_of, site_vitals
from bitjax.frameworks.call import Asked, Model, run
from bitjax.frameworks.compiled import compile_quickly, jit_arrays
from bitjax.frameworks.finite import finite_flags, is_finite
from bitjax.frameworks.probe import ask_outside, probe
from bitjax.program.consumers import Consumer, consumers
from bitjax.program.kept import Told
from bitjax.program.naming import path_of
from bitjax.program.program import Program
from bitjax.program.state import Seen
from bitjax.quantizers.grid import widen
from bitjax.rules import Rules
from bitjax.variables import QUANT, floats_of, read_site

Objective = Callable[[Any, Any], jax.Array]


class Measured(NamedTuple):
    """What a batch showed of a model; what is an array is NumPy's, or one of the caller's."""

    program: Program
    rules: Rules
    variables: Mapping[str, Any]
    args: tuple
    labels: Any  # None where the loss is the caller's own
    classes: int | None  # what a label may be, where one output has a number for each class
    finite: bool  # tensors, output and loss
    unseen: tuple[str, ...]  # layers in loops and branches
    sites: Mapping[str, tuple[Spot, ...]]  # of quantized ones, by call and step
    features: Mapping[str, np.ndarray]  # by input site the largest size of each feature
    norms: Mapping[str, tuple[np.ndarray, np.ndarray]]  # mean and variance of what a norm reads
    gradients: Mapping[str, Any]  # of `params` and `quant`
    float_gradients: Callable[[], Mapping[str, Any]]  # of the float model's parameters, by path
    consumers: Callable[[], Mapping[str, Consumer]]


def measure(
    net: Model,
    asked: Asked,
    variables: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    labels: Any,
    loss: Objective | None,
) -> Measured:
    """One run of the model, and of each quantizer on what it was given."""
    program, objective = asked.call.program, loss or _default_loss
    readers = functools.cache(lambda: consumers(program))
    told, records, gradients, finite = jit_arrays(
        _forward_and_back, variables, args, kwargs, labels,
        static=(net, objective, _norms(variables, readers)), **compile_quickly(),
    )  # fmt: skip
    note = told.value
    flags = [flag for record in records for flag in record["finite"].values()]
    whole = bool(finite) and all(np.all(np.asarray(flag)) for flag in flags)
    uses = [(record["uses"], record["finite"]["output"].ndim) for record in records]
    sites = site_vitals(uses, net.rules, program.sites, note.train) if whole else {}
    features: dict[str, np.ndarray] = {}
    for record in records:
        for name, size in {**_handed_out(program, record["uses"]), **record["features"]}.items():
            before = features.get(name, 0.0)
            features[name] = np.maximum(before, np.asarray(size))
    return Measured(
        program, net.rules, variables, args,
        labels if loss is None else None, note.classes, whole, note.unseen, sites, features,
        {k: jax.tree.map(np.asarray, v) for r in records for k, v in r["norms"].items()},
        gradients,
        functools.cache(lambda: _by_path(_float(net, variables, args, kwargs, labels, objective))),
        readers,
    )  # fmt: skip


class _Note(NamedTuple):
    """What a trace tells beside its arrays."""

    unseen: tuple[str, ...]
    train: bool
    classes: int | None


def _forward_and_back(net, objective, norms, variables, args, kwargs, labels):
    training: list[bool] = []
    notes: list[_Note] = []

    def look(seen: Seen):
        training.extend(use.train for use in seen.uses.values())
        return {
            "finite": finite_flags(seen),
            "uses": hand_out(seen),
            "features": _features(seen),
            "norms": _moments(seen, norms),
        }

    def value_of(trained):
        seen = probe(net, {**variables, **trained}, args, kwargs, look)
        value, out = objective(seen.out, labels), seen.out
        classes = out.shape[1] if getattr(out, "ndim", 0) == 2 else None
        notes.append(_Note(tuple(seen.unseen), any(training), classes))
        return value, ([record for _, record in seen.records], is_finite([out, value]))

    trained = {name: variables[name] for name in ("params", QUANT) if name in variables}
    gradients, (records, finite) = jax.grad(value_of, has_aux=True)(trained)
    return Told(notes[-1]), records, gradients, finite


def _features(seen: Seen):
    """The sizes of the features of inputs that are not quantized; the others are handed out."""
    float_roles = [role for role in seen.tensors if role == "input" and role not in seen.uses]
    sites = {role: site_of(seen.product, role) for role in float_roles}
    return {site.name: _sizes(jnp, site, seen.raw(role)) for role, site in sites.items()}


def _handed_out(program, uses):
    """The sizes of the features of quantized inputs."""
    inputs = {name: use for name, use in uses.items() if program.sites[name].role == "input"}
    return {n: _sizes(np, program.sites[n], np.asarray(use[2])) for n, use in inputs.items()}


def _sizes(xp, site, x):
    """The largest size of each feature in the batch."""
    axis = site.axes.channel[-1]
    feature = (axis if axis < 0 else axis - len(site.shape)) % x.ndim
    return xp.max(xp.abs(x), axis=tuple(i for i in range(x.ndim) if i != feature))


def _norms(variables, readers):
    """By layer the path of the normalisation behind it, where its statistics have been moved."""
    moved = {
        path_of(path[1:-1])
        for path, leaf in jax.tree_util.tree_leaves_with_path(floats_of(variables))
        if path[0].key != "params" and path_of(path[-1:]) == "var" and np.any(np.asarray(leaf) != 1)
    }
    if not moved:
        return {}
    return {layer: reader.norm for layer, reader in readers().items() if reader.norm in moved}


def _moments(seen: Seen, norms):
    """The mean and the variance of a layer's output by feature, where a normalisation reads it."""
    norm = norms.get(seen.product.layer)
    if norm is None:
        return {}
    x = widen(seen.out)
    others = tuple(range(x.ndim - 1))
    return {norm: (jnp.mean(x, axis=others), jnp.var(x, axis=others))}


def _default_loss(out, labels):
    if labels is None:
        leaves = [x for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum(jnp.mean(jnp.square(widen(x))) for x in leaves)
    log_p = jax.nn.log_softmax(widen(out))
    # A label that is no class is a finding of its own; the rest of the batch is looked at with it.
    labels = jnp.clip(jnp.asarray(labels), 0, log_p.shape[-1] - 1)
    return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=-1))


def _float(net, variables, args, kwargs, labels, objective):
    """The gradients of the float model's parameters."""
    trees = floats_of(variables), args, kwargs, labels
    static = net.with_rules(()), objective
    return jit_arrays(_float_gradient, *trees, static=static, **compile_quickly())


def _float_gradient(net, objective, floats, args, kwargs, labels):
    def value_of(params):
        given = {**floats, "params": params}
        _, asked = ask_outside(net, given, args, kwargs)
        return objective(run(net, asked, given).out, labels)

    return jax.grad(value_of)(floats["params"])


def _by_path(tree):
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def read_leaf(tree: Mapping[str, Any], site: str, leaf: str) -> Any:
    """A leaf of a site in `quant`, `quant_stats` or their gradients; None without."""
    found = read_site(tree, site, None)
    return found.get(leaf) if isinstance(found, Mapping) else None
