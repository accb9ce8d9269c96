"""Writes a deployed model as an ONNX file that other tools run."""

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bitjax.checks import NONE, SWITCH, checked, choice, either, integer
from bitjax.export.deploy import Deployed
from bitjax.export.graph import graph_of
from bitjax.export.nodes import QUANTIZE, Graph, sums_of, tensors_of
from bitjax.export.onnx_profiles import PROFILES, stored
from bitjax.export.onnx_walk import Walk
from bitjax.export.onnx_writer import DOMAIN, Tensor, Writer
from bitjax.files.writing import replacing


@checked(
    profile=choice(*PROFILES),
    sites=SWITCH,
    free_batch=SWITCH,
    channels_first=SWITCH,
    opset=either(NONE, integer(21, 25)),
)
def to_onnx(
    deployed: Deployed,
    *args: Any,
    path: str | os.PathLike | None = None,
    profile: str = "qdq",
    normalization: tuple[Sequence[float], Sequence[float], float] | None = None,
    sites: bool = False,
    free_batch: bool = True,
    channels_first: bool = False,
    opset: int | None = None,
    **kwargs: Any,
) -> Any:
    """Writes a deployed model as an ONNX model.

    Three profiles say how integers are written. `qdq` has pairs of QuantizeLinear and
    DequantizeLinear, between which runtimes fuse integer kernels; codes are stored in the smallest
    of the types of 2 (opset 25), 4, 8 and 16 bits, and a Clip ends a range that is shorter.
    `integers` has products of whole numbers, whose sums are those of evaluation, exactly. `qonnx`
    has the operators Quant and BipolarQuant of QONNX, for compilers to hardware.

    In `qdq` and `qonnx` an input is divided by its scale, and evaluation multiplies by a rate:
    where the scale is no power of two, a value at the border of two codes may get the other one.

    Nodes of a site have its name: `dense1/input` are its levels, `dense1/input/codes` its codes.

    Args:
      deployed: what `bitjax.deploy` gave.
      *args: positional arguments of the model; of a batch only the shapes count.
      path: the file to write; None writes none.
      profile: `qdq`, `integers` or `qonnx`.
      normalization: `(mean, std, max_value)` of `bitjax.data.normalize`, to do inside: the input is
        then raw pixels, uint8 and channels last, as the data set has them.
      sites: whether codes and sums are outputs too, in the program's order of axes, for checks.
      free_batch: whether the batch size is free; else it is that of the arguments.
      channels_first: whether images come in as `[N, C, H, W]`.
      opset: the version of ONNX's operators; None is 25 where something has 2 bits, else 21. QONNX
        has 13.
      **kwargs: keyword arguments of the model.

    Returns:
      The `onnx.ModelProto`.

    Raises:
      ValueError: a layer computes something that the profile cannot write; or integers have more
        than 16 bits.
      ImportError: onnx is not installed, which is in the extra `export`.

    Example:
      >>> import bitjax as bj, flax.linen as nn, jax
      >>> model = bj.Quantized(nn.Dense(2), [bj.rule(".*", bj.lsq(bits=4))])
      >>> x = jax.numpy.ones((1, 3))
      >>> fixed = bj.deploy(model, model.init(jax.random.key(0), x), x)
      >>> [node.op_type for node in to_onnx(fixed, x, profile="integers").graph.node]
      ['Mul', 'Round', 'Clip', 'Cast', 'MatMul', 'Round', 'Mul', 'Add']
    """
    graph = graph_of(deployed, *args, **kwargs)
    writer = Writer(profile, free_batch and graph.batch is not None)
    if profile != "qonnx":
        writer.opset = opset or (25 if profile == "qdq" and _has_two_bits(graph) else 21)
    walk = Walk(graph, writer)
    inputs = [
        _input(walk, number, name, normalization, channels_first)
        for number, name in graph.inputs.items()
    ]
    outputs = _outputs(walk, walk.run(), sites)
    model = _model(walk, inputs, outputs)
    if path is not None:
        with replacing(path) as file:
            file.write(model.SerializeToString())
    return model


def _has_two_bits(graph: Graph) -> bool:
    """Whether something fits ONNX's types of 2 bits."""
    ends = [(k.first, k.last, False) for k in graph.kernels.values() if k.integers is not None]
    ends += [(n.params["first"], n.params["last"], True) for n in graph.nodes if n.op == QUANTIZE]
    for first, last, whole in ends:
        low, high = int(np.min(first)), int(np.max(last))
        kind = stored(low, high, 25) if high - low < 4 else None
        if kind is not None and kind.dtype.name in ("int2", "uint2") and (kind.exact or not whole):
            return True
    return False


# ---- inputs and outputs -----------------------------------------------------------------------


def _input(walk: Walk, number: int, name: str, normalization, channels_first: bool) -> Any:
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


def _outputs(walk: Walk, results: list[Tensor], sites: bool) -> list[Any]:
    """Names the results, and the taps if they are asked for."""
    w = walk.w
    names = ["output"] if len(results) == 1 else [f"output_{i}" for i in range(len(results))]
    found = []
    for name, result, number in zip(names, results, walk.graph.outputs, strict=True):
        kind = _kind(w, walk.graph.values[number].dtype)
        found.append((name, w.node("Identity", [result.name], name=w.name(name)), kind, result))
    for name, tap in w.taps.items() if sites else ():
        kind = w.onnx.TensorProto.INT32 if w.profile == "qdq" else w.onnx.TensorProto.FLOAT
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


# ---- the file ---------------------------------------------------------------------------------


def _model(walk: Walk, inputs, outputs) -> Any:
    w, graph = walk.w, walk.graph
    helper = w.onnx.helper
    nodes, used = _needed(w.nodes, [o.name for o in outputs])
    nodes = _without_identities(nodes, {o.name for o in outputs})
    kept = [tensor for name, tensor in w.constants.items() if name in used]
    made = helper.make_graph(nodes, "bitjax", inputs, outputs, kept)
    opsets = [helper.make_opsetid("", w.opset)]
    if any(node.domain for node in nodes):
        opsets.append(helper.make_opsetid(DOMAIN, 1))
    version = importlib.import_module("bitjax").__version__
    model = helper.make_model(
        made, opset_imports=opsets, producer_name="bitjax", producer_version=version,
        ir_version=helper.find_min_ir_version_for(opsets[:1]),
    )  # fmt: skip
    told = {site: _told(w, graph, site) for site in graph.sites}
    helper.set_model_props(
        model,
        {
            "bitjax.version": version,
            "bitjax.profile": w.profile,
            "bitjax.sites": json.dumps(told, separators=(",", ":")),
            "bitjax.taps": json.dumps(_taps(walk, nodes), separators=(",", ":")),
        },
    )
    return model


def _taps(walk: Walk, nodes) -> dict[str, dict[str, Any]]:
    """Where the file has what sites and products give, `[tensor, axes]`, for who checks it.

    Axis i of the tensor is the program's `axes[i]`. Of sites it has integers in the profile
    `integers`, else levels; sums of integers are in that profile alone.
    """
    there = {name for node in nodes for name in node.output}
    numbers = {"sites": tensors_of(walk.graph)}
    numbers |= {"sums": sums_of(walk.graph)} if walk.profile.integers else {}
    return {
        kind: {
            name: [walk.env[number].name, list(walk.env[number].order)]
            for name, number in of_kind.items()
            if isinstance(walk.env[number], Tensor) and walk.env[number].name in there
        }
        for kind, of_kind in numbers.items()
    }


def _told(w: Writer, graph: Graph, site: str) -> dict[str, Any]:
    """What the file says of a site: its bits, and the code of the integer 0."""
    place = graph.sites[site]
    if site in graph.kernels:
        bits = graph.kernels[site].bits
    else:
        bits = next(n.params["bits"] for n in graph.nodes if place.results[0] in n.outs)
    bits = sorted({int(b) for b in np.asarray(bits).ravel()})
    told: dict[str, Any] = {"role": place.role, "bits": bits[0] if len(bits) == 1 else bits}
    if site in w.zeros:
        told["zero"] = w.zeros[site]
    return told


def _needed(nodes, outputs):
    """The nodes that outputs need, and the names they read."""
    used, kept = set(outputs), []
    for node in reversed(nodes):
        if used & set(node.output):
            used |= set(node.input)
            kept.append(node)
    return kept[::-1], used


def _without_identities(nodes, outputs):
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
