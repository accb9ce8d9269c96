"""How far a value lies from the boundary between the code that it has and another one."""

from typing import Any

import numpy as np

from bitjax.export.forms import spread
from bitjax.export.nodes import LOOKUP, Node


def margins(node: Node, x: np.ndarray, own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The distances of the values whose codes differ, relative to the boundaries, in their order.

    `own` and `other` are what the node gives for x here and elsewhere: integers, or levels where a
    table quantizes. Where codes are several apart it is the farthest boundary between them.
    """
    where = own != other
    value, first, second = (np.asarray(a[where], np.float64) for a in (x, own, other))
    if node.op == LOOKUP or node.params.get("edges") is not None:
        return _from_edges(node, x.shape, where, value, first, second)
    if node.params["coding"] == "signs":  # no number is relative to the boundary 0
        return np.abs(value) / max(float(np.abs(x).max()), np.finfo(np.float32).tiny)
    value = value * _of_blocks(node.params["rate"], x.shape)[where]
    boundary = second - 0.5 * np.sign(second - first)
    return np.abs(value - boundary) / np.abs(boundary)


def _from_edges(node, shape, where, value, first, second):
    params = node.params
    edges = _rows(params["edges"], shape, where)
    if node.op == LOOKUP:
        levels = _rows(params["levels"], shape, where)
        begin = (edges <= value[:, None]).sum(-1)
        end = np.abs(levels - second[:, None]).argmin(-1)
    else:
        lowest = _of_blocks(params["first"], shape)[where]
        begin, end = (np.rint(a - lowest).astype(int) for a in (first, second))
    place = np.clip(np.where(end > begin, end - 1, end), 0, edges.shape[-1] - 1)
    boundary = edges[np.arange(len(place)), place].astype(np.float64)
    return np.abs(value - boundary) / np.maximum(np.abs(boundary), np.finfo(np.float32).tiny)


def _of_blocks(leaf: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A leaf with an entry for each element of a tensor."""
    return np.broadcast_to(spread(np.asarray(leaf), shape), shape)


def _rows(table: Any, shape: tuple[int, ...], where: np.ndarray) -> np.ndarray:
    """The table of the block of each chosen element."""
    table = np.asarray(table)
    block = table.shape[:-1]
    place = _of_blocks(np.arange(int(np.prod(block))).reshape(block), shape)
    return table.reshape(-1, table.shape[-1])[place[where]]
