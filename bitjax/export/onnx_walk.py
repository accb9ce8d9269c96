"""Walks a graph and writes each of its nodes; what a node means is in the tables of primitives."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from bitjax.export.nodes import DEQUANTIZE, LOOKUP, QUANTIZE, Graph, Kernel, Node, Value
from bitjax.export.onnx_elementwise import ELEMENTWISE
from bitjax.export.onnx_products import WINDOWS, Filters, Operand, convolution, dot
from bitjax.export.onnx_profiles import PROFILES
from bitjax.export.onnx_qdq import MOST_BITS, absorb_bias
from bitjax.export.onnx_shapes import SHAPES
from bitjax.export.onnx_sites import lookup, spread, table_kernel
from bitjax.export.onnx_writer import Tensor, Writer, thinned

PRODUCTS = {"conv_general_dilated": convolution, "dot_general": dot}
PRIMITIVES = {**ELEMENTWISE, **SHAPES, **WINDOWS}


class Walk:
    """The values of a graph as they are in the file."""

    def __init__(self, graph: Graph, writer: Writer):
        self.graph, self.w = graph, writer
        self.profile = PROFILES[writer.profile]
        self.env: dict[int, Any] = dict(graph.constants)
        self.kernels: dict[int, str] = {k.number: site for site, k in graph.kernels.items()}
        self.levels: set[int] = set()  # sums of products of levels: their scale is in them
        self.written: dict[Any, Tensor] = {}
        self.units: dict[int, np.ndarray] = {}  # of sums that a bias may join, their scales
        read = [i for node in graph.nodes for i in node.ins]
        self.uses = Counter([*read, *graph.outputs])

    def run(self) -> list[Tensor]:
        """Writes all nodes and gives the outputs."""
        for node in self.graph.nodes:
            self.w.scope = node.name or "graph"
            try:
                results = self._node(node)
            except NotImplementedError as error:
                raise self._refusal(node, str(error)) from None
            for number, value in zip(node.outs, results, strict=True):
                self.env[number] = value
        return [self.w.tensor(self.env[i]) for i in self.graph.outputs]

    def _refusal(self, node: Node, why: str) -> ValueError:
        layer = repr(node.name) if node.name else "the model"
        return ValueError(
            f"{layer} computes {node.op!r}, which the ONNX profile {self.w.profile!r} cannot "
            f"write{f' ({why})' if why else ''}: bitjax.integer_model runs it."
        )

    def _node(self, node: Node) -> Sequence[Any]:
        outs = [self.graph.values[i] for i in node.outs]
        kinds = [np.dtype(out.dtype) for out in outs]
        if any(k.kind not in "fiub" or k.itemsize == 2 for k in kinds):
            raise NotImplementedError(f"in {kinds[0]}; build the model with dtype=float32")
        if node.op in PRODUCTS:
            return [self._product(node, outs[0])]
        ins = [self.env[i] for i in node.ins]
        if node.op == QUANTIZE:
            return [self._quantize(node, ins[0])]
        if node.op == DEQUANTIZE:
            return [self._dequantize(node, ins[0])]
        if node.op == LOOKUP:
            return [lookup(self.w, node.params, self.w.full(ins[0]))]
        if self._is_scale(node):
            return [ins[0] if isinstance(ins[0], Tensor) else ins[1]]
        if node.op == "add" and self._is_bias(node, ins, outs[0]):
            return [ins[0] if isinstance(ins[0], Tensor) else ins[1]]
        write = PRIMITIVES.get(node.op)
        if write is None:
            raise NotImplementedError
        if not any(isinstance(x, Tensor) for x in ins):
            return _constant(node, ins, outs)
        ins = [self._levels_of(i) for i in node.ins]
        made = write(self.w, node, ins, outs if len(outs) > 1 else outs[0])
        return made if isinstance(made, list) else [made]

    # ---- sites ----------------------------------------------------------------------------------

    def _quantize(self, node, x):
        key = node.ins[0], node.name
        if key not in self.written:
            self.written[key] = self.profile.quantize(self.w, node.params, x)
        return self.written[key]

    def _dequantize(self, node, x):
        if not self.profile.integers:
            return x
        scale = spread(np.asarray(node.params["scale"], np.float32), x.shape)
        scale = scale.transpose(x.order) if scale.ndim else scale
        factors = [x.name, self.w.constant(scale)]
        found = self.w.op("Mul", factors, x, name=node.name)
        self.w.factors[found.name] = factors
        return found

    # ---- products -------------------------------------------------------------------------------

    def _product(self, node: Node, out: Value) -> Tensor:
        if "accumulator" in node.params and not self.profile.integers:
            self.levels.add(node.outs[0])
        ins = [self._operand(i) for i in node.ins]
        made = PRODUCTS[node.op](self.w, node, ins, out, self._put)
        if "accumulator" in node.params and self.w.profile == "qdq":
            self._note_unit(node, ins, out)
        if "accumulator" not in node.params or not self.profile.integers:
            return made
        # The sum is whole already. Rounding it says so: without it, runtimes join the scale behind
        # it with the kernel, and sums are no longer those of integers.
        name = f"{node.name}/accumulator"
        kind = "Identity" if node.params["accumulator"] == "int32" else "Round"
        made = made._replace(name=self.w.node(kind, [made.name], name=name))
        self.w.taps[name] = made
        if node.params["accumulator"] == "rounded":
            self.w.rounded.add(name)
        return made

    def _is_scale(self, node: Node) -> bool:
        """Whether a node only scales what levels have scaled."""
        if self.profile.integers or not any(i in self.levels for i in node.ins):
            return False
        if node.op == "convert_element_type":
            self.levels.add(node.outs[0])
            return True
        unit = next((self.units[i] for i in node.ins if i in self.units), None)
        if unit is not None:
            self.units[node.outs[0]] = unit
        return node.op == "mul"

    def _note_unit(self, node, ins, out):
        """The scale of a convolution's sums, one for each filter."""
        x, kernel = ins
        step = self.w.steps.get(x.name) if isinstance(x, Tensor) else None
        if node.op == "conv_general_dilated" and step is not None and isinstance(kernel, Filters):
            spec = node.params["dimension_numbers"]
            count = out.shape[spec.out_spec[1]]
            if kernel.scale.size in (1, count):
                unit = (step * kernel.scale).astype(np.float32).reshape(-1)
                self.units[node.outs[0]] = np.broadcast_to(unit, (count,))

    def _is_bias(self, node, ins, out) -> bool:
        """Whether a sum is one with a bias, and has become the convolution's own."""
        number = next((i for i in node.ins if i in self.units), None)
        bias = next((x for x in ins if isinstance(x, np.ndarray)), None)
        if number is None or bias is None or self.uses[number] != 1:
            return False
        conv, unit = self.env[number], self.units[number]
        bias, channels = thinned(bias), conv.order[1]
        if any(n > 1 and axis != channels for axis, n in enumerate(bias.shape)):
            return False
        return absorb_bias(self.w, conv.name, unit, np.broadcast_to(bias.reshape(-1), unit.shape))

    def _operand(self, number: int) -> Operand:
        """What a product reads: a kernel by its integers, or a value."""
        if number not in self.kernels:
            value = self.env[number]
            return value.astype(np.float32) if isinstance(value, np.ndarray) else value
        site = self.kernels[number]
        kernel, moved = self.graph.kernels[site], self.graph.constants[number]
        if kernel.integers is None:
            return self._table(site, kernel, moved)
        seen = kernel.integers if kernel.whole else kernel.levels
        blocks = {
            name: spread(np.asarray(getattr(kernel, name), np.float32), seen.shape)
            for name in ("scale", "bits", "first", "last")
        }
        whole = np.asarray(kernel.integers)
        found = _follow(seen, moved, Filters(whole, blocks, site, kernel.coding, kernel.whole))
        if found is None and kernel.whole:
            raise NotImplementedError("a kernel that is not moved but computed with")
        return moved if found is None else found

    def _table(self, site, kernel: Kernel, moved: np.ndarray) -> Operand:
        if (
            kernel.table is None
            or kernel.levels.shape != moved.shape
            or not (kernel.levels == moved).all()
        ):
            return moved
        if site not in self.written:
            self.written[site] = table_kernel(self.w, site, kernel.codes, kernel.table)
        return self.written[site]

    def _levels_of(self, number: int) -> Any:
        """What anything but a product reads: the levels of a kernel are written by its codes."""
        value = self.env[number]
        if number not in self.kernels or not isinstance(value, np.ndarray):
            return value
        operand = self._operand(number)
        return self._put(self.w, operand) if isinstance(operand, Filters) else operand

    def _put(self, w: Writer, kernel: Filters) -> Tensor:
        """Writes a kernel once for each way in which its axes lie."""
        key = kernel.site, kernel.shape, kernel.integers.tobytes()
        if key not in self.written:
            if kernel.blocks["bits"].max() > MOST_BITS:
                raise NotImplementedError(f"a kernel of {kernel.blocks['bits'].max():g} bits")
            self.written[key] = self.profile.kernel(w, kernel)
        return self.written[key]


def _constant(node: Node, ins: Sequence[np.ndarray], outs: Sequence[Value]) -> list[np.ndarray]:
    """The results of a node that reads constants alone, at the batch size of the trace."""
    if node.op == "broadcast_in_dim":
        kept = [1] * len(outs[0].shape)
        for axis, place in enumerate(node.params["broadcast_dimensions"]):
            kept[place] = ins[0].shape[axis]
        return [np.broadcast_to(ins[0].reshape(kept), outs[0].shape)]
    if node.op == "convert_element_type":
        return [ins[0].astype(outs[0].dtype)]
    if node.op == "iota" and node.params["dimension"] == outs[0].batch_axis:
        raise NotImplementedError("the place of an example in its batch")
    if node.eqn is None:
        raise NotImplementedError
    found = node.eqn.primitive.bind(*ins, **node.params)
    found = found if node.eqn.primitive.multiple_results else [found]
    return [np.asarray(x) for x in found]


def _follow(seen: np.ndarray, moved: np.ndarray, filters: Filters) -> Filters | None:
    """The kernel of a parameter that was permuted, reshaped, or neither; None of another one."""
    if seen.size != moved.size:
        return None
    for permutation in itertools.permutations(range(seen.ndim)):
        if (seen.transpose(permutation).reshape(moved.shape) == moved).all():
            return filters.transposed(permutation).reshaped(moved.shape)
    return None
