"""The profile `qdq`: QuantizeLinear and DequantizeLinear, in the smallest types for the codes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from bitjax.export.onnx_products import Filters
from bitjax.export.onnx_sites import const_of, integers_of, scaled_codes, spread
from bitjax.export.onnx_writer import Tensor, Writer

MOST_BITS = 16
SMALL = ("int2", "uint2", "int4", "uint4")


class Stored(NamedTuple):
    """How ONNX holds integers: `integer = code - zero`."""

    dtype: np.dtype
    zero: int
    exact: bool  # whether the type ends where the integers do


def stored(first: int, last: int, widths: tuple[int, ...]) -> Stored:
    """The smallest type for a kernel's integers from `first` to `last`."""
    for bits in widths:
        half, most = 2 ** (bits - 1), 2**bits - 1
        if first >= -half and last < half and first < 0:
            return Stored(_type(f"int{bits}"), 0, (first, last) == (-half, half - 1))
        if last - min(first, 0) <= most:
            zero = max(-first, 0)
            return Stored(_type(f"uint{bits}"), zero, (first + zero, last + zero) == (0, most))
    raise NotImplementedError(f"integers of more than {MOST_BITS} bits")


def stored_input(first: int, last: int) -> Stored:
    """The type for an input's integers, which ONNX Runtime 1.32 restricts.

    Types below 8 bits have no Clip, and Relu is taken away in front of them, which is right from 0
    on alone. Those of 2 bits have no Reshape. Moved through other nodes, int8 becomes uint8 and the
    file is refused. So signed integers are unsigned codes, as QLinearConv likes them best.
    """
    for bits in (4, 8, 16):
        zero, most = max(-first, 0), 2**bits - 1
        exact = (first + zero, last + zero) == (0, most)
        if last + zero <= most and (bits >= 8 or (exact and not zero)):
            return Stored(_type(f"uint{bits}"), zero, exact)
    raise NotImplementedError(f"integers of more than {MOST_BITS} bits")


def _widths(opset, kernel):
    """The types that a kernel may have: those of 2 bits came with opset 25, those of 4 with 21."""
    # ONNX Runtime 1.32 makes a QLinearMatMul of 2 bits, which it then refuses.
    return (2, 4, 8, 16) if opset >= 25 and len(kernel.shape) > 2 else (4, 8, 16)


def _type(name):
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def quantize_qdq(w: Writer, params: Mapping[str, Any], x: Tensor) -> Tensor:
    """One QuantizeLinear and one DequantizeLinear, between which runtimes fuse."""
    scale, rate = (np.asarray(params[k], np.float32) for k in ("scale", "rate"))
    ends = [np.asarray(params[k]).ravel() for k in ("first", "last")]
    kind = stored_input(int(ends[0].min()), int(ends[1].max()))
    w.zeros[w.scope] = kind.zero
    plain = params.get("edges") is None and params["coding"] != "signs"
    plain = plain and all((end == end[0]).all() for end in ends) and bool((rate > 0).all())
    if plain and _axis_of(spread(scale, x.shape)) is not None:
        return _plain(w, scale, int(ends[0][0]), int(ends[1][0]), kind, x)
    # The integers are found in floats, and their codes are whole already.
    one, zero = w.constant(np.float32(1)), w.constant(np.array(kind.zero, kind.dtype))
    whole = integers_of(w, params, x, f"{w.scope}/integers")
    codes = w.op("QuantizeLinear", [whole.name, one, zero], x, name=f"{w.scope}/codes")
    w.taps[f"{w.scope}/codes"] = codes
    if scale.size == 1:
        step = w.constant(scale.reshape(()))
        return _levels(w, codes, [step, zero], scale)
    name = w.node("DequantizeLinear", [codes.name, one, zero])
    return w.op("Mul", [name, const_of(w, scale, x)], x, name=w.scope)


def _plain(w: Writer, scale, first: int, last: int, kind: Stored, x: Tensor) -> Tensor:
    """The nearest integers, by a scale or one for each entry of an axis."""
    axis = _axis_of(spread(scale, x.shape))
    along: dict[str, Any] = {} if axis == -1 else {"axis": x.order.index(axis)}
    step = spread(scale, x.shape).reshape(-1 if along else ())
    zeros = np.full(step.shape, kind.zero, kind.dtype)
    ins, given = [w.constant(step), w.constant(zeros)], x.name
    if not kind.exact and kind.dtype.itemsize > 1:  # Clip has no types of 16 bits in runtimes
        given = w.node("Max", [given, const_of(w, np.float32(first) * scale, x)])
        given = w.node("Min", [given, const_of(w, np.float32(last) * scale, x)])
    codes = f"{w.scope}/codes"
    name = w.node("QuantizeLinear", [given, *ins], name=codes, **along)
    if not kind.exact and kind.dtype.itemsize == 1:
        limits = [w.constant(np.array(end + kind.zero, kind.dtype)) for end in (first, last)]
        name = w.node("Clip", [name, *limits], name=codes)
    w.taps[codes] = x._replace(name=name)
    return _levels(w, w.taps[codes], ins, scale, **along)


def _levels(w, codes, ins, scale, **along):
    found = w.op("DequantizeLinear", [codes.name, *ins], codes, name=w.scope, **along)
    w.steps[found.name] = scale.reshape(()) if scale.size == 1 else None
    return found


def _axis_of(scale: np.ndarray) -> int | None:
    """The one axis along which a scale changes; -1 where it does not, None of several."""
    axes = [axis for axis in range(scale.ndim) if scale.shape[axis] > 1]
    return None if len(axes) > 1 else axes[0] if axes else -1


def kernel_qdq(w: Writer, kernel: Filters) -> Tensor:
    """Codes and DequantizeLinear, along an axis if every filter has a scale."""
    scale, first, last = (kernel.blocks[name] for name in ("scale", "first", "last"))
    axis = _axis_of(scale)
    if axis is None:
        return scaled_codes(w, kernel)
    widths = _widths(w.opset, kernel)
    kind = stored(int(first.min()), int(last.max()), widths)
    zero = np.int32(kind.zero)
    own = stored(-1, int((last - first).max()) - 1, widths)
    if own.dtype.itemsize < kind.dtype.itemsize and _axis_of(first) == axis and (first <= 0).all():
        # A zero point for each filter lets all of them have a smaller type.
        kind, zero = own._replace(dtype=_type(f"u{own.dtype.name.lstrip('u')}")), -first
    codes = (kernel.integers + zero).astype(np.int32).astype(kind.dtype)
    whole = w.tensor(codes, name=f"{kernel.site}/codes")
    more = {} if axis == -1 else {"axis": axis}
    step = w.constant(scale.ravel() if more else scale.reshape(()), f"{kernel.site}/scale")
    ins = [whole.name, step]
    if np.any(zero):
        zeros = np.broadcast_to(zero, scale.shape).reshape(-1 if more else ())
        ins.append(w.constant(zeros.astype(np.int32).astype(kind.dtype)))
    return w.op("DequantizeLinear", ins, whole, name=kernel.site, **more)


def absorb_bias(w: Writer, conv: str, unit: np.ndarray, bias: np.ndarray) -> bool:
    """Makes a bias the third input of a convolution, in int32 at the scale of its sums.

    That is where integer kernels have it. Only an exact one is: rounded to this scale it would move
    logits by more than one at 4 bits.
    """
    at, node = next((i, n) for i, n in enumerate(w.nodes) if conv in n.output)
    codes = np.rint(bias.astype(np.float64) / unit) if (unit > 0).all() else np.array(np.inf)
    if node.op_type != "Conv" or np.abs(codes).max() >= 2**31:
        return False
    if (codes.astype(np.float32) * unit != bias).any():
        return False
    ins = [w.constant(codes.astype(np.int32)), w.constant(unit)]
    node.input.append(w.node("DequantizeLinear", ins, axis=0))
    w.nodes.insert(at, w.nodes.pop())
    return True
