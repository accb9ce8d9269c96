"""Reaches the tensors inside an unmodified Flax model.

Flax's linear layers pass their inputs and their kernel together through a field named
`promote_dtype`. A hook in that field for the length of a call sees both, may replace both, and can
keep variables in the layer's own scope. It works under jit, grad, vmap, `nn.remat` and `nn.scan`,
because it runs inside whatever traces the layer.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from bitjax.quantizers.base import Axes
from bitjax.variables import site_name

Tensors = dict[str, jax.Array]


class Layer(NamedTuple):
    """One visited call of a quantizable layer."""

    name: str  # its path, `stage1/block1/conv1`; empty for a model that is a layer itself
    kind: str  # the class name, for messages
    module: nn.Module  # bound, valid during the call only
    method: str  # `__call__`, or `attend` of an embedding

    def site(self, role: str) -> str:
        """The name of the layer's site of a role."""
        return site_name(self.name, role)


class Visitor:
    """Called at each layer; every method may be overridden and does nothing here."""

    def tensors(self, layer: Layer, tensors: Tensors) -> Tensors:
        """Sees `kernel`, and `input` where it has one, before the layer computes."""
        return tensors

    def output(self, layer: Layer, tensors: Tensors, out: Any) -> None:
        """Sees what the layer returned, with the tensors it was given."""

    def other(self, name: str, module: nn.Module, args: tuple, out: Any) -> None:
        """Sees every other module's call, after it."""


def axes_of(module: nn.Module, role: str, rank: int) -> Axes:
    """Which axes of a layer's tensor are channels, and which one groups divide."""
    if role == "input":
        return Axes((-1,), -1)
    if isinstance(module, nn.Embed):
        return Axes((0,), -1)  # a filter per row, which a lookup or `attend` uses whole
    if isinstance(module, nn.DenseGeneral):
        features = len(module.features) if isinstance(module.features, tuple | list) else 1
        return Axes(tuple(range(-features, 0)), -features - 1)
    if isinstance(module, nn.ConvTranspose) and module.transpose_kernel:
        return Axes((-2,), -1)
    if isinstance(module, nn.Einsum) and isinstance(module.einsum_str, str):
        operands, out = module.einsum_str.replace(" ", "").split("->")
        kernel = operands.split(",")[1]
        if "." not in kernel:
            kept = tuple(i - rank for i, letter in enumerate(kernel) if letter in out)
            summed = [i - rank for i in range(rank) if i - rank not in kept]
            return Axes(kept, summed[-1] if summed else -1)
    return Axes((-1,), -2)


def macs_of(layer: Layer, tensors: Tensors, out: jax.Array) -> int:
    """Multiply-adds of one call for all its examples, from shapes alone; a lookup has none."""
    # Products with the zeros of padding count, as in every published table.
    module, kernel = layer.module, tensors["kernel"]
    if isinstance(module, nn.Embed):
        return out.size * kernel.shape[-1] if layer.method == "attend" else 0
    x = tensors["input"]
    if isinstance(module, nn.ConvTranspose):
        features_in = kernel.shape[-1] if module.transpose_kernel else kernel.shape[-2]
        return x.size // features_in * kernel.size
    if isinstance(module, nn.Einsum) and isinstance(module.einsum_str, str):
        operands = module.einsum_str.replace(" ", "").split("->")[0].split(",")
        if "." not in "".join(operands):
            sizes = dict(zip(operands[0] + operands[1], x.shape + kernel.shape, strict=True))
            return math.prod(sizes.values())
    if isinstance(module, nn.DenseGeneral):
        features = len(axes_of(module, "kernel", kernel.ndim).channel)
        batch = len(module.batch_dims) if isinstance(module.batch_dims, tuple | list) else 1
        return out.size * math.prod(kernel.shape[batch:-features])
    if type(module).__name__ == "ConvLocal":
        return out.size * kernel.shape[-2]
    return out.size * math.prod(kernel.shape[:-1])


@contextlib.contextmanager
def visiting(visitor: Visitor, axis_name: str | None = None) -> Iterator[None]:
    """Calls `visitor` at every layer of whatever Flax model runs inside the block."""

    # Enter it inside the function that is jitted: a jitted function's cache does not know which
    # interceptors it was traced under. Batch normalisations without a device axis of their own are
    # synchronised over `axis_name`.
    def interceptor(next_fun, args, kwargs, context):
        module, method = context.module, context.method_name
        if method not in ("__call__", "attend"):
            return next_fun(*args, **kwargs)
        name = "/".join(module.path)
        if not hasattr(module, "promote_dtype"):
            sync = axis_name if isinstance(module, nn.BatchNorm) else None
            if sync and module.axis_name is None:
                with field(module, "axis_name", sync):
                    out = next_fun(*args, **kwargs)
            else:
                out = next_fun(*args, **kwargs)
            visitor.other(name, module, args, out)
            return out
        layer = Layer(name, type(module).__name__, module, method)
        seen: Tensors = {}

        def hook(*tensors, **options):
            roles = ("kernel",) if len(tensors) == 1 else ("input", "kernel")
            given = dict(zip(roles, tensors, strict=False))  # a bias may follow
            new = visitor.tensors(layer, given)
            seen.update(new)
            return promote(*(new[r] for r in roles), *tensors[len(roles) :], **options)

        promote: Callable = module.promote_dtype
        with field(module, "promote_dtype", hook):
            out = next_fun(*args, **kwargs)
        visitor.output(layer, seen, out)
        return out

    with nn.intercept_methods(interceptor):
        yield


@contextlib.contextmanager
def field(module, name, value):
    """Sets a field of a frozen module for the length of a call."""
    before = getattr(module, name)
    object.__setattr__(module, name, value)
    try:
        yield
    finally:
        object.__setattr__(module, name, before)
