"""The module around an NNX model: its quantizers' variables, and how it is called."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from bitjax.frameworks.arguments import said_train
from bitjax.frameworks.call import Asked, run
from bitjax.frameworks.compiled import compile_quickly, jit_arrays
from bitjax.frameworks.kinds import advice
from bitjax.frameworks.later import later_call
from bitjax.frameworks.nnx_function import NNXFunction, called, functional, split
from bitjax.quantizers.base import is_learned
from bitjax.rules import Rules, check_types, quantizer_of
from bitjax.variables import QUANT, STATS


class Learned(nnx.Param):
    """What training moves of a quantizer, such as a scale."""


class Fixed(nnx.Variable):
    """What a quantizer was made with, such as bits that are not learned."""


class Observed(nnx.BatchStat):
    """What a quantizer saw of its batches."""


class Static:
    """Rules as a static attribute: hashed by their patterns, since forms are dicts."""

    # No tuple: NNX looks into those for variables.
    def __init__(self, rules: Rules):
        self.rules = tuple(rules)

    def __hash__(self):
        return hash(tuple(rule.pattern for rule in self.rules))

    def __eq__(self, other):
        return isinstance(other, Static) and self.rules == other.rules


class QuantizedModule(nnx.Module):
    """An NNX model and its quantizers; `bitjax.quantize` makes it."""

    # On the class, so that an instance's own may be an nnx.Rngs later: NNX keeps an attribute that
    # began without variables static.
    rngs: nnx.Rngs | None = None

    def __init__(self, model: nnx.Module, rules: Rules, sums: bool):
        self.model = model
        self.sums = sums
        self._static = Static(rules)
        self.axis_name: str | None = None
        self.use_running_average = not _trains(model)
        self.quant = nnx.data({})
        self.quant_stats = nnx.data({})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the model with its tensors quantized."""
        net, trees = split(self.model)
        given, said = said_train(called(self.model), args, kwargs)
        train = not self.use_running_average if said is None else said
        variables = {**trees, QUANT: _arrays(self.quant), STATS: _arrays(self.quant_stats)}
        key = self.rngs.quant() if self.rngs is not None and train else None
        asked = Asked(net.call(trees, args, given, self.sums), train, key)
        # Only the rules and settings of the function are asked for: the call is known.
        settings = NNXFunction(net, net, None, None, self.rules, self.axis_name)
        ran = run(settings, asked, variables, mutable=train)
        net.write(self.model, ran.changed)
        if train:
            self._put(STATS, ran.collections(variables).get(STATS, {}))
        return ran.out

    @property
    def rules(self) -> Rules:
        """What quantizes which sites."""
        return self._static.rules

    def functional(self) -> tuple[NNXFunction, dict[str, Any]]:
        """The function and the variables that bitjax's tools take.

        The function evaluates, whatever this module's mode is, unless it is called with
        `train=True`. Inside `nnx.grad` the variables carry gradients.

        Returns:
          `(function, variables)`; the collections are `params`, `batch_stats`, `cache`, `others`,
          `quant` and `quant_stats`, as far as there are any.
        """
        function, trees = functional(self.model, self.rules, self.axis_name, self.sums)
        own = {QUANT: _arrays(self.quant), STATS: _arrays(self.quant_stats)}
        return function, {**trees, **{name: tree for name, tree in own.items() if tree}}

    def update(self, variables: Mapping[str, Any]) -> None:
        """Puts back variables that a tool changed; collections that are not given stay.

        Args:
          variables: from `functional`, with other values. Quantizers' variables may also be
            others, as `bitjax.attach` makes them.
        """
        own = (QUANT, STATS)
        split(self.model)[0].write(
            self.model, {name: tree for name, tree in variables.items() if name not in own}
        )
        for name in own:
            if name in variables:
                self._put(name, variables[name])

    def _put(self, collection: str, tree: Mapping[str, Any]) -> None:
        """Sets the arrays of one of the two collections; makes variables where paths changed."""
        old: dict[Any, Any] = flatten_dict(getattr(self, collection))
        new = flatten_dict(tree)
        if set(old) != set(new):
            made = {path: self._variable(collection, path)(value) for path, value in new.items()}
            setattr(self, collection, nnx.data(unflatten_dict(made)))
            return
        for path, variable in old.items():
            if variable.get_value() is not new[path]:
                variable.set_value(new[path])

    def _variable(self, collection, path):
        """The type of one leaf's variable."""
        quantizer = quantizer_of(self.rules, "/".join(path[:-1]))
        if collection == STATS:
            return Observed
        return Learned if quantizer is not None and is_learned(quantizer, path[-1]) else Fixed


def quantized(
    model: Any, rules: Rules, batch: tuple, kwargs: Mapping[str, Any], sums: bool
) -> QuantizedModule:
    """The module, with variables that start from a batch."""
    if isinstance(model, QuantizedModule):
        raise TypeError("`model` is quantized already: call bitjax.quantize(model.model, ...).")
    if not isinstance(model, nnx.Module):
        raise TypeError(f"bitjax.quantize takes an nnx.Module, got {advice(model)}.")
    check_types(rules)
    if rules and not (batch or kwargs):
        raise TypeError(
            "bitjax.quantize needs a batch behind the rules, since ranges start from it: "
            "bitjax.quantize(model, rules, x)."
        )
    made = QuantizedModule(model, rules, sums)
    if rules:
        function, trees = functional(model, rules, None, sums)
        made.update(
            jit_arrays(
                _created, trees, batch, dict(kwargs), static=(function,), **compile_quickly()
            )
        )
    return made


def _created(function, trees, args, kwargs):
    """The variables of a function's quantizers, which start from a batch."""
    rngs = {QUANT: jax.random.key(0)}
    asked = function.ask(trees, args, kwargs, rngs=rngs)
    later = later_call(function, asked, trees, args, kwargs, rngs)
    return run(function, asked, trees, creating=True, mutable=True, later=later).collections({})


def _arrays(tree):
    """The values of a tree of variables."""
    return jax.tree.map(
        lambda variable: variable.get_value(),
        tree,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )


def _trains(model):
    """Whether a model is in training: NNX's modules are until eval() is called."""
    for _, module in nnx.iter_modules(model):
        for name in ("use_running_average", "deterministic"):
            if isinstance(value := getattr(module, name, None), bool):
                return not value
    return True
