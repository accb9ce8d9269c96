"""Where an ONNX graph begins and ends: inputs, their normalisation, outputs and what they need."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bitjax.export.onnx_walk import Walk
from bitjax.export.onnx_writer import Tensor, Writer


def enter(walk: Walk, number: int, name: str, normalization, channels_first: bool) -> Any:
    """Enters an input of the graph; its description for the file."""
    w, value = walk.w, walk.graph.values[number]
    shape, kind, batch = tuple(value.shape), np.dtype(value.dtype), value.batch_axis
    order = tuple(range(len(shape)))
    if channels_first and len(shape) > 2:
        order = (0, len(shape) - 1, *range(1, len(shape) - 1))
    w.name(name)
    x = Tensor(name, shape, order, batch)
    if batch is not None and not w.measured[0]:
        w.measured = name, order.index(batch)
    if normalization is not None:
        if len(walk.graph.inputs) != 1 or kind != np.float32:
            raise ValueError(
                "`normalization` goes with one input of float32 images, got "
                f"{len(walk.graph.inputs)} inputs, the first of {kind}."
            )
        kind = np.dtype(np.uint8)
    sizes = ["batch" if w.free and axis == batch else shape[axis] for axis in order]
    told = w.onnx.helper.make_tensor_value_info(name, _kind(w, kind), sizes)
    w.scope = "input"
    if normalization is not None:
        x = _normalized(w, x, normalization)
    if len(shape) == 4 and not channels_first:  # ONNX's convolutions have channels first
        x = w.ordered(x, (0, 3, 1, 2))
    walk.env[number] = x
    return told


def _kind(w, dtype):
    return w.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _normalized(w: Writer, x: Tensor, normalization) -> Tensor:
    """(x / max_value - mean) / std, by reciprocals, as XLA compiles it."""
    mean, std, most = normalization
    channels = x.shape[-1]
    for name, given in (("mean", mean), ("std", std)):
        if len(given) != channels:
            raise ValueError(
                f"`normalization` must have {channels} numbers as its {name}, one a channel, got "
                f"{given}."
            )

    def const(numbers):
        shape = [channels if axis == len(x.shape) - 1 else 1 for axis in x.order]
        return w.constant(np.asarray(numbers, np.float32).reshape(shape))

    one = np.float32(1)
    x = w.op("Cast", [x.name], x, to=w.onnx.TensorProto.FLOAT)
    x = w.op("Mul", [x.name, w.constant(one / np.float32(most))], x)
    x = w.op("Sub", [x.name, const(mean)], x)
    return w.op("Mul", [x.name, const(one / np.asarray(std, np.float32))], x)


def leave(walk: Walk, results: list[Tensor], sites: bool) -> list[Any]:
    """Names the results, and the taps if they are asked for."""
    w = walk.w
    names = ["output"] if len(results) == 1 else [f"output_{i}" for i in range(len(results))]
    found = []
    for name, result, number in zip(names, results, walk.graph.outputs, strict=True):
        kind = _kind(w, walk.graph.values[number].dtype)
        found.append((name, w.node("Identity", [result.name], name=w.name(name)), kind, result))
    for name, tap in w.taps.items() if sites else ():
        whole = w.profile != "qonnx" and name not in w.rounded
        kind = w.onnx.TensorProto.INT32 if whole else w.onnx.TensorProto.FLOAT
        w.scope = name
        x = w.op("Cast", [tap.name], tap, to=kind)
        x = w.tensor(x)
        found.append((name, w.node("Identity", [x.name]), kind, x))
    _rename(w, {inner: name for name, inner, _, _ in found})
    told = []
    for name, _, kind, x in found:
        sizes = ["batch" if w.free and i == x.batch else n for i, n in enumerate(x.shape)]
        told.append(w.onnx.helper.make_tensor_value_info(name, kind, sizes))
    return told


def _rename(w: Writer, outputs: Mapping[str, str]) -> None:
    """Gives outputs their names; what had one before steps aside."""
    taken = set(outputs.values())
    names = {name: w.name(f"{name}/inner") for name in taken if any(
        name in node.output for node in w.nodes)}  # fmt: skip
    names.update(outputs)
    for node in w.nodes:
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
        node.name = node.output[0]


def needed(nodes, outputs):
    """The nodes that outputs need, and the names they read."""
    used, kept = set(outputs), []
    for node in reversed(nodes):
        if used & set(node.output):
            used |= set(node.input)
            kept.append(node)
    return kept[::-1], used


def without_identities(nodes, outputs):
    """The nodes without those that only give an output its name."""
    made = {name: node for node in nodes for name in node.output}
    readers: dict[str, int] = {}
    for node in nodes:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    gone = set()
    for node in nodes:
        if node.op_type != "Identity":
            continue
        before = made.get(node.input[0])
        if before is None or node.input[0] in outputs:
            continue
        inner, outer = node.input[0], node.output[0]
        before.output[:] = [outer if n == inner else n for n in before.output]
        before.name = before.output[0]
        for other in nodes:
            other.input[:] = [outer if n == inner else n for n in other.input]
        gone.add(id(node))
        made[outer] = before
    return [node for node in nodes if id(node) not in gone]
