"""A deployed model as a flat list of nodes: integer products, and floats between them.

Every reader of a model's program (JAX, NumPy, ONNX) reads this one form. All that depends on
parameters and constants alone is computed; calls are inlined; what no output needs is gone.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

# Nodes go by the names of JAX's primitives, with their parameters, but for these three:
#
#   quantize    x -> integers, as float32 whole numbers: clip(rint(x * rate), first, last).
#               With `edges`: first + how many of them are at most x. With the coding `signs`: 1
#               where x >= 0, else -1. Parameters are arrays of the block's shape
#               (`bitjax.quantizers.blocks`); edges are behind its axes.
#   dequantize  integers -> levels: integers * scale
#   lookup      x -> levels[code], code = how many of the `edges` are at most x
QUANTIZE, DEQUANTIZE, LOOKUP = "quantize", "dequantize", "lookup"


class Value(NamedTuple):
    """An array of the graph.

    Attributes:
      shape: as traced.
      dtype: of NumPy.
      growth: for each axis, by how much it grows when the batch has one example more.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    growth: tuple[int, ...]

    @property
    def batch_axis(self) -> int | None:
        """The axis that grows with the batch."""
        return next((i for i, n in enumerate(self.growth) if n), None)


class Node(NamedTuple):
    """An operation of the graph.

    Attributes:
      op: a primitive of JAX, or `quantize`, `dequantize`, `lookup`.
      ins: numbers of the arrays it reads.
      outs: numbers of the arrays it gives.
      params: its parameters. A product of integers has `accumulator`: `float32`, which holds its
        sums exactly; `int32`, which its result then has; or `rounded`, float32 although sums may
        pass 2^31; and `largest`, which bounds the integers of its first operand.
      name: the path of its layer or module; of the three operations of ours the first site.
      growth: of parameters that are sizes, by how much each grows with one example more.
      eqn: JAX's equation; None of nodes that were made here.
    """

    op: str
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    params: Mapping[str, Any]
    name: str
    growth: Mapping[str, tuple[int, ...]] = {}
    eqn: Any = None


class Kernel(NamedTuple):
    """A quantized kernel.

    Attributes:
      number: the constant that products read: moved integers where `whole`, else float levels.
      whole: whether products read its integers.
      codes: int32, of the parameter's shape.
      integers: `scale * integers` are the levels; None of a table.
      levels: float32, of the parameter's shape.
      bits: of the block's shape, as are `scale`, `first` and `last`, which a table has not.
      scale: the level of the integer 1.
      first: the least integer.
      last: the greatest integer.
      coding: how codes hold integers: `offset`, `sign_magnitude`, `signs`, or `table`.
      table: the level of each code, behind the block's axes; None of what has integers.
    """

    number: int
    whole: bool
    codes: np.ndarray
    integers: np.ndarray | None
    levels: np.ndarray
    bits: np.ndarray
    scale: np.ndarray | None = None
    first: np.ndarray | None = None
    last: np.ndarray | None = None
    coding: str = "offset"
    table: np.ndarray | None = None


class Place(NamedTuple):
    """Where a quantized site is.

    Attributes:
      layer: its layer.
      role: `kernel`, `input`, `left`, `right` or `cache`.
      tensors: numbers of the arrays that are quantized, before: one for each call of the layer.
      results: numbers of their integers, or of their levels where a table quantizes.
    """

    layer: str
    role: str
    tensors: tuple[int, ...]
    results: tuple[int, ...]


class Graph(NamedTuple):
    """A model's evaluation.

    Attributes:
      nodes: in the order in which they can run.
      inputs: names of the data arrays by number, in the order of the call's arguments.
      outputs: numbers of the output's arrays.
      constants: arrays by number; kernels that products read as integers in the least integer type.
      literals: numbers of the constants that depend on no variable.
      values: shape and dtype by number, of constants too.
      sites: by name, inputs and kernels in forward order.
      kernels: by site.
      batch: the batch that was traced; None where the program is made for one batch alone.
      out_tree: the output's structure, of `jax.tree.unflatten`.
    """

    nodes: tuple[Node, ...]
    inputs: dict[int, str]
    outputs: tuple[int, ...]
    constants: dict[int, np.ndarray]
    literals: frozenset[int]
    values: dict[int, Value]
    sites: dict[str, Place]
    kernels: dict[str, Kernel]
    batch: int | None
    out_tree: Any


class Ran(NamedTuple):
    """What a reader of a graph gives.

    Attributes:
      out: the model's output.
      integers: int32, by site; of a site without numbers float levels. A layer's second call has
        `@2` behind the name of its site.
      sums: the products of integers, before their scale, by layer, named likewise.
    """

    out: Any
    integers: dict[str, Any]
    sums: dict[str, Any]


def tensors_of(graph: Graph) -> dict[str, int]:
    """The numbers of what sites that are no kernels give, by name."""
    return _counted(
        (name, i)
        for name, place in graph.sites.items()
        if place.role != "kernel"
        for i in place.results
    )


def sums_of(graph: Graph) -> dict[str, int]:
    """The numbers of the products of integers, by layer."""
    return _counted((n.name, n.outs[0]) for n in graph.nodes if "accumulator" in n.params)


def _counted(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    counts: Counter[str] = Counter()
    for name, number in pairs:
        counts[name] += 1
        found[name if counts[name] == 1 else f"{name}@{counts[name]}"] = number
    return found


def named(args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a call by name: `x`, or `x0`, `x1` and the names of keywords."""
    found: dict[str, Any] = {}

    def add(name, tree):
        if isinstance(tree, Mapping):
            for key in sorted(tree):
                add(f"{name}_{key}", tree[key])
        elif isinstance(tree, tuple | list):
            for i, x in enumerate(tree):
                add(f"{name}_{i}", x)
        elif hasattr(tree, "shape"):
            found[name] = tree

    for i, x in enumerate(args):
        add(f"x{i}", x)
    for name in sorted(kwargs):
        add(name, kwargs[name])
    return {"x": found["x0"]} if list(found) == ["x0"] else found


def arrays_of(graph: Graph, args: tuple, kwargs: Mapping[str, Any]) -> dict[int, Any]:
    """The data arrays of a call by number."""
    given = named(args, kwargs)
    missing = [name for name in graph.inputs.values() if name not in given]
    if missing:
        raise ValueError(
            f"the graph reads {', '.join(map(repr, graph.inputs.values()))}, and {missing[0]!r} is "
            f"not among the arrays of this call: {', '.join(map(repr, given)) or 'none'}."
        )
    found = {number: given[name] for number, name in graph.inputs.items()}
    for number, x in found.items():
        value, free = graph.values[number], graph.batch is not None
        fits = len(x.shape) == len(value.shape) and all(
            n == m or (grows and free)
            for n, m, grows in zip(x.shape, value.shape, value.growth, strict=True)
        )
        if not fits:
            sizes = [
                "N" if grows and free else n
                for n, grows in zip(value.shape, value.growth, strict=True)
            ]
            raise ValueError(
                f"{graph.inputs[number]!r} must have the shape ({', '.join(map(str, sizes))}), as "
                f"in the call that made the graph, got {tuple(x.shape)}."
            )
    return found


def extra_examples(graph: Graph, arrays: Mapping[int, Any]) -> Any:
    """By how many examples a call's batch is larger than the one that was traced."""
    for number, x in arrays.items():
        value = graph.values[number]
        if value.batch_axis is not None:
            axis = value.batch_axis
            return (x.shape[axis] - value.shape[axis]) // value.growth[axis]
    return 0


def grown(node: Node, extra: Any) -> dict[str, Any]:
    """The parameters of a node for a batch of so many examples more."""
    sizes = {
        name: tuple(n + extra * k for n, k in zip(node.params[name], growth, strict=True))
        for name, growth in node.growth.items()
    }
    return {**node.params, **sizes}


def layer_error(node: Node, reader: str) -> ValueError:
    """The error for a node that a reader of the graph does not know."""
    layer = repr(node.name) if node.name else "the model"
    return ValueError(
        f"{layer} computes {node.op!r}, which {reader} does not know: bitjax.integer_model runs it."
    )
