"""A deployed model in NumPy, one node after the other: slow, obvious, and free of JAX.

Sums of products are int64, and so exact. What stands between them is float32 as in every other
reader; a product and the sum that reads it are rounded once, as compilers do on CPUs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bitjax.export.nodes import (
    DEQUANTIZE,
    LOOKUP,
    QUANTIZE,
    Graph,
    Node,
    Ran,
    arrays_of,
    extra_examples,
    grown,
    layer_error,
    sums_of,
    tensors_of,
)
from bitjax.export.numpy_ops import MOVES, ONE, PRODUCTS, REDUCE, SAME, TWO


def interpret(graph: Graph, *args: Any, **kwargs: Any) -> Ran:
    """The output of a graph, and the integers and sums of all sites, in NumPy.

    Args:
      graph: what `graph_of` gave.
      *args: positional arguments of the model.
      **kwargs: keyword arguments of the model.

    Raises:
      ValueError: an array does not fit, or the model computes something that is not known here; the
        message names the layer and the primitive.

    Example:
      >>> import bitjax as bj, flax.linen as nn, jax
      >>> from bitjax.export.graph import graph_of
      >>> model = bj.Quantized(nn.Dense(2), [bj.rule(".*", bj.lsq(bits=4))])
      >>> x = np.array([[1.0, -2.0, 4.0]], np.float32)
      >>> fixed = bj.deploy(model, model.init(jax.random.key(0), x), x)
      >>> interpret(graph_of(fixed, x), x).integers
      {'input': array([[ 2, -4,  7]], dtype=int32)}
    """
    arrays = {i: np.asarray(x) for i, x in arrays_of(graph, args, kwargs).items()}
    extra = int(extra_examples(graph, arrays))
    values: dict[int, np.ndarray] = {**graph.constants, **arrays}
    products: dict[int, np.ndarray] = {}  # of two float32, in float64: exact
    for node in graph.nodes:
        given = [values[i] for i in node.ins]
        single = np.dtype(graph.values[node.outs[0]].dtype) == np.float32
        if single and node.op in (DEQUANTIZE, "mul"):
            wide = [x.astype(np.float64) for x in given]
            products[node.outs[0]] = np.asarray(_compute(node, node.params, wide)[0])
        place = next((k for k, i in enumerate(node.ins) if i in products), None)
        if single and node.op in ("add", "add_any", "sub") and place is not None:
            given[place] = products[node.ins[place]]
        results = _compute(node, grown(node, extra), given)
        for number, x in zip(node.outs, results, strict=True):
            values[number] = np.asarray(x, graph.values[number].dtype)
    out = graph.out_tree.unflatten([values[i] for i in graph.outputs])
    levels = {node.outs[0] for node in graph.nodes if node.op == LOOKUP}
    integers = {
        name: values[i] if i in levels else values[i].astype(np.int32)
        for name, i in tensors_of(graph).items()
    }
    return Ran(out, integers, {name: values[i] for name, i in sums_of(graph).items()})


def _compute(node: Node, params: Mapping[str, Any], given: list[np.ndarray]) -> Sequence[Any]:
    op, x = node.op, given[0] if given else np.zeros(())
    if op == QUANTIZE:
        return [_integers(x, params)]
    if op == DEQUANTIZE:
        return [x * spread(params["scale"], x.shape)]
    if op == LOOKUP:
        return [_by_block(x, params["edges"], params["levels"])]
    if op in ONE:
        return [ONE[op](x)]
    if op in TWO:
        return [TWO[op](x, given[1])]
    if op in REDUCE:
        return [REDUCE[op](x, axis=params["axes"])]
    if op in SAME:
        return [x]
    if op in PRODUCTS:
        exact = "accumulator" in params
        wide = [a.astype(np.int64 if exact else np.float32) for a in given]
        return [PRODUCTS[op](params, *wide)]
    if op == "optimization_barrier":
        return given
    move = MOVES.get(op)
    if move is None:
        raise layer_error(node, "the interpreter")
    return [move(params, *given)]


# ---- quantizers ---------------------------------------------------------------------------------


def spread(param: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A parameter of blocks in a form that broadcasts against a tensor's shape."""
    if param.ndim == 0:
        return param
    for axis, (have, want) in enumerate(zip(param.shape, shape, strict=True)):
        if have not in (1, want):
            param = np.repeat(param, want // have, axis=axis)
    return param


def _integers(x, params):
    first, last, rate = (spread(params[n], x.shape) for n in ("first", "last", "rate"))
    if params["edges"] is not None:
        return first + _by_block(x, params["edges"])
    if params["coding"] == "signs":
        return np.where(x >= 0, 1.0, -1.0)
    return np.clip(np.rint(x * rate), first, last)


def _by_block(x, edges, levels=None):
    """How many of its block's edges each element reaches, or the level of so many."""
    entries = edges.reshape(-1, edges.shape[-1])
    place = spread(np.arange(len(entries)).reshape(edges.shape[:-1]), x.shape)
    place, found = np.broadcast_to(place, x.shape), np.zeros(x.shape, np.float32)
    for i, own in enumerate(entries):
        count = np.searchsorted(own, x[place == i], side="right")
        found[place == i] = (
            count if levels is None else levels.reshape(-1, levels.shape[-1])[i, count]
        )
    return found
