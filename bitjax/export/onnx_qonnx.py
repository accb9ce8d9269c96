"""The profile `qonnx`: the operators Quant and BipolarQuant, which hold any number of bits."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bitjax.export.onnx_products import Filters
from bitjax.export.onnx_sites import const_of, integers_of
from bitjax.export.onnx_writer import DOMAIN, Tensor, Writer


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
        return const_of(w, a, like)

    signed, narrow, zero = kind
    scale = np.asarray(scale)
    return w.op(
        "Quant", [x, const(np.where(scale > 0, scale, 1)), const(zero), const(bits)], like,
        name=name, domain=DOMAIN, signed=signed, narrow=narrow, rounding_mode="ROUND",
    )  # fmt: skip


def quantize_qonnx(w: Writer, params: Mapping[str, Any], x: Tensor) -> Tensor:
    """Quant or BipolarQuant; levels that are not the nearest ones are found before it."""
    scale, rate = (np.asarray(params[k], np.float32) for k in ("scale", "rate"))
    if params["coding"] == "signs":
        found = w.op(
            "BipolarQuant", [x.name, const_of(w, scale, x)], x, name=w.scope, domain=DOMAIN
        )
        w.taps[w.scope] = found
        return found
    kind = _quant_of(params["bits"], params["first"], params["last"])
    if kind is None:
        raise NotImplementedError("integers from {first} to {last} at {bits} bits".format(**params))
    name = x.name
    if params.get("edges") is not None:
        whole = integers_of(w, params, x, f"{w.scope}/integers")
        name = w.node("Mul", [whole.name, const_of(w, scale, x)])
    elif not (rate > 0).all():
        name = w.node("Mul", [name, const_of(w, rate > 0, x)])
    found = _quant(w, name, scale, params["bits"], kind, x, w.scope)
    w.taps[w.scope] = found
    return found


def kernel_qonnx(w: Writer, kernel: Filters) -> Tensor:
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
