"""LSQ as its reader writes it in plain Linen, W4A4, in bitjax's ResNet-20.

Esser et al., Learned Step Size Quantization, ICLR 2020, arXiv 1902.08153.

Run: benchmarks/peers/run lsq [--rounds 25]
"""

from contextlib import AbstractContextManager, ExitStack
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.peers.linen import Batch, Family, linen_floats, linen_step
from benchmarks.peers.measure import main

BITS = 4


def lsq(module: nn.Module, name: str, v: jax.Array, signed: bool) -> jax.Array:
    """v on a grid whose step is a parameter of the module: the paper's appendix A and B."""
    qn, qp = (2 ** (BITS - 1), 2 ** (BITS - 1) - 1) if signed else (0, 2**BITS - 1)
    s = module.param(name, lambda key: 2 * jnp.mean(jnp.abs(v)) / jnp.sqrt(qp))
    count = v.size if name == "kernel_step" else v[0].size
    g = 1 / jnp.sqrt(count * qp)
    s = jax.lax.stop_gradient(s - s * g) + s * g
    v = jnp.clip(v / s, -qn, qp)
    return (v + jax.lax.stop_gradient(jnp.round(v) - v)) * s


class Conv(nn.Module):
    """A convolution without a bias; the stem's input alone is signed."""

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int]
    padding: int
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        w = self.param("kernel", self.kernel_init, (*self.kernel_size, x.shape[-1], self.features))
        x = lsq(self, "input_step", x, signed=self.name == "stem")
        w = lsq(self, "kernel_step", w, signed=True)
        pads, order = [(self.padding, self.padding)] * 2, ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, self.strides, pads, dimension_numbers=order)


class Dense(nn.Module):
    """A dense layer with a bias, behind a ReLU."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], self.features)
        w = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return lsq(self, "input_step", x, False) @ lsq(self, "kernel_step", w, True) + bias


def by_hand() -> AbstractContextManager:
    """The layers of this file stand in for Linen's in this context."""
    stack = ExitStack()
    for name, layer in {"Conv": _conv, "Dense": _dense}.items():
        stack.enter_context(mock.patch.object(nn, name, layer))
    return stack


def _conv(features, kernel_size, *, strides, padding, kernel_init, name, **unused):
    return Conv(features, kernel_size, strides, padding, kernel_init, name=name)


def _dense(features, *, name, **unused):
    return Dense(features, name=name)


def family(batch: Batch) -> Family:
    """float and W4A4."""
    return {**linen_floats(batch), "lsq by hand w4a4": linen_step(batch, context=by_hand)}


if __name__ == "__main__":
    main(["flax"], family)
