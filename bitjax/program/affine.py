"""The affine map of each channel behind a layer: a batch normalisation in evaluation, or a scale.

It is a chain of sums and products with arrays that depend on no data: parameters, statistics,
constants.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bitjax.program.body import Body, Op
from bitjax.program.layers import Place, labels_along, varying

AFFINE = ("add", "sub", "mul", "div")
_CASTS = ("convert_element_type", "copy", "name", "reduce_precision")


class Link(NamedTuple):
    """One operation of a chain."""

    op: Op
    number: int  # its other operand
    first: bool  # whether that is the first operand, as in 1 - x


class Chain(NamedTuple):
    """An affine map of each channel."""

    links: tuple[Link, ...]
    end: int  # the array behind it


def chain_of(place: Place, users: Mapping[int, Sequence[Op]]) -> Chain:
    """The longest affine chain behind a layer's output that alone reads it."""
    body, number = place.body, place.product.output
    labels = labels_along(place).get(number)
    links: list[Link] = []
    end = number
    # Of casts only those count that an affine operation follows.
    while labels is not None and number not in body.outs:
        readers = users.get(number, ())
        if len(readers) != 1:
            break
        (op,) = readers
        link = _link(body, op, number, labels)
        if link is not None:
            links.append(link)
            end = op.outs[0]
        elif op.name not in _CASTS:
            break
        number = op.outs[0]
    return Chain(tuple(links), end)


def _link(body: Body, op: Op, number: int, labels: Sequence[str]) -> Link | None:
    if op.name not in AFFINE or op.product is not None or op.ins.count(number) != 1:
        return None
    (at,) = (i for i, n in enumerate(op.ins) if n != number)
    other, first = op.ins[at], at == 0
    if body.kinds[other].what == "data" or (op.name == "div" and first):
        return None
    if body.avals[op.outs[0]].shape != body.avals[number].shape:
        return None
    if any(labels[axis] != "k" for axis in varying(body, other)):
        return None
    return Link(op, other, first)


def evaluate(body: Body, numbers: Iterable[int], arguments: Sequence[Any]) -> dict[int, Any]:
    """The values of arrays that depend on no data, from the body's arguments."""
    numbers = list(numbers)
    values = {**body.fixed, **dict(zip(body.ins, arguments, strict=True))}
    needed, waiting = set(), list(numbers)
    while waiting:
        maker = body.makers.get(waiting.pop())
        if maker is not None and id(maker) not in needed:
            needed.add(id(maker))
            waiting += maker.ins
    for op in body.ops:
        if id(op) in needed:
            values.update(zip(op.outs, op([values[i] for i in op.ins]), strict=True))
    return {number: values[number] for number in numbers}


def maps_of(
    place: Place, chain: Chain, arguments: Sequence[Any]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(gain, offset) in front of each link and behind the last one, float64.

    They are numbers, or have the layer's output's rank and one element along axes of places.
    """
    values = evaluate(place.body, [link.number for link in chain.links], arguments)
    labels = labels_along(place).get(place.product.output, [])
    one = tuple(slice(None) if label == "k" else slice(0, 1) for label in labels)
    gain, offset = np.ones(()), np.zeros(())
    found = [(gain, offset)]
    for link in chain.links:
        c = np.asarray(values[link.number], np.float64)
        c = c[one] if c.ndim else c
        if link.op.name == "mul":
            gain, offset = gain * c, offset * c
        elif link.op.name == "div":
            gain, offset = gain / c, offset / c
        elif link.op.name == "add":
            offset = offset + c
        elif link.first:
            gain, offset = -gain, c - offset
        else:
            offset = offset - c
        found.append((gain, offset))
    return found
