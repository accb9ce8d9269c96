"""Reads the tensors of every layer, from inside jit, grad, `nn.remat` and `nn.scan`.

An array inside a lifted transform cannot simply be kept: it must leave through a variable. `probe`
stores its records in the layer's own scope, in the collection `quant_stats`, which lifted
transforms around a quantized layer list anyway, and takes it out again afterwards.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from bitjax.linen.quantized import Quantized
from bitjax.linen.visit import Layer, Tensors, Visitor
from bitjax.quantizers.base import Params, Quantizer, Stats
from bitjax.rules import ROLES, Rule, Rules
from bitjax.variables import QUANT, STATS

_KEY = "bitjax_probe"


class Use(NamedTuple):
    """One use of a quantizer: its arguments."""

    quantizer: Quantizer
    params: Params  # its leaves in `quant`
    stats: Stats  # its leaves in `quant_stats`, as it quantized with them
    x: jax.Array  # the tensor before quantization
    train: bool  # whether the call trains


class Seen(NamedTuple):
    """One call of a layer."""

    layer: Layer  # its module is valid only while it is looked at
    tensors: Tensors  # `input` and `kernel` as the layer computed with them
    uses: Mapping[str, Use]  # by role, where the site is quantized
    out: Any  # what the layer returned

    def raw(self, role: str) -> jax.Array:
        """The tensor of a role before quantization."""
        return self.uses[role].x if role in self.uses else self.tensors[role]


class Probed(NamedTuple):
    """A model's output and the records of its layers."""

    out: Any  # what the model returned
    updates: dict[str, Any]  # the mutable collections, without the probe's own variables
    # (module name, record) of every call in forward order; a scanned layer is one call
    records: list[tuple[str, Any]]
    unseen: tuple[str, ...]  # layers that a lifted transform keeps from handing anything out


OnLayer = Callable[[Seen], Any]
OnOther = Callable[[str, nn.Module, tuple, Any], Any]


def probe(
    model: nn.Module,
    variables: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    on_layer: OnLayer,
    on_other: OnOther = lambda name, module, args, out: None,
    *,
    strict: bool = True,
    observing: bool = False,
) -> Probed:
    """Runs a model once and hands out the records that two functions make at its modules."""
    # `on_layer` and `on_other` return a tree of arrays to record, or None. With `strict`, a layer
    # that cannot hand out anything is an error; without, it is listed as unseen. While `observing`,
    # inputs are quantized after this batch has moved their history; otherwise with the history as
    # it stands.
    visitor = _Probe(on_layer, on_other, strict, observing)
    # Whatever training would change may change, so that `train=True` is no special case. The random
    # streams are fixed: a probe never takes part in training.
    mutable = [STATS, *(name for name in variables if name not in ("params", QUANT, STATS))]
    rngs = {name: jax.random.key(0) for name in ("dropout", QUANT)}
    wrapped = Quantized(inner_model(model), visitor.watched(rules_of(model)))
    out, changed = wrapped.apply(
        variables, visitor, args, kwargs, method="observe", mutable=mutable, rngs=rngs
    )
    updates: dict[str, Any] = {n: dict(collection) for n, collection in changed.items()}
    found: dict[tuple[str, int], Any] = {}
    updates[STATS] = _strip(updates.get(STATS, {}), (), found)
    if not updates[STATS]:
        del updates[STATS]
    records = [(key[0], found[key]) for key in visitor.order if key in found]
    return Probed(out, updates, records, tuple(dict.fromkeys(visitor.unseen)))


def inner_model(model: nn.Module) -> nn.Module:
    """The model inside `Quantized`, or the model itself."""
    return model.model if isinstance(model, Quantized) else model


def rules_of(model: nn.Module) -> Rules:
    """The rules of a `Quantized` model; none for a float one."""
    return model.rules if isinstance(model, Quantized) else ()


def compile_quickly() -> dict[str, Any]:
    """Options of `jax.jit` for a program that runs once: compilation dominates its time."""
    # On the CPU, compiling without optimisation takes half as long; elsewhere it was not measured.
    level = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    return {"compiler_options": level}


def jit_arrays(function: Callable[..., Any], *trees: Any, **options: Any) -> Any:
    """Calls `function(*trees)` compiled once; leaves that are no arrays stay Python values."""
    leaves, treedef = jax.tree.flatten(trees)
    arrays = [leaf for leaf in leaves if hasattr(leaf, "shape")]

    def call(arrays):
        rest = iter(arrays)
        filled = [next(rest) if hasattr(leaf, "shape") else leaf for leaf in leaves]
        return function(*jax.tree.unflatten(treedef, filled))

    return jax.jit(call, **options)(arrays)


class _Probe(Visitor):
    """Records at every module, in variables of the module's own scope."""

    def __init__(self, on_layer, on_other, strict, observing):
        self.on_layer, self.on_other = on_layer, on_other
        self.strict, self.observing = strict, observing
        self.pending: dict[str, Use] = {}
        self.uses: dict[str, dict[str, Use]] = {}
        self.order: dict[tuple[str, int], None] = {}
        self.unseen: list[str] = []

    def watched(self, rules: Rules) -> Rules:
        """The rules with quantizers that note their arguments; a visitor sees only results."""
        found = []
        for pattern, quantizer in rules:
            for role in ROLES:
                watched = None if quantizer is None else self._watch(quantizer, role)
                found.append(Rule(_with_role(pattern, role), watched))
        return found

    def _watch(self, quantizer, role):
        before: list[Stats] = []

        def update(stats, batch):
            before[:] = [dict(stats)]  # a copy: Flax's put_variable writes into the dict it gave
            return quantizer.update(stats, batch)

        def apply(params, stats, x, *, train=False, key=None):
            # The history is mutable here only to hand records out.
            if before and role == "input" and not train and not self.observing:
                stats = before[0]
            before.clear()
            self.pending[role] = Use(quantizer, params, stats, x, train)
            return quantizer.apply(params, stats, x, train=train, key=key)

        observes = quantizer.update is not None
        return quantizer._replace(apply=apply, update=update if observes else None)

    def tensors(self, layer: Layer, tensors: Tensors) -> Tensors:
        self.uses[layer.name], self.pending = self.pending, {}
        return tensors

    def output(self, layer: Layer, tensors: Tensors, out: Any) -> None:
        seen = Seen(layer, tensors, self.uses.pop(layer.name, {}), out)
        self._keep(layer.name, layer.module, self.on_layer(seen))

    def other(self, name: str, module: nn.Module, args: tuple, out: Any) -> None:
        self._keep(name, module, self.on_other(name, module, args, out))

    def _keep(self, name, module, record):
        scope = module.scope
        if record is None:
            return
        if not scope.is_mutable_collection(STATS):
            if self.strict:
                raise ValueError(
                    f"layer {name!r} cannot hand out its tensors: a lifted transform around it "
                    f"does not list the collection {STATS!r}. Use nn.scan or nn.vmap with "
                    "variable_axes={'params': 0, 'quant': 0, 'quant_stats': 0}."
                )
            self.unseen.append(name)
            return
        call = 0
        while scope.has_variable(STATS, f"{_KEY}{call}"):
            call += 1
        # In a dict: Flax's scopes do not tell a bare tree of arrays from a submodule.
        scope.put_variable(STATS, f"{_KEY}{call}", {"record": record})
        self.order.setdefault((name, call))


def _with_role(pattern, role):
    """The pattern for sites of one role only; flags such as (?i) must stay in front."""
    flags = ""
    if pattern.startswith("(?") and pattern[2:].split(")")[0].isalpha():
        flags, _, pattern = pattern.partition(")")
        flags += ")"
    end = "\n)" if "x" in flags else ")"  # a verbose pattern may end in a comment
    return f"{flags}(?=(?:.*/)?{role}\\Z)(?:{pattern}{end}"


def _strip(tree, path, found):
    kept = {}
    for name, value in tree.items():
        if name.startswith(_KEY):
            found["/".join(path), int(name.removeprefix(_KEY))] = value["record"]
        elif isinstance(value, Mapping):
            inner = _strip(value, (*path, name), found)
            if inner or not value:
                kept[name] = inner
        else:
            kept[name] = value
    return kept
