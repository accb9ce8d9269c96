"""Counts a batch for a histogram of |x|, on the device, in integers.

Counts can be merged over batches, devices and hosts, in any order.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

BINS = 256
BIN_BITS = 8
PARTS = 256  # a place inside a bin is kept to 1/256 of its width
_CELLS = BINS * (PARTS + 1)
_TURNS = 16
_CHUNK = 2**14  # elements whose indices stay in the cache
_RUN = 2**12
LOWEST = -100  # exponent of the least full scale: no bin is narrower than float32 can hold


class Counts(NamedTuple):
    """The counts of one batch on the device; a tree of arrays."""

    exponent: jax.Array  # the full scale is 2**exponent; int32 []
    # elements in every part of every bin, int32 [256, 257]; the last part is the upper edge
    parts: jax.Array
    zeros: jax.Array  # elements that are 0, int32 []
    full: jax.Array  # elements whose |x| is the full scale, int32 []
    negatives: jax.Array  # elements below 0, int32 []
    low: jax.Array  # the least element, float32 []; NaN if any element is
    high: jax.Array  # the greatest element, float32 []; NaN if any element is


@partial(jax.jit, static_argnames="stride")
def count(x: jax.Array, exponent: jax.Array | int = LOWEST, *, stride: int = 1) -> Counts:
    """Counts every stride-th run of 4096 elements, at a full scale of 2**exponent or more."""
    # bin = floor(|x| / width), width = 2**(exponent - 8), and the place inside the bin is rounded
    # to 1/256 of the width. Only integers are counted, so no sum depends on the order of its
    # elements and every device finds the same.
    low, high = jnp.min(x).astype(jnp.float32), jnp.max(x).astype(jnp.float32)
    mantissa, own = jnp.frexp(jnp.maximum(-low, high))
    own = jnp.where(mantissa == 0.5, own - 1, own)  # a power of two is a full scale, not above it
    own = jnp.where(mantissa == 0, LOWEST, own)  # zeros alone ask for none
    exponent = jnp.maximum(jnp.maximum(exponent, own), LOWEST).astype(jnp.int32)
    # One exact power of two, put together from its bits: jnp.ldexp raises one for every element.
    power = jax.lax.bitcast_convert_type((127 + BIN_BITS - exponent) << 23, jnp.float32)

    def add(table, chunk):
        chunk = chunk.astype(jnp.float32)
        places = jnp.abs(chunk) * power
        bins = jnp.minimum(jnp.floor(places), BINS - 1.0)
        # With 257 parts to a bin, one rounded up to the upper edge still counts in its own bin.
        index = (bins * (PARTS + 1) + jnp.round((places - bins) * PARTS)).astype(jnp.int32)
        # Zeros take turns at several counters: additions to a single one wait for each other.
        turn = jax.lax.iota(jnp.int32, chunk.size) % _TURNS
        index = jnp.where(chunk == 0, _CELLS + turn, index)
        index = jnp.where(places == BINS, _CELLS + _TURNS, index)
        return table.at[index].add(1, mode="drop")  # a NaN has no index

    # The loop takes x as it is, because the compiler would copy the result of any operation on it.
    run, runs, spacing = _runs(x.size, stride)

    def add_run(i, table):
        return add(table, jax.lax.dynamic_slice(jnp.ravel(x), (i * spacing * run,), (run,)))

    table = jax.lax.fori_loop(0, runs, add_run, jnp.zeros(_CELLS + _TURNS + 1, jnp.int32))
    if stride == 1 and runs * run < x.size:
        table = add(table, jnp.ravel(x)[runs * run :])
    zeros, full = jnp.sum(table[_CELLS:-1]), table[-1]
    parts = table[:_CELLS].reshape(BINS, PARTS + 1).at[0, 0].add(zeros).at[-1, -1].add(full)
    negatives = jax.lax.cond(low < 0, _below, lambda x: jnp.int32(0), x)
    return Counts(exponent, parts, zeros, full, negatives, low, high)


def _runs(size, stride):
    """Length, number and spacing of the runs of neighbours that are counted."""
    if stride == 1:
        chunk = min(_CHUNK, size)
        return chunk, size // chunk, 1
    run = _RUN if size >= _RUN * stride * 8 else 1
    runs = size // run
    # A spacing with a factor in common with the number of runs might leave whole channels out.
    while math.gcd(stride, runs) > 1:
        stride += 1
    return run, -(-runs // stride), stride


def _below(x):
    # By the bits of x: behind a ReLU the compiler knows that nothing is below 0, and would take
    # seconds to sum the constant.
    below = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32) < 0
    return jnp.sum(below & (x != 0), dtype=jnp.int32)
