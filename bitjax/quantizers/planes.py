"""Codes as bit planes, plane 0 the lowest, and the levels that plane coefficients give to codes.

Zhou et al., "Neural Network Activation Quantization with Bitwise Information Bottlenecks",
arXiv 2006.05210. A code is sum_i 2^i b_i; the bottleneck replaces the fixed weights by coefficients
alpha_i, so that a code stands for sum_i alpha_i b_i.
"""

import jax
import jax.numpy as jnp

from bitjax.checks import check_one, checked, integer

DEPTH = integer(1, 16)


@checked(depth=DEPTH)
def to_planes(codes: jax.Array, depth: int) -> jax.Array:
    """The planes of codes: planes[i] = floor(codes / 2^i) mod 2."""
    place = jnp.arange(depth).reshape(-1, *(1,) * codes.ndim)
    return ((codes.astype(jnp.int32) >> place) & 1).astype(jnp.uint8)


def from_planes(planes: jax.Array) -> jax.Array:
    """The codes of planes, sum_i 2^i planes[i]: the inverse of `to_planes`."""
    check_one("planes.shape[0]", DEPTH, planes.shape[0])
    place = jnp.arange(planes.shape[0]).reshape(-1, *(1,) * (planes.ndim - 1))
    return jnp.sum(planes.astype(jnp.int32) << place, axis=0, dtype=jnp.int32)


@checked(depth=DEPTH)
def powers_of_two(depth: int) -> jax.Array:
    """The coefficients under which a code stands for itself: 2^i, float32 `[depth]`, exact."""
    return (1 << jnp.arange(depth)).astype(jnp.float32)


def level_table(coefficients: jax.Array) -> jax.Array:
    """The level of every code: table[c] = sum_i coefficients[i] * (bit i of c).

    Sums run from the lowest plane up, a single addition at a time, so that a table is the same in
    every program. Code 0 stands for exactly 0: there is no intercept.
    """
    check_one("coefficients.shape[0]", DEPTH, coefficients.shape[0])
    table = jnp.zeros(1, coefficients.dtype)
    for coefficient in coefficients:
        table = jnp.concatenate([table, table + coefficient])
    return table


def kept_window(
    bits: jax.Array, shift: jax.Array, depth: int, coefficients: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The lowest plane that is kept, and how many planes from there to the highest."""
    # Planes shift .. shift + bits - 1 are kept as far as the code has them, less those at either
    # end whose coefficient is 0.
    first = jnp.clip(jnp.rint(shift).astype(jnp.int32), 0, depth)
    count = jnp.maximum(jnp.rint(bits).astype(jnp.int32), 0)
    plane = jnp.arange(depth)
    kept = (plane >= first) & (plane < first + count)
    if coefficients is not None:
        kept &= coefficients != 0
    low = jnp.argmax(kept).astype(jnp.int32)
    high = depth - jnp.argmax(kept[::-1]).astype(jnp.int32)
    return low, jnp.where(jnp.any(kept), high - low, 0)
