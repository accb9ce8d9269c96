"""Writes primitives that move, join, cut and reduce tensors as ONNX nodes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bitjax.export.onnx_writer import Tensor, Value, Writer

_LEAST = np.iinfo(np.int64).min


def int64(w: Writer, numbers: Sequence[int]) -> str:
    """The constant of a few integers."""
    return w.constant(np.array(list(numbers), np.int64))


def reshaped(w: Writer, x: Value, shape: Sequence[int], batch: int | None) -> Value:
    """The value in another shape; what was thin is written in full, unless it stays an axis."""
    if isinstance(x, np.ndarray):
        return x.reshape(tuple(shape))
    return reshaped_tensor(w, x, shape, batch)


def reshaped_tensor(w: Writer, x: Tensor, shape: Sequence[int], batch: int | None) -> Tensor:
    """`reshaped` of what is no constant."""
    shape = tuple(shape)
    if x.shape == shape and x.batch == batch:
        return x
    old = [axis for axis in range(len(x.shape)) if x.shape[axis] > 1 or axis == x.batch]
    new = [axis for axis in range(len(shape)) if shape[axis] > 1 or axis == batch]
    if [x.shape[a] for a in old] != [shape[a] for a in new] or bool(x.thin - set(old)):
        x = w.full(x)
        moved = [axis for axis in x.order if axis in old]
        if moved != old:
            x = w.ordered(x, range(len(x.shape)))
        name = w.node("Reshape", [x.name, w.sizes(shape, batch)])
        return Tensor(name, shape, tuple(range(len(shape))), batch)
    # Axes of size 1 come or go, and the others keep their places in the file.
    place = dict(zip(old, new, strict=True))
    kept = iter(place[axis] for axis in x.order if axis in place)
    order = tuple(next(kept) if axis in new else axis for axis in _slots(len(shape), new))
    thin = frozenset(place[axis] for axis in x.thin)
    found = Tensor("", shape, order, batch, thin)
    free = None if batch is None or batch in thin else order.index(batch)
    name = w.node("Reshape", [x.name, w.sizes(found.in_file(), free)])
    return found._replace(name=name)


def _slots(rank: int, wide: Sequence[int]) -> list[int]:
    """Places in the file: images of a batch have their unit axes behind the channels."""
    # Two axes of 1 between others are an image's height and width, that a mean has left.
    ones = [axis for axis in range(rank) if axis not in wide]
    if rank == 4 and ones == [1, 2]:
        return [0, 3, 1, 2]
    return list(range(rank))


def _reshape(w, node, ins, out):
    if node.op == "reshape" and node.params.get("dimensions") is not None:
        raise NotImplementedError("a reshape that also transposes")
    return reshaped(w, ins[0], out.shape, out.batch_axis)


def _transpose(w, node, ins, out):
    permutation = list(node.params["permutation"])
    x = ins[0]
    to = {old: new for new, old in enumerate(permutation)}
    thin = frozenset(to[axis] for axis in x.thin)
    return Tensor(x.name, tuple(out.shape), tuple(to[a] for a in x.order), out.batch_axis, thin)


def _broadcast_in_dim(w, node, ins, out):
    """Only says where the operand's axes are: what computes with it broadcasts by itself."""
    x, places = ins[0], node.params["broadcast_dimensions"]
    rank = len(out.shape)
    kept = [1] * rank
    for axis, place in enumerate(places):
        kept[place] = x.shape[axis]
    batch = places[x.batch] if x.batch is not None else None
    x = reshaped_tensor(w, x, kept, batch)
    thin = {a for a in range(rank) if x.is_one(a) and (out.shape[a] > 1 or a == out.batch_axis)}
    return x._replace(shape=tuple(out.shape), batch=out.batch_axis, thin=frozenset(thin))


def _reduction(kind: str) -> Callable[..., Value]:
    def write(w, node, ins, out):
        x, axes = w.full(ins[0]), tuple(node.params["axes"])
        if not axes:
            return x
        places = sorted(x.order.index(axis) for axis in axes)
        left = [axis for axis in x.order if axis not in axes]
        names = {axis: i for i, axis in enumerate(sorted(left))}
        # Axes are an input of ReduceSum, and of the others from opset 18 on.
        given = kind == "ReduceSum" or w.opset >= 18
        name = w.node(
            kind, [x.name, *([int64(w, places)] if given else [])], keepdims=0,
            **({} if given else {"axes": places}),
        )  # fmt: skip
        order = tuple(names[axis] for axis in left)
        if kind == "ReduceSum" and out.batch_axis is not None and len(left) == 2:
            _note_mean(w, name, x, places, out)
        return Tensor(name, tuple(out.shape), order, out.batch_axis)

    return write


def _note_mean(w, total: str, x: Tensor, places: Sequence[int], out: Any) -> None:
    """Writes the mean over an image beside its sum; of both the one that is read stays."""
    if w.profile == "integers" or len(x.shape) != 4 or places != [2, 3]:
        return
    mean = w.node("GlobalAveragePool", [x.name])
    if x.order[:2] != tuple(sorted(x.order[:2])):
        return
    mean = w.node("Flatten", [mean], axis=1)
    w.means[total] = mean, math.prod(x.shape[a] for a in x.order[2:])


def _arg(kind: str) -> Callable[..., Value]:
    def write(w, node, ins, out):
        (axis,) = node.params["axes"]
        x = w.full(ins[0])
        name = w.node(kind, [x.name], axis=x.order.index(axis), keepdims=0)
        left = [a for a in x.order if a != axis]
        order = tuple(a - (a > axis) for a in left)
        to = w.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(out.dtype))
        return Tensor(w.node("Cast", [name], to=to), tuple(out.shape), order, out.batch_axis)

    return write


def _stack(w, node, ins, out):
    axis = node.params["axis"]
    one = [1 if i == axis else size for i, size in enumerate(out.shape)]
    ins = [reshaped(w, x, one, out.batch_axis) for x in ins]
    return _joined(w, ins, axis, out)


def _concatenate(w, node, ins, out):
    return _joined(w, ins, node.params["dimension"], out)


def _joined(w, ins, axis, out):
    order = next(x.order for x in ins if isinstance(x, Tensor))
    if out.batch_axis is not None and w.free:
        ins = [_with_batch(w, x, out) if isinstance(x, np.ndarray) else x for x in ins]
    names = [w.tensor(x, order).name for x in ins]
    name = w.node("Concat", names, axis=order.index(axis))
    return Tensor(name, tuple(out.shape), order, out.batch_axis)


def _with_batch(w, x, out):
    """A constant beside tensors of a free batch size: one entry of it stands for all."""
    axis = out.batch_axis
    first = x.take([0], axis)
    if not (x == first).all():
        raise NotImplementedError("a constant that differs from example to example")
    order = tuple(range(x.ndim))
    return Tensor(w.constant(first), x.shape, order, axis, frozenset({axis}))


def _pad(w, node, ins, out):
    x, (value, config) = w.full(ins[0]), (ins[1], node.params["padding_config"])
    if any(inner for _, _, inner in config) or isinstance(value, Tensor):
        raise NotImplementedError("padding between elements, or by a number that is computed")
    if any(low < 0 or high < 0 for low, high, _ in config):
        raise NotImplementedError("padding by less than nothing")
    around = [config[a][0] for a in x.order] + [config[a][1] for a in x.order]
    name = w.node("Pad", [x.name, int64(w, around), w.constant(np.asarray(value).reshape(()))])
    return Tensor(name, tuple(out.shape), x.order, out.batch_axis)


def cut(w: Writer, x: Tensor, starts, ends, steps, out: Any) -> Tensor:
    """A slice along the axes that it changes."""
    changed = [a for a in range(len(x.shape))
               if (starts[a], ends[a], steps[a]) != (0, x.shape[a], 1)]  # fmt: skip
    if not changed:
        return x
    x = w.full(x)
    rows = ([starts[a] for a in changed], [ends[a] for a in changed],
            [x.order.index(a) for a in changed], [steps[a] for a in changed])  # fmt: skip
    name = w.node("Slice", [x.name, *(int64(w, row) for row in rows)])
    return Tensor(name, tuple(out.shape), x.order, out.batch_axis)


def _slice(w, node, ins, out):
    p = node.params
    steps = p["strides"] or (1,) * len(out.shape)
    return cut(w, ins[0], p["start_indices"], p["limit_indices"], steps, out)


def _dynamic_slice(w, node, ins, out):
    x, starts = ins[0], ins[1:]
    if isinstance(x, np.ndarray) or any(isinstance(s, Tensor) for s in starts):
        raise NotImplementedError("a slice at a place that is computed")
    sizes = [x.shape[a] if a == x.batch else n for a, n in enumerate(node.params["slice_sizes"])]
    first = [int(np.clip(int(s), 0, n - size))
             for s, n, size in zip(starts, x.shape, sizes, strict=True)]  # fmt: skip
    ends = [a + n for a, n in zip(first, sizes, strict=True)]
    return cut(w, x, first, ends, [1] * len(sizes), out)


def _rev(w, node, ins, out):
    turned = node.params["dimensions"]
    rank = range(len(out.shape))
    starts = [-1 if a in turned else 0 for a in rank]
    ends = [_LEAST if a in turned else out.shape[a] for a in rank]
    return cut(w, ins[0], starts, ends, [-1 if a in turned else 1 for a in rank], out)


def _split(w, node, ins, outs):
    x, axis = w.full(ins[0]), node.params["axis"]
    sizes = int64(w, node.params["sizes"])
    names = w.several("Split", [x.name, sizes], len(node.outs), axis=x.order.index(axis))
    return [Tensor(name, tuple(out.shape), x.order, out.batch_axis)
            for name, out in zip(names, outs, strict=True)]  # fmt: skip


def _gather(w, node, ins, out):
    """Rows of a table, or entries along one axis, at places that are given or computed."""
    table, places = ins
    dims, sizes = node.params["dimension_numbers"], node.params["slice_sizes"]
    shape = table.shape
    axes = tuple(dims.start_index_map)
    whole = len(axes) == 1 and tuple(dims.collapsed_slice_dims) == axes
    whole = whole and not getattr(dims, "operand_batching_dims", ())
    if not whole or any(n != shape[a] for a, n in enumerate(sizes) if a != axes[0]):
        raise NotImplementedError("a gather of anything but whole entries along one axis")
    axis = axes[0]
    data = w.tensor(table)
    index = reshaped(w, places, places.shape[:-1], getattr(places, "batch", None))
    index = w.tensor(index)
    name = w.node("Gather", [data.name, index.name], axis=axis)
    rank, offsets = len(out.shape), list(dims.offset_dims)
    others = [a for a in range(rank) if a not in offsets]
    order = (*offsets[:axis], *others, *offsets[axis:])
    return Tensor(name, tuple(out.shape), order, out.batch_axis)


def _tile(w, node, ins, out):
    x, reps = w.full(ins[0]), node.params["reps"]
    if x.batch is not None and reps[x.batch] != 1:
        raise NotImplementedError("a batch that is repeated")
    name = w.node("Tile", [x.name, int64(w, [reps[axis] for axis in x.order])])
    return Tensor(name, tuple(out.shape), x.order, out.batch_axis)


def _cumsum(w, node, ins, out):
    x = w.full(ins[0])
    at = w.constant(np.array(x.order.index(node.params["axis"]), np.int64))
    return w.op("CumSum", [x.name, at], x, reverse=int(node.params["reverse"]))


SHAPES: dict[str, Callable[..., Any]] = {
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast_in_dim,
    "reduce_sum": _reduction("ReduceSum"),
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_prod": _reduction("ReduceProd"),
    "argmax": _arg("ArgMax"),
    "argmin": _arg("ArgMin"),
    "concatenate": _concatenate,
    "stack": _stack,
    "pad": _pad,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "rev": _rev,
    "split": _split,
    "gather": _gather,
    "tile": _tile,
    "cumsum": _cumsum,
}
