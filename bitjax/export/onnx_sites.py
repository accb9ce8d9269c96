"""Writes quantized tensors by plain operators: integers, levels of tables, kernels of blocks."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bitjax.export.onnx_products import Filters
from bitjax.export.onnx_writer import Tensor, Writer


def spread(param: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of a block's shape where it broadcasts against a tensor."""
    param = np.asarray(param)
    if param.size == 1:
        return param.reshape(())
    for axis, (have, want) in enumerate(zip(param.shape, shape, strict=True)):
        if have not in (1, want):
            param = param.repeat(want // have, axis=axis)
    return param


def const_of(w: Writer, param: Any, x: Tensor) -> str:
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
        return w.op("Add", [count, const_of(w, first, x)], x, name=name)
    if params["coding"] == "signs":
        above = w.node("GreaterOrEqual", [x.name, w.constant(np.float32(0))])
        ends = [w.constant(np.float32(1)), w.constant(np.float32(-1))]
        return w.op("Where", [above, *ends], x, name=name)
    found = w.node("Round", [w.node("Mul", [x.name, const_of(w, params["rate"], x)])])
    if first.size == last.size == 1:
        return w.op("Clip", [found, const_of(w, first, x), const_of(w, last, x)], x, name=name)
    found = w.node("Max", [found, const_of(w, first, x)])
    return w.op("Min", [found, const_of(w, last, x)], x, name=name)


def scaled_codes(w: Writer, kernel: Filters) -> Tensor:
    """The levels of a kernel from its codes, for scales that no operator of ONNX spreads."""
    whole = w.tensor(narrow(kernel.integers), name=f"{kernel.site}/codes")
    whole = w.op("Cast", [whole.name], whole, to=w.onnx.TensorProto.FLOAT)
    scale = w.constant(kernel.scale.astype(np.float32), f"{kernel.site}/scale")
    return w.op("Mul", [whole.name, scale], whole, name=kernel.site)


def narrow(integers: np.ndarray) -> np.ndarray:
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
