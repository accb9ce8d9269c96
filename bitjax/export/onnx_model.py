"""Writes a deployed model as an ONNX file that other tools run."""

import importlib
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from bitjax.checks import NONE, SWITCH, checked, choice, either, integer, number, several
from bitjax.export.deploy import DEPLOYED, Deployed
from bitjax.export.flat import longer
from bitjax.export.graph import graph_of
from bitjax.export.nodes import Graph, sums_of, tensors_of
from bitjax.export.onnx_ends import enter, leave, needed, without_identities
from bitjax.export.onnx_profiles import PROFILES
from bitjax.export.onnx_qdq import SMALL, stored
from bitjax.export.onnx_walk import Walk
from bitjax.export.onnx_writer import DOMAIN, Tensor, Writer
from bitjax.files.writing import replacing

_NUMBERS = several(number(), 1)


@checked(
    deployed=DEPLOYED,
    profile=choice(*PROFILES),
    normalization=either(NONE, several(either(_NUMBERS, number(0, above=True)), 3, 3)),
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
      >>> model = bj.Quantized(nn.Dense(2), [bj.rule(".*", bj.lsq(bits=8))])
      >>> x = jax.numpy.ones((1, 3))
      >>> fixed = bj.deploy(model, model.init(jax.random.key(0), x), x)
      >>> [node.op_type for node in to_onnx(fixed, x).graph.node]
      ['QuantizeLinear', 'DequantizeLinear', 'DequantizeLinear', 'MatMul', 'Add']
    """
    graph = graph_of(deployed, *args, **kwargs)
    if free_batch and graph.batch == 1:
        # One example's axis cannot be told from others of size 1.
        args, kwargs = longer((args, kwargs), 1)
        graph = graph_of(deployed, *args, **kwargs)
    writer = Writer(profile, free_batch and graph.batch is not None)
    if profile != "qonnx":
        writer.opset = opset or (25 if profile == "qdq" and _has_two_bits(graph) else 21)
    walk = Walk(graph, writer)
    inputs = [
        enter(walk, number, name, normalization, channels_first)
        for number, name in graph.inputs.items()
    ]
    outputs = leave(walk, walk.run(), sites)
    model = _model(walk, inputs, outputs)
    if path is not None:
        with replacing(path) as file:
            file.write(model.SerializeToString())
    return model


def _has_two_bits(graph: Graph) -> bool:
    """Whether something fits ONNX's types of 2 bits."""
    kernels = [graph.kernels[name] for name in graph.kernels]
    ends = [
        (int(np.min(k.first)), int(np.max(k.last)))
        for k in kernels
        if k.first is not None and k.last is not None and k.levels.ndim > 2
    ]
    wide = (2, 4, 8, 16)
    return any(stored(*own, wide).dtype.name in SMALL[:2] for own in ends if own[1] - own[0] < 4)


def _model(walk: Walk, inputs, outputs) -> Any:
    w, graph = walk.w, walk.graph
    helper = w.onnx.helper
    nodes, used = needed(w.nodes, [o.name for o in outputs])
    nodes = without_identities(nodes, {o.name for o in outputs})
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
