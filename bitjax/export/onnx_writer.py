"""Builds an ONNX graph: nodes, constants, names that are unique, and axes in ONNX's order.

A tensor of the program keeps its axes in the file in any order, and the writer remembers which.
So images stay channels-first from convolution to convolution, as ONNX has them, while the program
has channels last; a transposition is written only where something asks for an order.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bitjax.extras import extra

DOMAIN = "qonnx.custom_op.general"


class Tensor(NamedTuple):
    """A tensor of the file and what the program knows of it.

    Attributes:
      name: its name in the file.
      shape: the program's shape, at the batch size of the trace.
      order: axis i in the file is the program's axis `order[i]`.
      batch: the program's axis whose size is free; None if there is none.
      thin: axes of the program of which the file has one entry that stands for all.
    """

    name: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    batch: int | None = None
    thin: frozenset[int] = frozenset()

    def is_one(self, axis: int) -> bool:
        """Whether the file has one entry along an axis of the program, at any batch size."""
        return axis in self.thin or (self.shape[axis] == 1 and axis != self.batch)

    def in_file(self) -> tuple[int, ...]:
        """The sizes in the file, at the batch size of the trace."""
        return tuple(1 if axis in self.thin else self.shape[axis] for axis in self.order)


Value = Tensor | np.ndarray


class Writer:
    """A graph under construction."""

    def __init__(self, profile: str, free: bool):
        with extra("export", "an ONNX file"):
            import onnx

        self.onnx = onnx
        self.profile = profile
        self.free = free  # whether the batch size is
        self.opset = 13 if profile == "qonnx" else 21
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.taps: dict[str, Tensor] = {}  # what can be an output for checks
        self.rounded: set[str] = set()  # taps that int32 cannot hold
        self.zeros: dict[str, int] = {}  # the code of 0, by input site
        self.steps: dict[str, Any] = {}  # scales of what DequantizeLinear gives, None of several
        self.means: dict[str, tuple[str, int]] = {}  # sums, by the mean and the count they are of
        self.factors: dict[str, list[str]] = {}  # what products of elements are of
        self.measured = "", 0  # an input and its axis that is the batch
        self.scope = ""  # what is being written: the layer's or the site's name
        self._names: set[str] = set()
        self._shared: dict[Any, str] = {}

    # ---- names and constants --------------------------------------------------------------------

    def name(self, wanted: str) -> str:
        """A name that nothing has yet."""
        found, count = wanted, 1
        while found in self._names:
            count += 1
            found = f"{wanted}_{count}"
        self._names.add(found)
        return found

    def constant(self, array: Any, name: str = "") -> str:
        """The name of a constant; equal small ones are written once."""
        array = np.asarray(array)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        key = None
        if not name and array.size <= 16:
            key = array.dtype, array.shape, array.tobytes()
            if key in self._shared:
                return self._shared[key]
        found = self.name(name or f"{self.scope or 'graph'}/constant")
        self.constants[found] = self.onnx.numpy_helper.from_array(array, found)
        if key is not None:
            self._shared[key] = found
        return found

    def double(self, name: str) -> str:
        """The float64 of a float32 tensor; of a constant a constant."""
        if name not in self.constants:
            return self.node("Cast", [name], to=self.onnx.TensorProto.DOUBLE)
        if (key := ("double", name)) not in self._shared:
            wide = self.onnx.numpy_helper.to_array(self.constants[name]).astype(np.float64)
            self._shared[key] = found = self.name(f"{name}/double")
            self.constants[found] = self.onnx.numpy_helper.from_array(wide, found)
        return self._shared[key]

    # ---- nodes ----------------------------------------------------------------------------------

    def node(
        self, kind: str, ins: Sequence[str], *, name: str = "", domain: str = "", **attributes
    ):
        """Writes a node with one output and gives the output's name."""
        return self.several(kind, ins, 1, name=name, domain=domain, **attributes)[0]

    def several(
        self, kind: str, ins: Sequence[str], count: int, *, name: str = "", domain: str = "", **more
    ) -> list[str]:
        """Writes a node with `count` outputs and gives their names."""
        wanted = name or f"{self.scope or 'graph'}/{kind}"
        outs = [self.name(wanted if count == 1 else f"{wanted}_{i}") for i in range(count)]
        made = self.onnx.helper.make_node(
            kind, list(ins), outs, name=outs[0], domain=domain, **more
        )
        self.nodes.append(made)
        return outs

    def op(self, kind: str, ins: Sequence[str], like: Tensor, *, name: str = "", **attributes):
        """A node whose result has the shape and the order of `like`."""
        return like._replace(name=self.node(kind, ins, name=name, **attributes))

    # ---- axes -----------------------------------------------------------------------------------

    def tensor(self, value: Value, order: Sequence[int] | None = None, name: str = "") -> Tensor:
        """A value in an order of axes, in its full size; a constant is written in that order."""
        order = (
            tuple(range(np.ndim(value) if isinstance(value, np.ndarray) else len(value.shape)))
            if order is None
            else tuple(order)
        )
        if isinstance(value, np.ndarray):
            written = self.constant(value.transpose(order), name)
            return Tensor(written, value.shape, order)
        return self.ordered(self.full(value), order)

    def ordered(self, tensor: Tensor, order: Sequence[int]) -> Tensor:
        """The tensor with its axes in another order; axes of one entry move for nothing."""
        order = tuple(order)
        if tensor.order == order:
            return tensor
        moves = [tensor.order.index(axis) for axis in order]
        name = self.node("Transpose", [tensor.name], perm=moves)
        return tensor._replace(name=name, order=order)

    def full(self, tensor: Tensor) -> Tensor:
        """The tensor with every entry in the file."""
        if not tensor.thin:
            return tensor
        sizes = [tensor.shape[axis] for axis in tensor.order]
        if tensor.batch in tensor.thin and self.free:
            place = tensor.order.index(tensor.batch)
            around = (sizes[:place], sizes[place + 1 :])
            parts = [self.constant(np.array(part, np.int64)) if part else "" for part in around]
            parts.insert(1, self.batch_size())
            wide = self.node("Concat", [part for part in parts if part], axis=0)
        else:
            # Expand keeps an axis that is asked for with 1, and with it a free one.
            if tensor.batch is not None and tensor.batch not in tensor.thin:
                sizes[tensor.order.index(tensor.batch)] = 1
            wide = self.constant(np.array(sizes, np.int64))
        return tensor._replace(name=self.node("Expand", [tensor.name, wide]), thin=frozenset())

    def batch_size(self) -> str:
        """The name of `[batch]`, an int64 taken from the first input."""
        if "batch" not in self._shared:
            source, place = self.measured
            shape = self.node("Shape", [source], name="graph/shape")
            at = self.constant(np.array([place], np.int64))
            self._shared["batch"] = self.node("Gather", [shape, at], name="graph/batch", axis=0)
        return self._shared["batch"]

    def sizes(self, shape: Sequence[int], batch: int | None) -> str:
        """The constant that Reshape reads; the batch axis is whatever is left."""
        free = batch if self.free else None
        sizes = [-1 if axis == free else size for axis, size in enumerate(shape)]
        return self.constant(np.array(sizes, np.int64))


def thinned(array: np.ndarray) -> np.ndarray:
    """A constant with one entry of each axis along which it never changes."""
    for axis, size in enumerate(array.shape):
        if size > 1:
            first = array.take([0], axis)
            if (array == first).all():
                array = first
    return array
