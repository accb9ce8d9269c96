"""AQT's int8 convolutions and products in bitjax's Linen ResNet-20, by Flax's own injection.

Run: benchmarks/peers/run aqt [--rounds 25]
"""

from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any
from unittest import mock

import flax.linen as nn
import jax

from benchmarks.peers.linen import Batch, Family, linen_floats, linen_step
from benchmarks.peers.measure import main


def injected(straight_through: bool) -> AbstractContextManager:
    """Layers that are made in this context multiply 8-bit integers; gradients stay float.

    Where `straight_through`, a convolution multiplies AQT's fake-quantized values instead, with a
    gradient by hand: AQT 0.9.0 defines none for its convolution, and the kernels' is zero.
    """
    from aqt.jax.v2 import aqt_conv_general, aqt_quantizer, config
    from aqt.jax.v2.flax import aqt_flax

    raw = aqt_conv_general.conv_general_dilated_make(2, lhs_bits=8, rhs_bits=8)

    def fake(x: jax.Array, quantizer: Any) -> jax.Array:
        return x + jax.lax.stop_gradient(aqt_quantizer.make_fake_quant(quantizer)(x) - x)

    def convolve(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        x, kernel = fake(x, raw.dg_quantizer.lhs), fake(kernel, raw.dg_quantizer.rhs)
        return jax.lax.conv_general_dilated(x, kernel, *args, **kwargs)

    if not straight_through:
        convolve = aqt_conv_general.make_conv_general_dilated(raw)
    dot = config.config_v4(fwd_bits=8, dlhs_bits=None, drhs_bits=None)
    stack = ExitStack()
    # The layers' own fields; bitjax's network does not pass them on.
    for name, fields in {
        "Conv": {"conv_general_dilated": convolve},
        "Dense": {"dot_general_cls": partial(aqt_flax.AqtDotGeneral, dot, prng_name=None)},
    }.items():
        stack.enter_context(mock.patch.object(nn, name, partial(getattr(nn, name), **fields)))
    return stack


def family(batch: Batch) -> Family:
    """float, and int8 in both forms."""
    return {
        **linen_floats(batch),
        "aqt w8a8": linen_step(batch, context=partial(injected, True)),
        "aqt w8a8, kernels not learned": linen_step(batch, context=partial(injected, False)),
    }


if __name__ == "__main__":
    main(["aqtp"], family)
