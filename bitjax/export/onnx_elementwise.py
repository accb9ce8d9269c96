"""Writes primitives that act on every element by itself as ONNX nodes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bitjax.export.onnx_writer import Tensor, Value, Writer, thinned

Write = Callable[..., Value]


def aligned(w: Writer, ins: Sequence[Value], out: Any) -> tuple[list[str], Tensor]:
    """The operands in one order of axes, as they broadcast; and what their result looks like."""
    rank = len(out.shape)
    whole = [x for x in ins if isinstance(x, Tensor) and len(x.shape) == rank]
    # Of several orders that of an operand with all entries, since the others are cheaper to move.
    order = min(whole, key=lambda x: len(x.thin)).order
    names, thin = [], frozenset(range(rank))
    for x in ins:
        if isinstance(x, np.ndarray):
            x = thinned(x)
            thin -= {axis for axis in range(x.ndim) if x.shape[axis] > 1}
            names.append(w.constant(x.transpose(order) if x.size > 1 else x.reshape(())))
        else:
            if len(x.shape) == rank:
                thin -= {axis for axis in range(rank) if not x.is_one(axis)}
                x = w.ordered(x, order)
            names.append(x.name)
    thin = frozenset(a for a in thin if out.shape[a] > 1 or a == out.batch_axis)
    return names, Tensor("", tuple(out.shape), order, out.batch_axis, thin)


def _plain(kind: str) -> Write:
    """An ONNX operator that means what the primitive does."""

    def write(w, node, ins, out):
        names, like = aligned(w, ins, out)
        return w.op(kind, names, like)

    return write


def _chain(*kinds: str) -> Write:
    """Operators of one operand, one after the other."""

    def write(w, node, ins, out):
        names, like = aligned(w, ins, out)
        for kind in kinds:
            names = [w.node(kind, names)]
        return like._replace(name=names[0])

    return write


def _built(build: Callable[..., str]) -> Write:
    """An expression of several nodes; `build(w, node, *names)`."""

    def write(w, node, ins, out):
        names, like = aligned(w, ins, out)
        return like._replace(name=build(w, node, *names))

    return write


def _number(w: Writer, value: float) -> str:
    return w.constant(np.float32(value))


def _integer_pow(w, node, x):
    """Products, as JAX has them: a power in floats is rounded otherwise."""
    exponent = node.params["y"]
    if exponent == 0:
        return w.node("Add", [w.node("Mul", [x, _number(w, 0)]), _number(w, 1)])
    result, square, left = "", x, abs(exponent)
    while left:
        if left & 1:
            result = w.node("Mul", [result, square]) if result else square
        left >>= 1
        if left:
            square = w.node("Mul", [square, square])
    return w.node("Reciprocal", [result]) if exponent < 0 else result


def _expm1(w, node, x):
    """2 t / (1 - t) of t = tanh(x / 2), which keeps its digits near 0; exp(x) - 1 above 1."""
    small = w.node("Min", [x, _number(w, 1)])
    t = w.node("Tanh", [w.node("Mul", [small, _number(w, 0.5)])])
    near = w.node("Div", [w.node("Add", [t, t]), w.node("Sub", [_number(w, 1), t])])
    far = w.node("Sub", [w.node("Exp", [x]), _number(w, 1)])
    return w.node("Where", [w.node("Greater", [x, _number(w, 1)]), far, near])


def _log1p(w, node, x):
    """log(u) x / (u - 1) of u = 1 + x, which takes back what the sum has lost; x where u is 1."""
    u = w.node("Add", [x, _number(w, 1)])
    lost = w.node("Sub", [u, _number(w, 1)])
    none = w.node("Equal", [lost, _number(w, 0)])
    safe = w.node("Where", [none, _number(w, 1), lost])
    found = w.node("Mul", [w.node("Log", [u]), w.node("Div", [x, safe])])
    # At infinity the quotient is no number.
    found = w.node("Where", [w.node("IsInf", [x]), x, found])
    return w.node("Where", [none, x, found])


def _select(w, node, which, *cases):
    if len(cases) != 2:
        raise NotImplementedError("a choice of more than two")
    return w.node("Where", [which, cases[1], cases[0]])


def _clamp(w, node, low, x, high):
    return w.node("Min", [w.node("Max", [x, low]), high])


def _max(w, node, ins, out):
    """A maximum with 0 is a Relu, which runtimes join with what stands before it."""
    constants = [x for x in ins if isinstance(x, np.ndarray)]
    if len(constants) == 1 and constants[0].dtype == np.float32 and not constants[0].any():
        x = next(x for x in ins if isinstance(x, Tensor))
        if x.shape == tuple(out.shape):
            return w.op("Relu", [x.name], x)
    return _plain("Max")(w, node, ins, out)


def _mul(w, node, ins, out):
    """A product; a sum times the inverse of its count is a mean, which has an operator."""
    sums = [x for x in ins if isinstance(x, Tensor) and x.name in w.means]
    others = [thinned(x) for x in ins if isinstance(x, np.ndarray)]
    if w.profile != "integers" and sums and others and others[0].size == 1:
        mean, count = w.means[sums[0].name]
        if others[0].dtype == np.float32 and others[0].item() == np.float32(1 / count):
            return sums[0]._replace(name=mean)
    names, like = aligned(w, ins, out)
    found = w.op("Mul", names, like)
    if np.dtype(out.dtype) == np.float32:
        w.factors[found.name] = names
    return found


def _sum(kind: str) -> Write:
    """A sum; in `integers` one with a product is rounded once, as compilers of JAX contract it."""

    def write(w, node, ins, out):
        names, like = aligned(w, ins, out)
        place = next((i for i, name in enumerate(names) if name in w.factors), None)
        if w.profile != "integers" or place is None:
            return w.op(kind, names, like)
        # A product of two float32 is exact in float64.
        factors = [w.double(name) for name in w.factors[names[place]]]
        names = [name if i == place else w.double(name) for i, name in enumerate(names)]
        names[place] = w.node("Mul", factors)
        return w.op("Cast", [w.node(kind, names)], like, to=w.onnx.TensorProto.FLOAT)

    return write


def _convert(w, node, ins, out):
    return _cast(w, ins[0], out)


def _cast(w: Writer, x: Value, out: Any) -> Value:
    kind = np.dtype(out.dtype)
    if isinstance(x, np.ndarray):
        return x.astype(kind)
    return w.op("Cast", [x.name], x, to=w.onnx.helper.np_dtype_to_tensor_dtype(kind))


def _round(w, node, ins, out):
    if int(node.params["rounding_method"]) != 1:
        raise NotImplementedError("rounding of halves away from zero")
    return _plain("Round")(w, node, ins, out)


def _same(w, node, ins, out):
    return ins[0]


def _not(kind: str) -> Write:
    return _chain(kind, "Not")


def _power(base: float) -> Write:
    return _built(lambda w, node, x: w.node("Pow", [_number(w, base), x]))


PLAIN = {
    "div": "Div", "min": "Min",
    "pow": "Pow", "neg": "Neg", "abs": "Abs", "sign": "Sign", "exp": "Exp", "log": "Log",
    "tanh": "Tanh", "logistic": "Sigmoid", "erf": "Erf", "sqrt": "Sqrt", "floor": "Floor",
    "ceil": "Ceil", "sin": "Sin", "cos": "Cos", "tan": "Tan", "sinh": "Sinh", "cosh": "Cosh",
    "asin": "Asin", "acos": "Acos", "atan": "Atan", "eq": "Equal", "lt": "Less",
    "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual", "and": "And", "or": "Or",
    "xor": "Xor", "not": "Not",
}  # fmt: skip

ELEMENTWISE: dict[str, Write] = {
    **{primitive: _plain(kind) for primitive, kind in PLAIN.items()},
    "max": _max,
    "mul": _mul,
    "add": _sum("Add"),
    "add_any": _sum("Add"),
    "sub": _sum("Sub"),
    "ne": _not("Equal"),
    "rsqrt": _chain("Sqrt", "Reciprocal"),
    "square": _built(lambda w, node, x: w.node("Mul", [x, x])),
    "integer_pow": _built(_integer_pow),
    "exp2": _power(2.0),
    "expm1": _built(_expm1),
    "log1p": _built(_log1p),
    "erfc": _built(lambda w, node, x: w.node("Sub", [_number(w, 1), w.node("Erf", [x])])),
    "select_n": _built(_select),
    "clamp": _built(_clamp),
    "round": _round,
    "convert_element_type": _convert,
    **dict.fromkeys(
        ("copy", "copy_p", "stop_gradient", "name", "reduce_precision", "sharding_constraint"),
        _same,
    ),
}
