"""Follows a product's operands back to where they are quantized, and its result to its output."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from bitjax.program.body import Body, Op
from bitjax.program.labels import MOVES, TAKES, Labels, axes_of, labels_before
from bitjax.program.macs import multiplies
from bitjax.program.masks import is_zero
from bitjax.program.naming import common
from bitjax.program.values import KERNEL_NAMES, TABLE_NAME, Kind, Operand, Site, Step

# What a layer does to its product besides adding a bias.
_AFTERWARDS = ("reshape", "convert_element_type", "squeeze", "expand_dims", "copy", "transpose")


def kernel_of(
    body: Body, op: Op, position: int, labels: Labels, layers: Mapping[str, str]
) -> Operand:
    """A kernel: back through moves to its parameter, or to what was computed of parameters."""

    def may_pass(maker: Op) -> bool:
        return maker.name in MOVES or maker.name in TAKES

    def site(number: int, labels: Labels) -> Site:
        kind, aval = body.kinds[number], body.avals[number]
        # Of several parameters, as in weight normalisation, the largest one gives the name.
        leaf = max(kind.leaves, key=lambda leaf: leaf.size)
        layer = layers[leaf.path]
        return _site(layer, "kernel", aval, labels, kind.steps)._replace(masked=kind.masked)

    return _follow(body, op, position, labels, "param", may_pass, site)


def tensor_of(
    body: Body,
    op: Op,
    position: int,
    labels: Labels,
    layer: str,
    role: str,
    steps: tuple[Step, ...],
) -> Operand:
    """An array of data: back through the layer's own casts and layout only.

    An addend of a sum also through a shortcut that takes pixels and pads channels with zeros: what
    it shortens is the array that the next layer reads, and is to have one site's numbers with it.
    """

    def may_pass(maker: Op) -> bool:
        if maker.scope != op.scope:
            return False
        return maker.name in MOVES or (op.name == "add" and _shortens(body, maker))

    def site(number: int, labels: Labels) -> Site:
        found = _site(layer, role, body.avals[number], labels, steps)
        # Learned queries and positions have no examples.
        return found if what == "data" else found._replace(axes=found.axes._replace(example=None))

    what = body.kinds[op.ins[position]].what  # parameters, where learned queries are the input
    return _follow(body, op, position, labels, what, may_pass, site)


def _shortens(body, maker):
    """Whether an operation takes some elements of an array, or pads it with zeros."""
    return maker.name == "slice" or (maker.name == "pad" and is_zero(body, maker.ins[1]))


def kernel_among(kinds: Sequence[Kind]) -> int | None:
    """Which operand of a product is the kernel of a layer that parameters are the input of."""
    # Learned queries are projected like data. But a kernel that is computed of several parameters
    # of its layer, as `W + A @ B` is, stays one kernel.
    if any(kind.what != "param" for kind in kinds):
        return None
    found = [
        i for i, kind in enumerate(kinds)
        if len(kind.leaves) == 1 and kind.leaves[0].path.rpartition("/")[2] in KERNEL_NAMES
    ]  # fmt: skip
    if len(found) != 1:
        return None
    (k,) = found
    around = _parent(kinds[k].leaves[0].path)
    beside = any(_inside(leaf.path, around) for leaf in kinds[1 - k].leaves)
    return None if beside else k


def is_lookup(body: Body, op: Op) -> bool:
    """Whether a gather looks up rows of a table that is a parameter."""
    table, index = (body.kinds[i] for i in op.ins[:2])
    if not table.leaves or not jnp.issubdtype(body.avals[op.ins[0]].dtype, jnp.floating):
        return False
    if index.what == "data":
        return True
    # One of positions is the same table whether they are counted or told.
    named = [leaf.path.rpartition("/")[2] for leaf in table.leaves] == [TABLE_NAME]
    return index.what == "neutral" and named


def _inside(path, module):
    return not module or path.startswith(f"{module}/")


def kernels_of(op: Op) -> list[int]:
    """Which operands of an operation are kernels: one at most, none if it is no product."""
    operands = op.product.operands if op.product is not None else {}
    return [i for i, operand in operands.items() if operand.role == "kernel"]


def _site(layer, role, aval, labels, steps):
    name = f"{layer}/{role}" if layer else role
    return Site(name, layer, role, tuple(aval.shape), aval.dtype, axes_of(labels, role), steps)


def _follow(
    body: Body,
    op: Op,
    position: int,
    labels: Labels,
    what: str,
    may_pass: Callable[[Op], bool],
    site: Callable[[int, Labels], Site],
) -> Operand:
    origins: dict[int, Site] = {}
    moves: list[Op] = []

    def back(number: int, labels: Labels) -> None:
        maker = body.makers.get(number)
        if maker is not None and may_pass(maker):
            before = {
                i: labels_before(maker.eqn, labels, at)
                for at, i in enumerate(maker.ins)
                if body.kinds[i].what == what
            }
            if before and None not in before.values() and _numbers(body, before):
                for i, own in before.items():
                    assert own is not None
                    back(i, own)
                if maker not in moves:
                    moves.append(maker)
                return
        if number not in origins:
            origins[number] = site(number, labels)

    back(op.ins[position], labels)
    first = next(iter(origins))
    return Operand(origins[first].role, origins, tuple(moves), body.avals[first].size)


def _numbers(body, before):
    """Whether all of these arrays hold numbers: a cast from bool or from codes is no cast."""
    return all(jnp.issubdtype(body.avals[i].dtype, jnp.number) for i in before)


def output_of(body: Body, users: Mapping[int, list[Op]], op: Op) -> int:
    """The array that a product's layer gives: behind its bias and its own casts and layout."""
    number = op.outs[0]
    product = op.product
    assert product is not None
    kernels = [o for o in product.operands.values() if o.role == "kernel"]
    if not kernels:
        return number
    own = {_parent(leaf.path) for o in kernels for i in o.origins for leaf in body.kinds[i].leaves}
    while number not in body.outs and len(readers := users.get(number, [])) == 1:
        (reader,) = readers
        moved = reader.name in _AFTERWARDS and reader.module == product.scope
        if not moved and not (reader.name == "add" and _adds_bias(body, reader, number, own)):
            break
        number = reader.outs[0]
    return number


def leaving(body: Body, users: Mapping[int, list[Op]]) -> dict[int, str]:
    """The arrays of data that leave a scope, by number, but for the outputs of products' layers."""
    found = {}
    for op in body.ops:
        own = op.module
        for number in op.outs if own else ():
            if body.kinds[number].what != "data" or number in body.outputs:
                continue
            others = (reader.module for reader in users.get(number, ()))
            if number in body.outs or not all(f"{s}/".startswith(f"{own}/") for s in others):
                found[number] = own
    return found


def _adds_bias(body, op, number, own):
    """Whether an addition adds a parameter that is beside the kernel."""
    others = [body.kinds[i].leaves for i in op.ins if i != number]
    return len(others) == 1 and any(_parent(leaf.path) in own for leaf in others[0])


def _parent(path):
    return path.rpartition("/")[0]


def sources_of(body: Body, number: int) -> frozenset[int]:
    """The results of products, bodies and the arguments that an array is made of."""
    found: set[int] = set()
    seen = {number}
    waiting = [number]
    while waiting:
        i = waiting.pop()
        maker = body.makers.get(i)
        if body.kinds[i].what != "data":
            continue
        if maker is None or multiplies(maker.eqn) or maker.bodies:
            found.add(i)
            continue
        new = set(maker.ins) - seen
        seen |= new
        waiting += new
    return frozenset(found)


def scope_from_kernels(body: Body, op: Op) -> str:
    """The common path of the layers that a product of two data arrays, or a mark, comes from."""
    parents = []
    for number in op.ins[:2]:
        for i in sources_of(body, number):
            maker: Any = body.makers.get(i)
            if maker is not None and maker.product is not None:
                parents.append(_parent(maker.product.layer))
    return common(parents) if parents else ""
