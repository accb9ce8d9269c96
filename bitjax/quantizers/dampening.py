"""Dampening: weights are pulled to the middle of the cell that they are rounded in.

A weight whose best value lies between two levels jumps from one to the other every few steps, and
batch normalisation's statistics do so too. Nagel et al., arXiv 2203.11086.
"""

from typing import Any

import jax
import jax.numpy as jnp

from bitjax.quantizers.base import Quantizer


def dampened(quantizer: Quantizer, strength: Any) -> Quantizer:
    """A quantizer whose gradient to x, in training, is that of strength * |x_hat - clip(x)|^2 more.

    x_hat is held, and so is the range: x alone moves. `strength` may be traced.
    """

    def apply(params, stats, x, *, train=False, key=None):
        x_hat = quantizer.apply(params, stats, x, train=train, key=key)
        if not train:
            return x_hat
        held = jax.lax.stop_gradient((params, stats))
        # Its gradient to x is 1 inside the range, and 0 where clip(x) is an end of it.
        clipped = quantizer.apply(*held, x, train=train, key=key)
        pull = 2.0 * jnp.asarray(strength, x.dtype) * jax.lax.stop_gradient(x - x_hat)
        return _pulled(x_hat, clipped, pull)

    return quantizer._replace(apply=apply)


@jax.custom_vjp
def _pulled(x_hat, clipped, pull):
    """Gives x_hat; the gradient to `clipped` is `pull`."""
    del clipped, pull
    return x_hat


_pulled.defvjp(
    lambda x_hat, clipped, pull: (x_hat, pull),
    lambda pull, g: (g, pull, jnp.zeros_like(pull)),
)
