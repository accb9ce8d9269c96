"""How each profile writes what is quantized: inputs, kernels, and the levels of a table.

  qdq       QuantizeLinear and DequantizeLinear of ONNX, in the smallest type that holds the codes
  integers  whole numbers in float tensors: Mul, Round, Clip; products of them; Mul by the scale
  qonnx     Quant and BipolarQuant of QONNX, which hold any number of bits
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from bitjax.export.onnx_products import Filters
from bitjax.export.onnx_writer import DOMAIN, Tensor, Writer

MOST_BITS = 16
SMALL = ("int2", "uint2", "int4", "uint4")


class Profile(NamedTuple):
    """How quantized tensors are written.

    Attributes:
      integers: whether a product reads integers, and a scale follows it; else it reads levels.
      quantize: `(writer, params, x) -> Tensor`, integers or levels.
      kernel: `(writer, Filters) -> Tensor`, integers or levels, as the product reads them.
    """

    integers: bool
    quantize: Callable[[Writer, Mapping[str, Any], Tensor], Tensor]
    kernel: Callable[[Writer, Filters], Tensor]


# ---- what all profiles have -------------------------------------------------------------------


def spread(param: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of a block's shape where it broadcasts against a tensor."""
    param = np.asarray(param)
    if param.size == 1:
        return param.reshape(())
    for axis, (have, want) in enumerate(zip(param.shape, shape, strict=True)):
        if have not in (1, want):
            param = param.repeat(want // have, axis=axis)
    return param


def _const(w: Writer, param: Any, x: Tensor) -> str:
    """A parameter as a constant in the order of a tensor's axes."""
    param = spread(np.asarray(param, np.float32), x.shape)
    return w.constant(param.transpose(x.order) if param.ndim else param)


def count_of_edges(w: Writer, x: Tensor, edges: np.ndarray) -> str:
    """How many of the edges are at most x, as int64, by halving."""
    edges = np.asarray(edges, np.float32)
    most = edges.shape[-1]
    steps = most.bit_length()
    size = 2**steps - 1
    padded = np.full((*edges.shape[:-1], size), np.inf, np.float32)
    padded[..., :most] = edges
    before = None
    if padded.size > size:  # a table for each block
        blocks = edges.shape[:-1]
        start = spread(np.arange(int(np.prod(blocks))).reshape(blocks) * size, x.shape)
        before = w.constant(start.transpose(x.order).astype(np.int64))
    flat = w.constant(padded.reshape(-1))
    found = w.constant(np.array(0, np.int64))
    for bit in reversed(range(steps)):
        tried = w.node("Add", [found, w.constant(np.array(2**bit, np.int64))])
        at = w.node("Sub", [tried, w.constant(np.array(1, np.int64))])
        at = at if before is None else w.node("Add", [at, before])
        edge = w.node("Gather", [flat, at])
        found = w.node("Where", [w.node("GreaterOrEqual", [x.name, edge]), tried, found])
    # An infinite x lies above what only fills the table up.
    return w.node("Min", [found, w.constant(np.array(most, np.int64))]) if size > most else found


def lookup(w: Writer, params: Mapping[str, Any], x: Tensor) -> Tensor:
    """The levels of a table."""
    code = count_of_edges(w, x, params["edges"])
    w.taps[f"{w.scope}/codes"] = x._replace(name=code)
    levels = np.asarray(params["levels"], np.float32)
    if levels.ndim > 1 and levels.size > levels.shape[-1]:
        blocks, size = levels.shape[:-1], levels.shape[-1]
        start = spread(np.arange(int(np.prod(blocks))).reshape(blocks) * size, x.shape)
        code = w.node("Add", [code, w.constant(start.transpose(x.order).astype(np.int64))])
    return w.op("Gather", [w.constant(levels.reshape(-1)), code], x, name=w.scope)


def integers_of(w: Writer, params: Mapping[str, Any], x: Tensor, name: str) -> Tensor:
    """The integers of an input, as floats."""
    first, last = (np.asarray(params[end], np.float32) for end in ("first", "last"))
    if params.get("edges") is not None:
        count = w.node("Cast", [count_of_edges(w, x, params["edges"])], to=w.onnx.TensorProto.FLOAT)
        if not first.any():
            return x._replace(name=w.node("Identity", [count], name=name))
        return w.op("Add", [count, _const(w, first, x)], x, name=name)
    if params["coding"] == "signs":
        above = w.node("GreaterOrEqual", [x.name, w.constant(np.float32(0))])
        ends = [w.constant(np.float32(1)), w.constant(np.float32(-1))]
        return w.op("Where", [above, *ends], x, name=name)
    found = w.node("Round", [w.node("Mul", [x.name, _const(w, params["rate"], x)])])
    if first.size == last.size == 1:
        return w.op("Clip", [found, _const(w, first, x), _const(w, last, x)], x, name=name)
    found = w.node("Max", [found, _const(w, first, x)])
    return w.op("Min", [found, _const(w, last, x)], x, name=name)


def scaled_codes(w: Writer, kernel: Filters) -> Tensor:
    """The levels of a kernel from its codes, for scales that no operator of ONNX spreads."""
    whole = w.tensor(_narrow(kernel.integers), name=f"{kernel.site}/codes")
    whole = w.op("Cast", [whole.name], whole, to=w.onnx.TensorProto.FLOAT)
    scale = w.constant(kernel.scale.astype(np.float32), f"{kernel.site}/scale")
    return w.op("Mul", [whole.name, scale], whole, name=kernel.site)


def _narrow(integers: np.ndarray) -> np.ndarray:
    """Whole numbers in int8, int16 or int32."""
    low, high = int(integers.min(initial=0)), int(integers.max(initial=0))
    kinds = (np.int8, np.int16, np.int32)
    kind = next(k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max)
    return integers.astype(kind)


def table_kernel(w: Writer, site: str, codes: np.ndarray, table: np.ndarray) -> Tensor:
    """The levels of a kernel that has a table."""
    most = table.shape[-1]
    start = spread(np.arange(table.size // most).reshape(table.shape[:-1]) * most, codes.shape)
    kind = np.uint8 if table.size <= 256 else np.int32
    place = w.tensor((codes + start).astype(kind), name=f"{site}/codes")
    place = w.op("Cast", [place.name], place, to=w.onnx.TensorProto.INT32)
    levels = w.constant(table.astype(np.float32).reshape(-1), f"{site}/levels")
    return w.op("Gather", [levels, place.name], place, name=site)


# ---- integers ---------------------------------------------------------------------------------


def _quantize_integers(w, params, x):
    found = integers_of(w, params, x, f"{w.scope}/codes")
    w.taps[f"{w.scope}/codes"], w.zeros[w.scope] = found, 0
    return found


def _kernel_integers(w, kernel):
    """The integers, kept small in the file."""
    if not kernel.whole:
        return scaled_codes(w, kernel)
    whole = w.tensor(_narrow(kernel.integers), name=f"{kernel.site}/codes")
    return w.op("Cast", [whole.name], whole, name=kernel.site, to=w.onnx.TensorProto.FLOAT)


# ---- qdq --------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """How ONNX holds integers: `integer = code - zero`."""

    dtype: Any
    zero: int
    exact: bool  # whether the type ends where the integers do


def stored(first: int, last: int, opset: int) -> Stored:
    """The smallest type for integers from `first` to `last`."""
    # Types of 2 bits came with opset 25, those of 4 with 21.
    for bits in ([2] if opset >= 25 else []) + [4, 8, 16]:
        half, most = 2 ** (bits - 1), 2**bits - 1
        if first >= -half and last < half and first < 0:
            return Stored(_type(f"int{bits}"), 0, (first, last) == (-half, half - 1))
        if last - min(first, 0) <= most:
            zero = max(-first, 0)
            return Stored(_type(f"uint{bits}"), zero, (first + zero, last + zero) == (0, most))
    raise NotImplementedError(f"integers of more than {MOST_BITS} bits")


def _type(name):
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def _quantize_qdq(w, params, x):
    """One QuantizeLinear and one DequantizeLinear, between which runtimes fuse; Clip if needed."""
    scale, rate = (np.asarray(params[k], np.float32) for k in ("scale", "rate"))
    ends = [np.asarray(params[k]).ravel() for k in ("first", "last")]
    first, last = int(ends[0].min()), int(ends[1].max())
    axis = _axis_of(spread(scale, x.shape))
    same = all((end == end[0]).all() for end in ends)
    plain = params.get("edges") is None and params["coding"] != "signs" and same
    plain = plain and axis is not None and bool((rate > 0).all())
    kind = stored(first, last, w.opset)
    if kind.dtype.name in SMALL and not (kind.exact and first == 0):
        # Clip has no such types. And ONNX Runtime 1.32 takes the Relu away in front of signed ones,
        # as is right for unsigned ones alone.
        kind = Stored(np.dtype("int8" if first < 0 else "uint8"), 0, False)
    zero = w.constant(np.array(kind.zero, kind.dtype))
    codes, one = f"{w.scope}/codes", w.constant(np.float32(1))
    if plain:
        step, along = _per_axis(w, scale, axis, x)
        zeros = zero if axis == -1 else w.constant(np.full(scale.size, kind.zero, kind.dtype))
        given = x.name
        if not kind.exact and kind.dtype.itemsize > 1:  # Clip has no types of 16 bits in runtimes
            limits = [np.float32(end) * scale for end in (first, last)]
            given = _between(w, given, limits, x)
        name = w.node("QuantizeLinear", [given, step, zeros], name=codes, **along)
        if not kind.exact and kind.dtype.itemsize == 1:
            limits = [w.constant(np.array(end + kind.zero, kind.dtype)) for end in (first, last)]
            name = w.node("Clip", [name, *limits], name=codes)
        w.taps[codes], w.zeros[w.scope] = x._replace(name=name), kind.zero
        return w.op("DequantizeLinear", [name, step, zeros], x, name=w.scope, **along)
    whole = integers_of(w, params, x, f"{w.scope}/integers")
    name = w.node("QuantizeLinear", [whole.name, one, zero], name=codes)
    w.taps[codes], w.zeros[w.scope] = x._replace(name=name), kind.zero
    if scale.size == 1:
        step = w.constant(scale.reshape(()))
        return w.op("DequantizeLinear", [name, step, zero], x, name=w.scope)
    name = w.node("DequantizeLinear", [name, one, zero])
    return w.op("Mul", [name, _const(w, scale, x)], x, name=w.scope)


def _between(w, x, limits, like):
    if limits[0].size == 1:
        return w.node("Clip", [x, *(w.constant(limit.reshape(())) for limit in limits)])
    low = w.node("Max", [x, _const(w, limits[0], like)])
    return w.node("Min", [low, _const(w, limits[1], like)])


def _axis_of(scale: np.ndarray) -> int | None:
    """The one axis along which a scale changes; -1 where it does not, None of several."""
    axes = [axis for axis in range(scale.ndim) if scale.shape[axis] > 1]
    return None if len(axes) > 1 else axes[0] if axes else -1


def _per_axis(w, scale, axis, x):
    if axis == -1:
        return w.constant(scale.reshape(())), {}
    whole = spread(scale, x.shape).ravel()
    return w.constant(whole), {"axis": x.order.index(axis)}


def _kernel_qdq(w, kernel):
    scale, first, last = (kernel.blocks[name] for name in ("scale", "first", "last"))
    axis = _axis_of(scale)
    if axis is None:
        return scaled_codes(w, kernel)
    kind = stored(int(first.min()), int(last.max()), w.opset)
    zero = np.int32(kind.zero)
    own = stored(-1, int((last - first).max()) - 1, w.opset)
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


# ---- qonnx ------------------------------------------------------------------------------------


def _quant_of(bits, first, last) -> tuple[int, int, Any] | None:
    """`signed, narrow, zero` of the operator Quant; None where it has no such integers."""
    bits, first, last = (np.asarray(a, np.float64) for a in (bits, first, last))
    half = 2.0 ** (bits - 1)
    if ((first == -half) & (last == half - 1)).all():
        return 1, 0, np.float32(0)
    if ((first == 1 - half) & (last == half - 1)).all():
        return 1, 1, np.float32(0)
    if (last - first == 2.0**bits - 1).all():
        return 0, 0, np.float32(-first)
    return None


def _quant(w, x: str, scale, bits, kind, like: Tensor, name: str) -> Tensor:
    def const(a):
        a = np.asarray(a, np.float32)
        a = a.ravel()[0] if (a == a.ravel()[0]).all() else a
        return _const(w, a, like)

    signed, narrow, zero = kind
    scale = np.asarray(scale)
    return w.op(
        "Quant", [x, const(np.where(scale > 0, scale, 1)), const(zero), const(bits)], like,
        name=name, domain=DOMAIN, signed=signed, narrow=narrow, rounding_mode="ROUND",
    )  # fmt: skip


def _quantize_qonnx(w, params, x):
    scale, rate = (np.asarray(params[k], np.float32) for k in ("scale", "rate"))
    if params["coding"] == "signs":
        found = w.op("BipolarQuant", [x.name, _const(w, scale, x)], x, name=w.scope, domain=DOMAIN)
        w.taps[w.scope] = found
        return found
    kind = _quant_of(params["bits"], params["first"], params["last"])
    if kind is None:
        raise NotImplementedError("integers from {first} to {last} at {bits} bits".format(**params))
    name = x.name
    if params.get("edges") is not None:
        whole = integers_of(w, params, x, f"{w.scope}/integers")
        name = w.node("Mul", [whole.name, _const(w, scale, x)])
    elif not (rate > 0).all():
        name = w.node("Mul", [name, _const(w, rate > 0, x)])
    found = _quant(w, name, scale, params["bits"], kind, x, w.scope)
    w.taps[w.scope] = found
    return found


def _kernel_qonnx(w, kernel):
    """The levels, which Quant finds again."""
    scale, bits, first, last = (kernel.blocks[k] for k in ("scale", "bits", "first", "last"))
    levels = (kernel.integers * scale).astype(np.float32)
    like = w.tensor(levels, name=f"{kernel.site}/levels")
    if kernel.coding == "signs":
        step = w.constant(scale, f"{kernel.site}/scale")
        return w.op("BipolarQuant", [like.name, step], like, name=kernel.site, domain=DOMAIN)
    # A block without bits is all zeros, as it is with one bit.
    kind = _quant_of(bits, first, np.where(bits > 0, last, first + 1))
    kind = kind or _quant_of(np.maximum(bits, 1), first, np.where(bits > 0, last, first + 1))
    if kind is None:
        raise NotImplementedError(f"a kernel of integers from {first.min():g} to {last.max():g}")
    return _quant(w, like.name, scale, np.maximum(bits, 1), kind, like, kernel.site)


PROFILES = {
    "qdq": Profile(False, _quantize_qdq, _kernel_qdq),
    "integers": Profile(True, _quantize_integers, _kernel_integers),
    "qonnx": Profile(False, _quantize_qonnx, _kernel_qonnx),
}
