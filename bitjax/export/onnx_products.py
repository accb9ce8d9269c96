"""Writes products, and windows that slide over images, as ONNX nodes."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bitjax.export.onnx_shapes import reshaped, reshaped_tensor
from bitjax.export.onnx_writer import Tensor, Value, Writer, thinned

_FLOAT = 2**24  # sums below are whole in float32


class Filters(NamedTuple):
    """A quantized kernel as a product reads it, before it is written: `scale * integers`.

    Attributes:
      integers: whole numbers, in the product's axes.
      blocks: `scale`, `bits`, `first` and `last`, as they broadcast against the integers.
      site: the kernel's site.
      coding: how codes hold the integers.
      whole: whether the product reads the integers, and the scale stands behind it.
    """

    integers: np.ndarray
    blocks: dict[str, np.ndarray]
    site: str
    coding: str
    whole: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the product's operand."""
        return self.integers.shape

    @property
    def scale(self) -> np.ndarray:
        """The level of the integer 1."""
        return self.blocks["scale"]

    def transposed(self, order: Sequence[int]) -> "Filters":
        """The kernel with its axes in another order."""
        blocks = {k: a.transpose(order) if a.ndim else a for k, a in self.blocks.items()}
        return self._replace(integers=self.integers.transpose(order), blocks=blocks)

    def reshaped(self, shape: Sequence[int]) -> "Filters":
        """The kernel in another shape."""
        shape = tuple(shape)
        if shape == self.shape:
            return self
        blocks = {
            k: thinned(np.broadcast_to(a, self.shape).reshape(shape)) if a.ndim else a
            for k, a in self.blocks.items()
        }
        return self._replace(integers=self.integers.reshape(shape), blocks=blocks)


Operand = Value | Filters
Put = Callable[[Writer, Filters], Tensor]  # writes a kernel, as the profile has it


def convolution(w: Writer, node: Any, ins: Sequence[Operand], out: Any, put: Put) -> Tensor:
    """A convolution of any rank, with groups, strides and dilations of the kernel."""
    (x, kernel), p = ins, node.params
    spec = p["dimension_numbers"]
    if any(n != 1 for n in p["lhs_dilation"]) or p["batch_group_count"] != 1:
        raise NotImplementedError("a convolution whose input is dilated or grouped by batch")
    if any(n < 0 for pair in p["padding"] for n in pair):
        raise NotImplementedError("a convolution padded by less than nothing")
    assert not isinstance(x, Filters), "a kernel is the right operand"
    x = w.tensor(x, spec.lhs_spec)
    attributes = {
        "strides": list(p["window_strides"]),
        "pads": [low for low, _ in p["padding"]] + [high for _, high in p["padding"]],
        "dilations": list(p["rhs_dilation"]),
        "group": p["feature_group_count"],
        "kernel_shape": [kernel.shape[a] for a in spec.rhs_spec[2:]],
    }
    like = Tensor("", tuple(out.shape), tuple(spec.out_spec), out.batch_axis)
    if isinstance(kernel, Filters):
        kernel = kernel.transposed(spec.rhs_spec)
    elif isinstance(kernel, np.ndarray):
        kernel = kernel.transpose(spec.rhs_spec)
    if p.get("accumulator") == "int32" and w.profile == "integers":
        if isinstance(kernel, Tensor):
            raise NotImplementedError("a wide convolution with a kernel that is computed")
        whole = kernel.integers if isinstance(kernel, Filters) else kernel
        name = _in_digits(w, x.name, whole.astype(np.int64), attributes)
        return like._replace(name=name)
    if isinstance(kernel, Tensor):
        kernel = w.ordered(kernel, spec.rhs_spec)
    name = w.node("Conv", [x.name, _named(w, kernel, put)], **attributes)
    return like._replace(name=name)


def _named(w, operand, put):
    if isinstance(operand, Filters):
        return put(w, operand).name
    return w.tensor(operand).name if isinstance(operand, np.ndarray) else operand.name


def _in_digits(w: Writer, x: str, kernel: np.ndarray, attributes: dict[str, Any]) -> str:
    """An int32 convolution as a few of floats that are exact, since no runtime has one for int16.

    The input is 256 high + low. The kernel is cut into digits small enough for every sum.
    """
    high = w.node("Floor", [w.node("Mul", [x, w.constant(np.float32(1 / 256))])])
    low = w.node("Sub", [x, w.node("Mul", [high, w.constant(np.float32(256))])])
    base, digits = next(
        (2**k, found) for k in range(16, 0, -1) if _fits(found := _digits(kernel, 2**k))
    )
    total = ""
    for i, digit in enumerate(digits):
        filters = w.constant(digit.astype(np.float32))
        for part, worth in ((low, base**i), (high, 256 * base**i)):
            found = w.node("Conv", [part, filters], **attributes)
            found = w.node("Cast", [found], to=w.onnx.TensorProto.INT32)
            # int32 wraps around, so that only the whole sum has to fit.
            worth = np.array(worth & 0xFFFFFFFF, np.uint32).astype(np.int32)
            found = w.node("Mul", [found, w.constant(worth)])
            total = w.node("Add", [total, found]) if total else found
    return total


def _digits(kernel, base):
    """`sum(base^i * digits[i])`, each between minus and plus half the base."""
    found = []
    while kernel.any() or not found:
        digit = (kernel + base // 2) % base - base // 2
        found.append(digit)
        kernel = (kernel - digit) // base
    return found


def _fits(digits):
    summed = tuple(range(1, digits[0].ndim))
    return all(256 * np.abs(d).sum(summed).max() < _FLOAT for d in digits)


def dot(w: Writer, node: Any, ins: Sequence[Operand], out: Any, put: Put) -> Tensor:
    """Any contraction: both operands become stacks of matrices."""
    (left_sum, right_sum), (left_batch, right_batch) = node.params["dimension_numbers"]
    left, right = ins
    left_free = _others(left, left_sum, left_batch)
    right_free = _others(right, right_sum, right_batch)
    stack = [left.shape[a] for a in left_batch]
    inner = math.prod(left.shape[a] for a in left_sum)
    a = _moved(w, left, (*left_batch, *left_free, *left_sum))
    b = _moved(w, right, (*right_batch, *right_sum, *right_free))
    # A kernel multiplies every matrix of a stack as it is, so rows need not become one axis.
    rows = [left.shape[i] for i in left_free]
    if left_batch:
        rows = [math.prod(rows)]
    a = _shaped(w, a, (*stack, *rows, inner), left)
    columns = math.prod(right.shape[i] for i in right_free)
    b = _shaped(w, b, (*stack, inner, columns), right)
    # ONNX Runtime joins a kernel of 4 bits with a product of floats that quantizes by its own rule,
    # but for kernels of more axes than two.
    deep = w.profile == "qdq" and isinstance(b, Filters) and not left_batch
    deep = deep and isinstance(a, Tensor) and a.name not in w.steps
    if deep:
        b = b.reshaped((*(1,) * (max(len(rows), 2) - 1), inner, columns))
    names = [_named(w, a, put), _named(w, b, put)]
    if node.params.get("accumulator") == "int32" and w.profile == "integers":
        whole = w.onnx.TensorProto.INT32
        names = [w.node("Cast", [name], to=whole) for name in names]
    flat = tuple([*stack, *rows, columns])
    found = w.node("MatMul", names)
    if deep and len(rows) == 1:
        flat = (1, *flat)
    order = tuple(range(len(flat)))
    if not rows:  # a vector times a matrix
        raise NotImplementedError("a product of a vector")
    result = Tensor(found, flat, order, _batch_of(flat, out))
    return reshaped_tensor(w, result, out.shape, out.batch_axis)


def _others(operand, summed, batch):
    return [a for a in range(len(operand.shape)) if a not in summed and a not in batch]


def _moved(w, operand, order):
    """The operand with its axes in this order."""
    if isinstance(operand, Filters):
        return operand.transposed(order)
    if isinstance(operand, np.ndarray):
        return operand.transpose(order)
    moved = w.ordered(w.full(operand), order)
    batch = None if operand.batch is None else order.index(operand.batch)
    shape = tuple(operand.shape[a] for a in order)
    return Tensor(moved.name, shape, tuple(range(len(order))), batch)


def _shaped(w, operand, shape, before):
    if isinstance(operand, Tensor):
        batch = None if operand.batch is None else _batch_after(operand, shape)
        return reshaped(w, operand, shape, batch)
    return operand.reshaped(shape) if isinstance(operand, Filters) else operand.reshape(shape)


def _batch_after(operand, shape):
    """The axis that holds the batch after neighbours became one."""
    before = math.prod(operand.shape[: operand.batch])
    passed = 1
    for axis, size in enumerate(shape):
        if passed == before and size % operand.shape[operand.batch] == 0:
            return axis
        passed *= size
    raise NotImplementedError("a batch between other axes that become one")


def _batch_of(flat, out):
    if out.batch_axis is None:
        return None
    return _batch_after(Tensor("", tuple(out.shape), (), out.batch_axis), flat)


# ---- windows ----------------------------------------------------------------------------------


def _pool(kind: str, sign: str | None = None) -> Callable[..., Value]:
    def write(w, node, ins, out):
        x, p = w.full(ins[0]), node.params
        if any(n != 1 for n in p["base_dilation"]):
            raise NotImplementedError("a window over an input that is dilated")
        rank = len(x.shape)
        slid = [a for a in range(rank) if p["window_dimensions"][a] > 1
                or p["window_strides"][a] > 1 or tuple(p["padding"][a]) != (0, 0)]  # fmt: skip
        still = [a for a in x.order if a not in slid]
        if len(still) < 2:
            raise NotImplementedError("a window over the batch or the channels")
        places = [a for a in x.order if a in slid or a in still[2:]]
        x = w.ordered(x, (*still[:2], *places))
        attributes = {
            "kernel_shape": [p["window_dimensions"][a] for a in places],
            "strides": [p["window_strides"][a] for a in places],
            "pads": [p["padding"][a][i] for i in (0, 1) for a in places],
        }
        if any(n < 0 for n in attributes["pads"]):
            raise NotImplementedError("a window padded by less than nothing")
        dilations = [p["window_dilation"][a] for a in places]
        like = Tensor("", tuple(out.shape), x.order, out.batch_axis)
        if kind == "MaxPool":
            name = w.node("Neg", [x.name]) if sign else x.name
            name = w.node(kind, [name], dilations=dilations, **attributes)
            return like._replace(name=w.node("Neg", [name]) if sign else name)
        if any(n != 1 for n in dilations):
            raise NotImplementedError("a sum over a dilated window")
        name = w.node("AveragePool", [x.name], count_include_pad=1, **attributes)
        count = math.prod(attributes["kernel_shape"])
        whole = w.node("Mul", [name, w.constant(np.float32(count))])
        w.means[whole] = name, count
        return like._replace(name=whole)

    return write


WINDOWS: dict[str, Callable[..., Value]] = {
    "reduce_window_max": _pool("MaxPool"),
    "reduce_window_min": _pool("MaxPool", "Neg"),
    "reduce_window_sum": _pool("AveragePool"),
}
