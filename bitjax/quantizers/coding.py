"""Between the integers of a quantizer's `numbers` and the codes that store them."""

import jax
import jax.numpy as jnp

from bitjax.quantizers import blocks
from bitjax.quantizers.base import Numbers, Quantizer


def codes_of_integers(quantizer: Quantizer, numbers: Numbers, integers: jax.Array) -> jax.Array:
    """The int32 codes, from 0, that store whole floats."""
    first, last = (blocks.spread(a, integers.shape) for a in (numbers.first, numbers.last))
    coding = quantizer.traits.coding
    if coding == "signs":
        found = (integers > 0).astype(integers.dtype)
    elif coding == "sign_magnitude":
        found = jnp.abs(integers) + jnp.where(integers < 0, last + 1.0, 0.0)
    else:
        found = integers - first
    return found.astype(jnp.int32)


def integers_of_codes(quantizer: Quantizer, numbers: Numbers, codes: jax.Array) -> jax.Array:
    """The inverse of `codes_of_integers`: whole floats, of which `scale` makes levels."""
    first, last = (blocks.spread(a, codes.shape) for a in (numbers.first, numbers.last))
    coding, codes = quantizer.traits.coding, codes.astype(first.dtype)
    if coding == "signs":
        return 2.0 * codes - 1.0
    if coding == "sign_magnitude":
        return jnp.where(codes > last, (last + 1.0) - codes, codes)
    return codes + first
