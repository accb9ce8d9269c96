"""An NNX model as a function of its variables: split into arrays, merged inside the trace."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from bitjax.frameworks.arguments import as_training, split_train
from bitjax.frameworks.call import Asked, Given, Variables
from bitjax.program.trace import Call, Traced
from bitjax.rules import Rules
from bitjax.variables import QUANT, read_path

_TRACED = Traced()
# Collections by the types of variables, named as in Linen. Caches hold data, the rest does not.
_COLLECTIONS = ((nnx.Param, "params"), (nnx.Cache, "cache"), (nnx.BatchStat, "batch_stats"))
_OTHERS, _NEW = "others", "new"


class Place(NamedTuple):
    """Where one variable lies."""

    collection: str
    names: tuple[str, ...]  # its path in that collection
    path: tuple[Any, ...]  # its path in the model, where a list counts by integers
    empty: Any  # the nnx.Variable without its value; None of an array that is an attribute itself


class Net(NamedTuple):
    """A model without its arrays."""

    graph: Any  # nnx.GraphDef
    places: tuple[Place, ...]

    def merge(self, trees: Mapping[str, Any]) -> Any:
        """The model with these arrays, as a new object."""
        return nnx.merge(self.graph, self._state(trees, self.places))

    def write(self, model: Any, changed: Mapping[str, Any]) -> None:
        """Puts arrays that a call changed into a model, and variables that it made."""
        flat = {name: flatten_dict(tree) for name, tree in changed.items() if name != _NEW}
        # A variable may hold a tuple or a dict, so that not every path ends at one.
        touched = {(name, names[:n]) for name, tree in flat.items() for names in tree
                   for n in range(len(names) + 1)}  # fmt: skip
        places = [place for place in self.places if (place.collection, place.names) in touched]
        if places:
            nnx.update(model, self._state(changed, places))
        new: list[tuple[Any, Any]] = list(nnx.to_flat_state(changed.get(_NEW, nnx.State({}))))
        for (*parents, name), variable in new:
            node = model
            for part in parents:
                named = isinstance(part, str) and hasattr(node, part)
                node = getattr(node, part) if named else node[part]
            setattr(node, name, variable)

    def call(self, trees: Variables, args: tuple, kwargs: Mapping[str, Any], sums: bool) -> Call:
        """The program of a call: its result is the output, and the collections that changed."""
        data = {"cache": trees["cache"]} if "cache" in trees else {}
        known = {place.collection for place in self.places} - {"params", *data}
        neutral = {name: trees[name] for name in known}

        def function(params, neutral, data):
            more, args, kwargs = data
            model = self.merge({"params": params, **neutral, **more})
            before = _values(model)
            out = model(*args, **kwargs)
            return out, self._changed(model, before)

        params, given = trees.get("params", {}), (data, args, dict(kwargs))
        return _TRACED(function, (self.graph, sums), params, neutral, given, sums=sums)

    def _state(self, trees, places):
        values = [(place, read_path(trees[place.collection], place.names)) for place in places]
        return nnx.from_flat_state(
            [(p.path, x if p.empty is None else p.empty.copy(x)) for p, x in values]
        )

    def _changed(self, model, before):
        """The collections of the variables that a call replaced, and a state of new ones."""
        after = _values(model)
        flat: dict[str, dict[tuple, Any]] = {}
        for place in self.places:
            if place.path in after and after[place.path] is not before[place.path]:
                flat.setdefault(place.collection, {})[place.names] = after[place.path]
        new = [(path, v) for path, v in _flat(model) if path not in before]
        changed = {name: unflatten_dict(tree) for name, tree in flat.items()}
        return {**changed, _NEW: nnx.from_flat_state(new)} if new else changed


def split(model: Any) -> tuple[Net, dict[str, Any]]:
    """A model as what is static of it, and its arrays by collection and path."""
    graph, state = nnx.split(model)
    places, flat = [], {}
    for path, variable in nnx.to_flat_state(state):
        collection = next((n for kind, n in _COLLECTIONS if isinstance(variable, kind)), _OTHERS)
        names = tuple(map(str, path))
        held = isinstance(variable, nnx.Variable)
        places.append(Place(collection, names, path, variable.copy(None) if held else None))
        flat.setdefault(collection, {})[names] = _value(variable)
    return Net(graph, tuple(places)), {name: unflatten_dict(tree) for name, tree in flat.items()}


@dataclass(frozen=True)
class NNXFunction:
    """An NNX model and rules without variables, for the tools; `functional()` makes it."""

    evaluating: Net
    training: Net
    called: Any  # what tells the arguments' names
    shapes: Any  # of the variables
    rules: Rules = ()
    axis_name: str | None = None
    sums: bool = False

    def with_rules(self, rules: Rules, axis_name: str | None = None) -> "NNXFunction":
        """The model under other rules."""
        return replace(self, rules=tuple(rules), axis_name=axis_name)

    def clone(self, **changes: Any) -> "NNXFunction":
        """The model with other settings."""
        return replace(self, **changes)

    def as_training(
        self, args: tuple, kwargs: Mapping[str, Any], method: Any = None
    ) -> Given | None:
        """The arguments of the training call; None if these are."""
        del method  # only calls are quantized
        if split_train(self.called, args, kwargs)[1]:
            return None
        return as_training(self.called, args, kwargs) or (args, {**kwargs, "train": True})

    def normalising(self) -> "NNXFunction":
        """The model in evaluation, but for batch normalisations, which use and keep their batch."""
        model = self.evaluating.merge(self.shapes)
        model.set_attributes(
            nnx.BatchNorm, use_running_average=False, momentum=0.0, axis_name=None,
            raise_if_not_found=False,
        )  # fmt: skip
        return replace(self, evaluating=split(model)[0])

    def ask(
        self,
        variables: Variables,
        args: tuple,
        kwargs: Mapping[str, Any],
        *,
        rngs: Any = None,
        mutable: Any = (),
        method: Any = None,
    ) -> Asked:
        """The program of a call; `train=True` takes the model as `train()` leaves it."""
        del mutable, method  # what a call changes of the model is among its results
        given, train = split_train(self.called, args, kwargs)
        net = self.training if train else self.evaluating
        call = net.call(variables, args, given, self.sums)
        return Asked(call, train, (rngs or {}).get(QUANT))


def functional(
    model: Any, rules: Rules, axis_name: str | None, sums: bool
) -> tuple[NNXFunction, Any]:
    """The function of a model, and the arrays of the model."""
    net, trees = split(model)
    shapes = jax.eval_shape(lambda: trees)
    # Copies, because the model's own mode is to stay.
    training, evaluating = net.merge(trees), net.merge(trees)
    training.train()
    evaluating.eval()
    nets = split(evaluating)[0], split(training)[0]
    return NNXFunction(*nets, called(model), shapes, tuple(rules), axis_name, sums=sums), trees


def called(model: Any) -> Any:
    """The function whose arguments a call gives, without the model itself."""
    # The arguments of nnx.Sequential are those of its first layer.
    while isinstance(model, nnx.Sequential) and isinstance(model.layers[0], nnx.Module):
        model = model.layers[0]
    return partial(type(model).__call__, None)


def _flat(model):
    return list(nnx.to_flat_state(nnx.state(model)))


def _values(model):
    return {path: _value(variable) for path, variable in _flat(model)}


def _value(variable):
    return variable.get_value() if isinstance(variable, nnx.Variable) else variable
