"""A layer to solve, read off the model's program: its matrix, its leaves, what is behind it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.frameworks.leaves import paths_of, read_leaf
from bitjax.frameworks.probe import ask_outside
from bitjax.program.affine import Chain, chain_of, maps_of
from bitjax.program.consumers import NOTHING, consumers
from bitjax.program.layers import (
    ADDS,
    Place,
    after,
    kernel_argument,
    labels_along,
    places_of,
    varying,
    view_of,
)
from bitjax.program.patches import PatchView

Variables = Mapping[str, Any]
_LAYOUT = (
    "reshape", "broadcast_in_dim", "transpose", "convert_element_type", "squeeze", "expand_dims",
    "copy",
)  # fmt: skip


class Affine(NamedTuple):
    """What is behind a layer, such as a batch normalisation in evaluation: gain * x + offset."""

    gain_M: np.ndarray
    offset_M: np.ndarray


class Slot(NamedTuple):
    """A leaf that takes a layer's intercept: its bias, or a sum's in the map behind it."""

    path: str
    order_M: np.ndarray  # where the leaf holds each of the layer's filters
    gain_M: np.ndarray | None = None  # change of the leaf for an intercept of 1; None of a bias

    def written(self, leaf: Any, intercept_M: Any) -> jax.Array:
        """The leaf with this intercept; it replaces a bias, and is added to another leaf."""
        flat = np.array(leaf).reshape(-1)
        new = np.asarray(intercept_M, np.float32).reshape(-1)
        if self.gain_M is not None:
            new = flat[self.order_M] + np.asarray(self.gain_M, np.float32) * new
        flat[self.order_M] = new.astype(flat.dtype)
        return jax.device_put(flat.reshape(np.shape(leaf)))


class Layer(NamedTuple):
    """A layer of a model with its variables."""

    name: str
    view: PatchView
    path: str  # of its kernel in the variables
    affine: Affine | None  # None behind a normalisation by statistics of the data
    slot: Slot | None  # None where an intercept has no place

    def bias(self, variables: Variables) -> np.ndarray:
        """What the layer adds to its product, [G, M]."""
        groups = self.view.groups
        if self.slot is None or self.slot.gain_M is not None:
            return np.zeros((groups, 1))
        leaf = np.asarray(read_leaf(variables, self.slot.path), np.float64)
        return leaf.reshape(-1)[self.slot.order_M].reshape(groups, -1)

    def matrix(self, variables: Variables) -> np.ndarray:
        """The kernel, [G, M, N]."""
        kernel = np.asarray(read_leaf(variables, self.path))
        return np.asarray(self.view.matrix(kernel), np.float64)


def layer_of(
    model: Any, variables: Variables, args: tuple, kwargs: Mapping[str, Any], name: str
) -> Layer:
    """A layer of a model, with the map of these variables; a ValueError if it has no patches."""
    _, asked = ask_outside(model, variables, args, kwargs)
    call, paths = asked.call, paths_of(asked.call, variables)
    places = places_of(call.program, name)
    views = [view_of(place) for place in places]
    kernels = {kernel_argument(place) for place in places}
    (argument,) = kernels if len(kernels) == 1 else (None,)
    if argument is None or not _alike(views, np.shape(call.leaves[argument])):
        raise ValueError(
            f"layer {name!r} reads its kernel in several ways, so it has no patches to be solved "
            "from: leave it out of `layers`."
        )
    path = paths[argument]
    assert path is not None, "parameters are variables"
    consumer = consumers(call.program).get(name, NOTHING)
    seen = [_behind(*each, paths, call.leaves) for each in zip(places, views, strict=True)]
    affine, slot = (each[0] if _same(each) else None for each in zip(*seen, strict=True))
    return Layer(name, views[0], path, affine if consumer.affine else None, slot)


def _alike(views: Sequence[PatchView], shape: tuple[int, ...]) -> bool:
    """Whether all calls of a layer read the same matrix."""
    if len(views) == 1:
        return True
    numbers = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    return all(np.array_equal(v.matrix(numbers), views[0].matrix(numbers)) for v in views[1:])


def _same(trees: Sequence[Any]) -> bool:
    """Whether all calls of a layer have equal arrays and paths behind them."""
    first, *others = (jax.tree.leaves(tree) for tree in trees)
    return all(
        len(other) == len(first) and all(map(np.array_equal, first, other)) for other in others
    )


def _behind(place: Place, view: PatchView, paths, leaves) -> tuple[Affine | None, Slot | None]:
    """The map behind a call of a layer, and the leaf that takes its intercept."""
    chain = Chain((), place.product.output)
    if not place.outer:
        chain = chain_of(place, place.body.users())
    maps = maps_of(place, chain, leaves) if chain.links else [(np.ones(()), np.zeros(()))]
    order_M = _order(place, view, place.product.output)

    def per_filter(array):
        if array.ndim == 0:
            return np.full(place.product.filters, array)
        shape = [n if label == "k" else 1 for n, label in _axes(place, place.product.output)]
        return np.broadcast_to(array, shape).reshape(-1)[order_M]

    affine = Affine(*(per_filter(array) for array in maps[-1]))
    adds = [op for op in after(place) if op.name in ADDS]
    if adds:
        return affine, _bias(place, view, adds, paths)
    for link, (gain, _) in zip(chain.links, maps, strict=False):
        leaf = _leaf(place, link.number, place.product.output, paths)
        if link.op.name in ("add", "sub") and leaf is not None:
            sign = 1.0 if link.op.name == "add" else -1.0
            return affine, Slot(leaf[0], leaf[1][order_M], sign * per_filter(gain))
    return affine, None


def _bias(place, view, adds, paths) -> Slot:
    if len(adds) == 1:
        (op,) = adds
        (number,) = (i for i in op.ins if place.body.kinds[i].what != "data")
        leaf = _leaf(place, number, op.outs[0], paths)
        if leaf is not None:
            return Slot(leaf[0], leaf[1][_order(place, view, op.outs[0])])
    raise ValueError(
        f"layer {place.product.layer!r} adds parameters to its product that are no bias with one "
        "number per filter: leave it out of `layers`."
    )


def _axes(place: Place, number: int) -> list[tuple[int, str]]:
    """Sizes and meanings of an array's axes, of one between the product and the output."""
    labels = labels_along(place).get(number, [])
    return list(zip(place.body.avals[number].shape, labels, strict=bool(labels)))


def _order(place: Place, view: PatchView, number: int) -> np.ndarray:
    """The index, among an array's filters as they lie, of each filter of the view."""
    body, axes = place.body, _axes(place, number)
    shape = body.avals[number].shape
    own = [n if label == "k" else 1 for n, label in axes]
    ops = after(place)
    made = [place.op.outs[0], *(op.outs[0] for op in ops)]
    rest = ops[made.index(number) :]

    out = np.broadcast_to(np.arange(np.prod(own, dtype=int)).reshape(own), shape)
    for op in rest:
        if op.name == "transpose":
            out = out.transpose(op.eqn.params["permutation"])
        else:
            out = out.reshape(body.avals[op.outs[0]].shape)
    return np.asarray(view.outputs(out, np.zeros(1, np.int32))).reshape(-1)


def _leaf(place: Place, number: int, at: int, paths) -> tuple[str, np.ndarray] | None:
    """The leaf that an array is, if it has one element for each filter of `at`: path and indices.

    The indices say where the leaf holds the filters of `at`, as they lie.
    """
    body, axes = place.body, _axes(place, at)
    filters = {i for i, (_, label) in enumerate(axes) if label == "k"}
    if not axes or not varying(body, number) <= filters:
        return None
    makers = []
    while (maker := body.makers.get(number)) is not None:
        if maker.name not in _LAYOUT:
            return None
        makers.append(maker)
        (number,) = maker.ins
    argument, shape = place.argument(number), body.avals[number].shape
    size = np.prod(shape, dtype=int)
    if argument is None or size != np.prod([axes[i][0] for i in filters], dtype=int):
        return None
    index = jnp.arange(size).reshape(shape)
    for maker in reversed(makers):
        if maker.name != "convert_element_type":
            (index,) = maker([index])
    # One element along the axes of places, of an array that may be broadcast by its addition.
    index = index[tuple(slice(None) if i in filters else slice(0, 1) for i in range(index.ndim))]
    path = paths[argument]
    return None if path is None or index.size != size else (path, np.asarray(index).reshape(-1))
