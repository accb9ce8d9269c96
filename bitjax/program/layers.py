"""A layer in a traced program: its product, its parameters, and what follows up to its output."""

import copy
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from bitjax.program.body import Body, Op
from bitjax.program.control import REMAT
from bitjax.program.labels import MOVES, Labels, labels_after
from bitjax.program.operands import kernels_of
from bitjax.program.patches import Moves, PatchView, moves_of, patch_view
from bitjax.program.program import Program
from bitjax.program.values import Operand, Product

ADDS = ("add", "add_any")


class Place(NamedTuple):
    """One product of a layer, in the program itself or in a body that it computes again."""

    body: Body
    op: Op
    outer: tuple[tuple[Body, Op], ...] = ()  # the bodies around it with the operations in them

    def argument(self, number: int) -> int | None:
        """Which of the program's flat arguments an array is; None of one that is computed."""
        body, outer = self.body, list(self.outer)
        while number in body.ins:
            index = body.ins.index(number)
            if not outer:
                return index
            body, op = outer.pop()
            number = op.ins[index]
        return None

    @property
    def product(self) -> Product:
        """What the program knows of it."""
        assert self.op.product is not None
        return self.op.product

    @property
    def position(self) -> int:
        """Which of its operands is the kernel."""
        return kernels_of(self.op)[0]

    @property
    def kernel(self) -> Operand:
        """The operand that is the kernel."""
        return self.product.operands[self.position]


def places_of(program: Program, layer: str) -> list[Place]:
    """The calls of a layer in forward order; a ValueError if it has none that can be looked at."""
    found = list(_places(program.body, layer, ()))
    if not found:
        raise ValueError(f"`layer` {layer!r} is no layer of the model.")
    for place in found:
        if place.kernel.site.steps:
            raise ValueError(
                f"layer {layer!r} stands for the layers of a scan, which have no patches of their "
                "own: leave it out of `layers`."
            )
        inside = [op.name for _, op in place.outer if op.name not in REMAT]
        if inside:
            raise ValueError(
                f"layer {layer!r} is computed inside a {inside[0]}, which hands no patches out: "
                "leave it out of `layers`."
            )
    return found


def _places(body: Body, layer: str, outer: tuple[tuple[Body, Op], ...]) -> Iterator[Place]:
    for op in body.ops:
        kernels = [op.product.operands[i] for i in kernels_of(op)] if op.product else []
        if any(site.layer == layer for o in kernels for site in o.origins.values()):
            yield Place(body, op, outer)
        for inner in op.bodies:
            yield from _places(inner, layer, (*outer, (body, op)))


def kernel_argument(place: Place) -> int:
    """Which of the program's flat arguments is the kernel; a ValueError if it is computed."""
    operand = place.kernel
    if len(operand.origins) == 1:
        (number,) = operand.origins
        argument = place.argument(number)
        if argument is not None:
            return argument
    raise ValueError(
        f"layer {place.product.layer!r} computes its kernel from its parameters (as a mask or "
        "weight normalisation does), so it has no patches to be solved from: leave it out of "
        "`layers`."
    )


def view_of(place: Place) -> PatchView:
    """The layer as a matrix; its `outputs` take the layer's output, its `kernel` the parameter."""
    kernel_argument(place)  # for its refusal
    body, op = place.body, place.op
    lhs, rhs = (body.avals[i] for i in op.ins[:2])
    moves = _kernel_moves(place)
    view = patch_view(place.product.layer, op.name, op.eqn.params, lhs, rhs, place.position, moves)
    followed = [later for later in after(place) if later.name not in ADDS]
    if all(later.name != "transpose" for later in followed):
        return view  # reshapes alone are undone by the view
    return view._replace(
        outputs=lambda out, places: view.outputs(_moved_back(body, followed, out), places)
    )


def _kernel_moves(place: Place) -> Moves | None:
    body, operand = place.body, place.kernel
    if not operand.moves:
        return None
    (number,) = operand.origins
    layer = place.product.layer

    def forward(parameter):
        local = {number: parameter}
        for move in operand.moves:
            given = [local[i] if i in local else body.fixed[i] for i in move.ins]
            local.update(zip(move.outs, move(given), strict=True))
        return local[place.op.ins[place.position]]

    made = {number, *body.fixed, *(i for move in operand.moves for i in move.outs)}
    if any(i not in made for move in operand.moves for i in move.ins):
        raise ValueError(
            f"layer {layer!r} picks elements of its kernel by an array, so it has no patches to be "
            "solved from: leave it out of `layers`."
        )
    return moves_of(layer, forward, body.avals[number])


def after(place: Place) -> list[Op]:
    """The operations behind the product up to the layer's output: its bias and its own layout."""
    body, number, found = place.body, place.product.output, []
    while number != place.op.outs[0]:
        maker = body.makers[number]
        found.append(maker)
        (number,) = {i for i in maker.ins if body.kinds[i].what == "data"}
    return found[::-1]


def _moved_back(body, followed, out):
    for op in reversed(followed):
        if op.name == "transpose":
            out = out.transpose(np.argsort(op.eqn.params["permutation"]))
        else:
            out = out.reshape(body.avals[op.ins[0]].shape)
    return out


def labels_along(place: Place) -> dict[int, Labels]:
    """What the axes mean of the product's result and of each array up to the layer's output.

    `k` is an axis of filters, `t` one of places. Arrays whose axes mix the two are left out.
    """
    params, rank = place.op.eqn.params, place.op.eqn.outvars[0].aval.ndim
    if place.op.name == "conv_general_dilated":
        channel = params["dimension_numbers"].out_spec[1]
        labels = ["k" if i == channel else "t" for i in range(rank)]
    elif place.op.name == "dot_general":
        contract, batch = params["dimension_numbers"]
        groups = len(batch[0])
        left = place.op.eqn.invars[0].aval.ndim - len(contract[0])  # axes before the right's own
        sides = ("k", "t") if place.position == 0 else ("t", "k")
        labels = ["k" if i < groups else sides[i >= left] for i in range(rank)]
    else:
        return {}
    found = {place.op.outs[0]: labels}
    for op in after(place):
        known = labels if op.name in ADDS else labels_after(op.eqn, labels)
        if known is None:
            break
        found[op.outs[0]] = labels = known
    return found


def giving(program: Program, numbers: Iterable[int]) -> Program:
    """The program with other results: arrays of its own body, by number."""
    body = copy.copy(program.body)
    body.outs = list(numbers)
    return program._replace(body=body)


def varying(body: Body, number: int) -> set[int]:
    """The axes along which an array may hold different values, as far as its operations tell."""
    shape = body.avals[number].shape
    axes = {i for i, n in enumerate(shape) if n > 1}
    maker = body.makers.get(number)
    if maker is None or not axes:
        return axes
    if maker.name == "broadcast_in_dim":
        to = maker.eqn.params["broadcast_dimensions"]
        return {to[i] for i in varying(body, maker.ins[0])}
    if maker.name in MOVES and len(maker.ins) == 1:
        before = body.avals[maker.ins[0]].shape
        moved = maker.name in ("transpose", "rev") or tuple(before) != tuple(shape)
        return axes if moved else varying(body, maker.ins[0])
    if maker.name in _ELEMENTWISE:
        return {axis for i in maker.ins for axis in varying(body, i)}
    return axes


_ELEMENTWISE = frozenset(
    "add sub mul div max min neg abs rsqrt sqrt exp log tanh square pow integer_pow".split()
)
