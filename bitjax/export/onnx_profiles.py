"""The three profiles: how each writes the integers or levels of inputs and kernels."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bitjax.export.onnx_products import Filters
from bitjax.export.onnx_qdq import kernel_qdq, quantize_qdq
from bitjax.export.onnx_qonnx import kernel_qonnx, quantize_qonnx
from bitjax.export.onnx_sites import integers_of, narrow, scaled_codes
from bitjax.export.onnx_writer import Tensor, Writer


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


def _quantize_integers(w, params, x):
    found = integers_of(w, params, x, f"{w.scope}/codes")
    w.taps[f"{w.scope}/codes"], w.zeros[w.scope] = found, 0
    return found


def _kernel_integers(w, kernel):
    """The integers, kept small in the file."""
    if not kernel.whole:
        return scaled_codes(w, kernel)
    whole = w.tensor(narrow(kernel.integers), name=f"{kernel.site}/codes")
    return w.op("Cast", [whole.name], whole, name=kernel.site, to=w.onnx.TensorProto.FLOAT)


PROFILES = {
    "qdq": Profile(False, quantize_qdq, kernel_qdq),
    "integers": Profile(True, _quantize_integers, _kernel_integers),
    "qonnx": Profile(False, quantize_qonnx, kernel_qonnx),
}
