"""A deployed model for hls4ml, which writes C++ for FPGAs of it.

hls4ml (J. Duarte et al., arXiv 1804.06913) reads QONNX, with images channels last and constants
without an axis for the batch. It guesses how wide accumulators have to be; here that is known.
"""

import contextlib
import io
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bitjax.checks import TEXT, checked, choice, instance
from bitjax.export.deploy import Deployed
from bitjax.export.graph import graph_of
from bitjax.export.nodes import LOOKUP, QUANTIZE, Graph, Node
from bitjax.export.onnx_model import to_onnx
from bitjax.extras import extra
from bitjax.program.body import Op
from bitjax.program.integers import summed

_PRODUCTS = ("dot_general", "conv_general_dilated")
_SUMS = ("Add", "Sub", "Mul")


class ForHLS(NamedTuple):
    """What hls4ml converts.

    Attributes:
      model: the QONNX model, a `ModelWrapper` of qonnx, for one example, images channels last.
      config: `hls_config` of hls4ml: the precision of every layer.
    """

    model: Any
    config: dict[str, Any]


@checked(
    deployed=instance(Deployed, hint="bitjax.deploy(model, variables, x) makes one."),
    precision=TEXT,
    backend=choice("Vitis", "Vivado"),
)
def to_hls4ml(
    deployed: Deployed,
    x: Any,
    *,
    precision: str = "fixed<48,16>",
    backend: str = "Vitis",
    **kwargs: Any,
) -> ForHLS:
    """Prepares a deployed model for `hls4ml.converters.convert_from_onnx_model`.

    Sites and layers keep their names, with `_` for `/`. A product's accumulator is as wide as its
    integers can make it, and exact. hls4ml holds levels in fixed point, so that scales have to be
    powers of two, one for each tensor: train with `scale="power_of_two"`.

    Args:
      deployed: what `bitjax.deploy` gave.
      x: a batch; only its shape counts.
      precision: of inputs, biases and normalisations, which are float: total bits and those before
        the point. A narrow one is cheap, and moves codes.
      backend: of hls4ml, `Vitis` or `Vivado`.
      **kwargs: keyword arguments of the model.

    Returns:
      The model and its configuration, both of which hls4ml takes.

    Raises:
      ValueError: a site has scales that are no power of two or differ in a tensor, or levels that
        are not equally spaced from 0 up or around it; or the model computes what hls4ml cannot.
      ImportError: hls4ml or qonnx is not installed; they are in the extra `hls4ml`.
    """
    with extra("hls4ml", "to_hls4ml"):
        import hls4ml
        import qonnx  # noqa: F401  its parts are imported below
    one = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    graph = graph_of(deployed, one, **kwargs)
    _check_numbers(graph)
    model = _prepared(
        to_onnx(deployed, one, profile="qonnx", free_batch=False, channels_first=True, **kwargs)
    )
    _check_nodes(model, {*hls4ml.converters.get_supported_onnx_layers(), "Identity"})
    products = [node for node in graph.nodes if node.op in _PRODUCTS]
    names = _name(model, graph, products)
    with contextlib.redirect_stdout(io.StringIO()):
        config = hls4ml.utils.config_from_onnx_model(
            model, granularity="name", backend=backend, default_precision=precision
        )
    for node, name in zip(products, names, strict=True):
        if "accumulator" in node.params and node.ins[1] in graph.constants:
            told = dict.fromkeys(("accum", "result"), accumulator(graph, node))
            # The bias is a sum of its own, so that the product's is 0.
            config["LayerName"][name]["Precision"] |= told | {"bias": "ufixed<1,1>"}
    return ForHLS(model, config)


def accumulator(graph: Graph, node: Node) -> str:
    """The fixed-point type that holds every partial sum of a product of integers."""
    weights = np.abs(graph.constants[node.ins[1]].astype(np.int64))
    sizes = weights.sum(axis=summed(Op(node.eqn, [], "", node.name), 1))
    bits = int(node.params["largest"] * sizes.max(initial=0)).bit_length() + 1
    return f"fixed<{bits},{bits + round(math.log2(_scale_of(graph, node)))}>"


def _scale_of(graph: Graph, node: Node) -> float:
    """What a product of integers is multiplied with."""
    number = node.outs[0]
    for after in graph.nodes:
        if after.ins[:1] == (number,):
            if after.op == "mul":
                return float(graph.constants[after.ins[1]].flat[0])
            number = after.outs[0]  # int32 becomes float32
    raise AssertionError(f"no scale behind {node.name!r}")


# ---- what hls4ml asks for ---------------------------------------------------------------------


def _check_numbers(graph: Graph) -> None:
    """Raises a ValueError where fixed point would be something else."""
    sites = [(site, kernel._asdict()) for site, kernel in graph.kernels.items()]
    sites += [(node.name, node.params) for node in graph.nodes if node.op in (QUANTIZE, LOOKUP)]
    for site, told in sites:
        if not _is_fixed_point(told):
            raise ValueError(
                f"{site!r}: hls4ml takes the nearest of equally spaced levels, from 0 up or around "
                'it: train with lsq(scale="power_of_two"), or with uniform or bitlength likewise.'
            )
        scales, bits = np.unique(told["scale"]), np.unique(told["bits"])
        if scales.size > 1 or bits.size > 1:
            raise ValueError(
                f"{site!r} has {scales.size} scales and {bits.size} numbers of bits, and hls4ml's "
                'fixed point has one of each for a tensor: train with granularity="per_tensor".'
            )
        if np.frexp(scales[0])[0] != 0.5:
            raise ValueError(
                f"{site!r}: hls4ml's fixed point has scales that are powers of two, got "
                f'{scales[0]:g}: train with scale="power_of_two".'
            )


def _is_fixed_point(told: Mapping[str, Any]) -> bool:
    """Whether integers are the nearest ones, from 0 up or around it."""
    if told.get("scale") is None or told.get("edges") is not None or told["coding"] == "signs":
        return False
    first, half = told["first"], np.exp2(np.asarray(told["bits"], np.float32) - 1)
    return bool(np.all((first == 0) | (first == -half) | (first == 1 - half)))


def _check_nodes(model: Any, known: set[str]) -> None:
    """Raises a ValueError where hls4ml would end in a traceback, or compute something else."""
    for node in model.graph.node:
        # qonnx has no averages with channels last, and hls4ml pools another axis of a global one.
        if node.op_type not in known or node.op_type.endswith("AveragePool"):
            raise ValueError(
                f"the model computes {node.op_type}, which hls4ml does not read from QONNX: pool "
                "by maxima or strides, and flatten in front of the head."
            )
        readers = model.find_consumers(node.input[0]) if node.op_type == "Quant" else ()
        if len(readers) > 1:
            kinds = " and ".join(sorted(reader.op_type for reader in readers))
            raise ValueError(
                f"{kinds} read one tensor of floats, and hls4ml would give both the quantized one: "
                "it has no residual sums of floats."
            )


def _prepared(model: Any) -> Any:
    """A QONNX model as hls4ml reads it: clean, channels last, constants without the batch."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
    from qonnx.transformation.gemm_to_matmul import GemmToMatMul
    from qonnx.util.cleanup import cleanup_model

    with contextlib.redirect_stdout(io.StringIO()):
        wrapped = cleanup_model(ModelWrapper(model))
        if len(wrapped.get_tensor_shape(wrapped.graph.input[0].name)) > 2:
            wrapped = wrapped.transform(
                ConvertToChannelsLastAndClean(make_input_channels_last=True)
            )
        wrapped = cleanup_model(wrapped.transform(GemmToMatMul()))
    for node in wrapped.graph.node:
        for name in node.input if node.op_type in _SUMS else ():
            constant = wrapped.get_initializer(name)
            if constant is not None and constant.ndim > 1 and len(constant) == 1:
                wrapped.set_initializer(name, constant[0])
    return wrapped


def _name(model: Any, graph: Graph, products: list[Node]) -> list[str]:
    """Gives nodes the names of sites and layers, which cleaning has numbered; those of products."""
    held = {tensor.name for tensor in model.graph.initializer}
    quantized = [node for node in graph.nodes if node.op == QUANTIZE]
    taken: Counter[str] = Counter()
    inputs, multiplied = [], []
    for node in model.graph.node:
        if node.op_type == "Quant" and node.input[0] not in held:
            inputs.append(node)
        elif node.op_type in ("Conv", "MatMul"):
            multiplied.append(node)
    for node, named in zip(inputs + multiplied, quantized + products, strict=True):
        name = _identifier(named.name)
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
    for node in inputs:
        before = model.find_producer(node.input[0])
        if before is not None and before.op_type == "Relu":  # hls4ml makes one layer of both
            before.name = f"{node.name}_relu"
    return [node.name for node in multiplied]


def _identifier(name: str) -> str:
    """A name of C++."""
    return "".join(c if c.isalnum() else "_" for c in name)
