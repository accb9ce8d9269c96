"""JAX's primitives on NumPy arrays, as loops that can be checked by eye."""

import math

import numpy as np

ONE = {
    "neg": np.negative, "exp": np.exp, "log": np.log, "tanh": np.tanh, "abs": np.abs,
    "sqrt": np.sqrt, "floor": np.floor, "ceil": np.ceil, "sign": np.sign, "not": np.logical_not,
    "rsqrt": lambda x: 1 / np.sqrt(x), "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "square": np.square, "log1p": np.log1p, "expm1": np.expm1, "is_finite": np.isfinite,
    "erf": np.vectorize(math.erf, otypes=[np.float32]),
    "erfc": np.vectorize(math.erfc, otypes=[np.float32]),
    "sin": np.sin, "cos": np.cos, "round": np.rint,
}  # fmt: skip
TWO = {
    "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    "max": np.maximum, "min": np.minimum, "pow": np.power, "rem": np.fmod, "atan2": np.arctan2,
    "eq": np.equal, "ne": np.not_equal, "gt": np.greater, "ge": np.greater_equal, "lt": np.less,
    "le": np.less_equal, "and": np.logical_and, "or": np.logical_or,
}  # fmt: skip
REDUCE = {
    "reduce_sum": np.sum, "reduce_max": np.max, "reduce_min": np.min, "reduce_prod": np.prod,
    "reduce_and": np.all, "reduce_or": np.any,
}  # fmt: skip
SAME = ("copy", "copy_p", "stop_gradient", "name", "sharding_constraint", "pvary")


# ---- products -----------------------------------------------------------------------------------


def _dot(params, left, right):
    (left_sums, right_sums), (left_batch, right_batch) = params["dimension_numbers"]
    names = iter("abcdefghijklmnopqrstuvwxyz")
    first = [next(names) for _ in left.shape]
    second = [next(names) for _ in right.shape]
    for i, j in zip((*left_sums, *left_batch), (*right_sums, *right_batch), strict=True):
        second[j] = first[i]
    out = [first[i] for i in left_batch]
    out += [n for i, n in enumerate(first) if i not in (*left_sums, *left_batch)]
    out += [n for j, n in enumerate(second) if j not in (*right_sums, *right_batch)]
    return np.einsum(f"{''.join(first)},{''.join(second)}->{''.join(out)}", left, right)


def _conv(params, x, kernel):
    """A convolution as a loop over the kernel's positions."""
    spec = params["dimension_numbers"]
    x, kernel = x.transpose(spec.lhs_spec), kernel.transpose(spec.rhs_spec)  # NC.., OI..
    if any(n != 1 for n in params["lhs_dilation"]):
        x = _dilate(x, (1, 1, *params["lhs_dilation"]))
    x = _padded(x, 0, [(0, 0, 0), (0, 0, 0), *((a, b, 0) for a, b in params["padding"])])
    groups, split = params["feature_group_count"], params["batch_group_count"]
    if split > 1:  # groups of examples, each with filters of its own
        x = np.concatenate(np.split(x, split, axis=0), axis=1)
        groups = split
    windows, dilation = kernel.shape[2:], params["rhs_dilation"]
    counts = [
        (n - (w - 1) * d - 1) // s + 1
        for n, w, d, s in zip(x.shape[2:], windows, dilation, params["window_strides"], strict=True)
    ]
    filters = kernel.shape[0] // groups
    out = np.zeros((x.shape[0], kernel.shape[0], *counts), x.dtype)
    for at in np.ndindex(*windows):
        seen = x[(..., *(
            slice(i * d, i * d + (n - 1) * s + 1, s)
            for i, d, n, s in zip(at, dilation, counts, params["window_strides"], strict=True)
        ))]  # fmt: skip
        for g in range(groups):
            own = slice(g * kernel.shape[1], (g + 1) * kernel.shape[1])
            rows = slice(g * filters, (g + 1) * filters)
            taps = kernel[(rows, slice(None), *at)]
            out[:, rows] += np.moveaxis(np.tensordot(seen[:, own], taps, ((1,), (1,))), -1, 1)
    return out.transpose(np.argsort(spec.out_spec))


PRODUCTS = {"dot_general": _dot, "conv_general_dilated": _conv}


# ---- moves and windows --------------------------------------------------------------------------


def _dilate(x, steps):
    shape = [(n - 1) * s + 1 if n else 0 for n, s in zip(x.shape, steps, strict=True)]
    out = np.zeros(shape, x.dtype)
    out[tuple(slice(None, None, s) for s in steps)] = x
    return out


def _padded(x, value, config):
    """Padding of (before, after, between); what is negative cuts."""
    shape = [n + max(n - 1, 0) * i for n, (_, _, i) in zip(x.shape, config, strict=True)]
    wide = np.full(shape, value, x.dtype)
    wide[tuple(slice(None, None, i + 1) for _, _, i in config)] = x
    wide = np.pad(
        wide, [(max(a, 0), max(b, 0)) for a, b, _ in config], constant_values=np.asarray(value)
    )
    return wide[
        tuple(
            slice(max(-a, 0), n - max(-b, 0))
            for (a, b, _), n in zip(config, wide.shape, strict=True)
        )
    ]


def _window(reduce, start):
    def run(params, x):
        dims, strides = params["window_dimensions"], params["window_strides"]
        dilation = params["window_dilation"]
        least = start(x.dtype)
        x = _dilate(x, params["base_dilation"])
        x = _padded(x, least, [(a, b, 0) for a, b in params["padding"]])
        counts = [
            (n - (w - 1) * d - 1) // s + 1
            for n, w, d, s in zip(x.shape, dims, dilation, strides, strict=True)
        ]
        out = np.full(counts, least, x.dtype)
        for at in np.ndindex(*dims):
            seen = x[tuple(
                slice(i * d, i * d + (n - 1) * s + 1, s)
                for i, d, n, s in zip(at, dilation, counts, strides, strict=True)
            )]  # fmt: skip
            out = reduce(out, seen)
        return out

    return run


def _lowest(dtype):
    return -np.inf if dtype.kind == "f" else np.iinfo(dtype).min


def _highest(dtype):
    return np.inf if dtype.kind == "f" else np.iinfo(dtype).max


def _broadcast(params, x):
    shape = [1] * len(params["shape"])
    for axis, n in zip(params["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = n
    return np.broadcast_to(x.reshape(shape), params["shape"])


def _slice(params, x):
    strides = params["strides"] or (1,) * x.ndim
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return x[tuple(slice(*bound) for bound in bounds)]


def _dynamic_slice(params, x, *starts):
    sizes = params["slice_sizes"]
    starts = [np.clip(s, 0, n - w) for s, n, w in zip(starts, x.shape, sizes, strict=True)]
    return x[tuple(slice(s, s + w) for s, w in zip(starts, sizes, strict=True))]


def _gather(params, x, indices):
    """Slices of x whose starts are the rows of `indices`, each clipped into x or filled."""
    spec, sizes = params["dimension_numbers"], params["slice_sizes"]
    if spec.operand_batching_dims:
        raise ValueError("'gather' of batches is not known to the interpreter.")
    fills = "FILL" in str(params["mode"])
    fill = params["fill_value"]
    if fill is None:
        fill = np.nan if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    kept = tuple(i for i in range(x.ndim) if i not in spec.collapsed_slice_dims)
    rows = indices.shape[:-1]
    out = np.zeros((*rows, *(sizes[i] for i in kept)), x.dtype)
    for row in np.ndindex(*rows):
        starts = np.zeros(x.ndim, np.int64)
        starts[list(spec.start_index_map)] = indices[row]
        inside = np.clip(starts, 0, np.array(x.shape) - sizes)
        if fills and (inside != starts).any():
            out[row] = fill
            continue
        own = x[tuple(slice(s, s + n) for s, n in zip(inside, sizes, strict=True))]
        out[row] = own.squeeze(tuple(spec.collapsed_slice_dims))
    axes = [i for i in range(out.ndim) if i not in spec.offset_dims]
    return np.moveaxis(out, range(len(rows)), axes)


def _select(params, which, *cases):
    del params
    return np.choose(which.astype(np.int64), cases)


def _iota(params, *_):
    axis, shape = params["dimension"], params["shape"]
    wide = [-1 if i == axis else 1 for i in range(len(shape))]
    return np.broadcast_to(np.arange(shape[axis]).reshape(wide), shape)


MOVES = {
    "reshape": lambda params, x: x.reshape(params["new_sizes"]),
    "transpose": lambda params, x: x.transpose(params["permutation"]),
    "squeeze": lambda params, x: np.squeeze(x, params["dimensions"]),
    "expand_dims": lambda params, x: np.expand_dims(x, params["dimensions"]),
    "broadcast_in_dim": _broadcast,
    "convert_element_type": lambda params, x: x.astype(params["new_dtype"]),
    "integer_pow": lambda params, x: x ** params["y"],
    "clamp": lambda params, low, x, high: np.clip(x, low, high),
    "concatenate": lambda params, *x: np.concatenate(x, params["dimension"]),
    "stack": lambda params, *x: np.stack(x, params["axis"]),
    "pad": lambda params, x, value: _padded(x, value, params["padding_config"]),
    "rev": lambda params, x: np.flip(x, params["dimensions"]),
    "slice": _slice,
    "select_n": _select,
    "iota": _iota,
    "argmax": lambda params, x: np.argmax(x, params["axes"][0]),
    "cumsum": lambda params, x: np.cumsum(x, params["axis"]),
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "reduce_window_max": _window(np.maximum, _lowest),
    "reduce_window_min": _window(np.minimum, _highest),
    "reduce_window_sum": _window(np.add, lambda dtype: 0),
}
