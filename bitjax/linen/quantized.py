"""`Quantized(model, rules)`: any Linen model, with the tensors that the rules select quantized."""

import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bitjax.linen.visit import Layer, Tensors, Visitor, axes_of, visiting
from bitjax.quantizers.base import Quantizer, reduce_batch
from bitjax.quantizers.ste import scale_gradient
from bitjax.rules import ROLES, Rules, check_rules, quantizer_of
from bitjax.variables import QUANT, STATS, site_name


class Quantized(nn.Module):
    """Wraps a Linen model; kernels and inputs that `rules` select are quantized in place.

    The `params` tree is the model's own, so float checkpoints load unchanged. Quantizers keep
    learned variables in the collection `quant`, observed ones in `quant_stats`, by layers' paths:
    `quant/stage1/block1/conv1/kernel/bits`. Initialise with a real batch, because learned ranges
    start from it. `train` is read from the call (`train=`, `training=` or `deterministic=`, or
    their defaults) and removed before the call if the model does not accept it. Statistics move
    only where `quant_stats` is mutable. Outside training, the moving averages quantize.

    Attributes:
      model: any Linen module.
      rules: the rules, from `bitjax.rule`. The first one that matches a site decides; a site that
        none matches stays float.
      axis_name: the device axis of `pmap` or `shard_map` over which the statistics of quantizers
        and of batch normalisations are merged.
      parts: the number of calls in which each device takes its examples of one step.

    Raises:
      ValueError: at initialisation, a rule does nothing or names a layer that cannot be quantized;
        later, a site has no variables.

    Example:
      >>> import bitjax as bj
      >>> model = Quantized(nn.Dense(2), [bj.rule(".*", bj.uniform(bits=8))])
      >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
      >>> sorted(variables), float(variables["quant"]["kernel"]["bits"])
      (['params', 'quant', 'quant_stats'], 8.0)
    """

    model: nn.Module
    rules: Rules = ()
    axis_name: str | None = None
    parts: int = 1

    def setup(self):
        nn.share_scope(self, self.model)
        # Modules given to the model as its fields, such as those of nn.Sequential, were named
        # before the scopes were one: `model/layers_0` for variables that are at `layers_0`.
        _rename(self.model, (*self.path, "model"), self.path)

    def __call__(self, *args, **kwargs):
        return self.observe(None, args, kwargs)

    def observe(self, observer: Visitor | None, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """Runs the model while `observer` sees every layer's tensors, after quantization."""
        kwargs, train = _split_train(self.model, args, dict(kwargs))
        reduce_over = None if self.is_initializing() else self.axis_name
        creating = self.is_mutable_collection(QUANT)
        # New variables start from this batch, so there is no moving average to update.
        moving = not (self.is_initializing() or (creating and not train))
        visitor = _Quantize(self.rules, train, reduce_over, self.parts, observer, creating, moving)
        with visiting(visitor, self.axis_name):
            out = self.model(*args, **kwargs)
        if self.is_initializing():
            check_rules(self.rules, visitor.sites, visitor.unreachable, visitor.kernelless)
        return out


def _rename(module: nn.Module, old: tuple[str, ...], new: tuple[str, ...]) -> None:
    """Replaces the beginning of the paths of everything below a bound module."""
    for child in module._state.children.values():
        scope = getattr(child, "scope", None)
        if isinstance(child, nn.Module) and scope and scope.path[: len(old)] == old:
            scope.path = new + scope.path[len(old) :]
            scope.debug_path = scope.path
            _rename(child, old, new)


def _split_train(model, args, kwargs):
    """The model's keyword arguments, and whether this call trains."""
    # The arguments of nn.Sequential are those of its first layer.
    while type(model).__call__ is nn.Sequential.__call__ and model.layers:
        model = model.layers[0]
    try:
        signature = inspect.signature(model.__call__ if isinstance(model, nn.Module) else model)
    except (TypeError, ValueError):  # some functions written in C have no signature
        signature = inspect.signature(lambda *args: None)
    parameters = signature.parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and "train" not in parameters:
        train = kwargs.pop("train", None)
    else:
        train = None
    try:
        bound = signature.bind_partial(*args, **kwargs)
        bound.apply_defaults()
        given = {**kwargs, **bound.arguments}
    except TypeError:
        given = kwargs  # the call itself will say what is wrong
    for name in ("train", "training", "deterministic"):
        if train is None and given.get(name) is not None:
            train = not given[name] if name == "deterministic" else given[name]
    return kwargs, bool(train)


class _Quantize(Visitor):
    """Quantizes the tensors that the rules select, with variables in the layer's own scope."""

    def __init__(self, rules, train, axis_name, parts, observer, creating, moving):
        self.rules, self.train, self.axis_name, self.parts = rules, train, axis_name, parts
        self.observer, self.creating, self.moving = observer, creating, moving
        self.sites: list[str] = []
        self.unreachable: list[tuple[str, str]] = []
        self.kernelless: list[tuple[str, str]] = []

    def tensors(self, layer: Layer, tensors: Tensors) -> Tensors:
        new = dict(tensors)
        for role, x in tensors.items():
            if role == "input" and layer.method == "attend":
                continue  # an embedding has a kernel site only
            site = layer.site(role)
            self.sites.append(site)
            quantizer = quantizer_of(self.rules, site)
            if quantizer is not None:
                with jax.named_scope("quantize"):
                    new[role] = self._quantize(quantizer, layer, role, x)
        return self.observer.tensors(layer, new) if self.observer else new

    def output(self, layer, tensors, out):
        if self.observer:
            self.observer.output(layer, tensors, out)

    def other(self, name, module, args, out):
        own = module.variables.get("params", {})
        kind = type(module).__name__
        if any(leaf in own and hasattr(own[leaf], "ndim") for leaf in ("kernel", "embedding")):
            self.unreachable.append((site_name(name, "kernel"), kind))
        elif own and not any(isinstance(leaf, Mapping) for leaf in own.values()):
            self.kernelless += [(f"{name}/{role}", kind) for role in ROLES]
        if self.observer:
            self.observer.other(name, module, args, out)

    def _quantize(self, quantizer: Quantizer, layer: Layer, role: str, x: jax.Array) -> jax.Array:
        scope = layer.module.scope
        assert scope is not None, "a visited layer is bound"
        if not jnp.issubdtype(x.dtype, jnp.floating):
            x = x.astype(jnp.float32)
        axes = axes_of(layer.module, role, x.ndim)
        if not scope.has_variable(QUANT, role):
            self._create(scope, quantizer, layer, role, x, axes)
        params = scope.get_variable(QUANT, role)
        stats = {}
        if quantizer.measure is not None and quantizer.update is not None:
            if role == "kernel":
                # A kernel's range is that of the kernel itself, without history. It is stored only
                # for export and for the count of bytes.
                start = jax.eval_shape(lambda x: quantizer.init(x, axes)[1], x)
                start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), start)
                stats = quantizer.update(start, quantizer.measure(params, start, x))
                if scope.is_mutable_collection(STATS):
                    scope.put_variable(STATS, role, stats)
            else:
                stats = self._observe(scope, quantizer, layer, role, params, x)
        key = None
        if self.train and layer.module.has_rng(QUANT):
            key = layer.module.make_rng(QUANT)
        shared = quantizer.traits.normalized
        if shared and role == "input" and self.train:
            # The quantizer normalises by the elements that it sees: those of a part of the batch.
            parts = self.parts * (jax.lax.axis_size(self.axis_name) if self.axis_name else 1)
            if parts > 1:
                whole = {leaf: scale_gradient(params[leaf], parts**-0.5) for leaf in shared}
                params = {**params, **whole}
        return quantizer.apply(params, stats, x, train=self.train, key=key)

    def _create(self, scope, quantizer, layer, role, x, axes):
        if not scope.is_mutable_collection(QUANT):
            raise ValueError(_missing(layer.site(role), QUANT, self.creating))
        params, stats = quantizer.init(x, axes)
        scope.put_variable(QUANT, role, params)
        if quantizer.measure is not None:
            if not scope.is_mutable_collection(STATS):
                raise ValueError(_missing(layer.site(role), STATS, self.creating))
            scope.put_variable(STATS, role, stats)

    def _observe(self, scope, quantizer, layer, role, params, x):
        if not scope.has_variable(STATS, role):
            raise ValueError(_missing(layer.site(role), STATS, self.creating))
        stats = scope.get_variable(STATS, role)
        mutable = scope.is_mutable_collection(STATS) and self.moving
        if not (mutable or self.train):
            return stats
        batch = reduce_batch(quantizer.measure(params, stats, x), self.axis_name)
        stats = quantizer.update(stats, batch)
        if mutable:
            scope.put_variable(STATS, role, stats)
        return stats


def _missing(site: str, collection: str, creating: bool) -> str:
    if creating:
        return (
            f"site {site!r} cannot keep its {collection!r} variables: a lifted transform around it "
            "does not list the collection. Use nn.scan or nn.vmap with "
            "variable_axes={'params': 0, 'quant': 0, 'quant_stats': 0}, nn.RNN with "
            "variable_axes={'quant': 0, 'quant_stats': 0} (a quantizer for each step)."
        )
    return (
        f"site {site!r} has no {collection!r} variables: they are made by Quantized(...).init, or "
        "beside a float checkpoint by bitjax.attach(model, variables, x); pass all of its "
        "collections to apply."
    )
