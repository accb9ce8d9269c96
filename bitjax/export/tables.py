"""The levels of a quantizer without numbers, and the edges between them, to the last bit.

A code that rises with x is told by the least float that has it, which a search by halves over all
floats finds. So a table quantizes as the quantizer does, whatever it computes.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.quantizers.base import Codes, Params, Quantizer, Stats
from bitjax.quantizers.grid import inverse

MOST_BITS = 8  # of a table: 256 numbers for each of its blocks
_PROBED = 257  # integers around which rounding is looked at


class Table(NamedTuple):
    """The codes of a site, in the order of what they stand for."""

    levels: jax.Array  # [.., codes]
    edges: jax.Array  # [.., codes - 1]: code k begins at edges[k - 1]
    fits: jax.Array  # whether the quantizer is the table


def is_nearest(quantizer: Quantizer, params: Params, stats: Stats) -> jax.Array:
    """Whether the integers are the nearest ones, clip(round(x * rate), first, last)."""
    assert quantizer.numbers is not None and quantizer.integers is not None
    integers = partial(quantizer.integers, params, stats)
    _, rate, first, last = quantizer.numbers(params, stats)
    share = jnp.linspace(0.0, 1.0, _PROBED).reshape(-1, *(1,) * rate.ndim)
    middle = (jnp.floor(first + share * (last - first)) + 0.5) * inverse(rate)
    x = jnp.stack([middle * (1.0 + off) for off in (-1e-6, 0.0, 1e-6)] + [middle * 2.0])
    x = x.reshape(-1, *rate.shape)
    nearest = jnp.clip(jnp.rint(x * rate), first, last)
    return jnp.all(jax.vmap(integers)(x) == nearest)


def edges_of(
    quantizer: Quantizer, params: Params, stats: Stats, count: int
) -> tuple[jax.Array, jax.Array]:
    """Where each of so many integers but the first begins, and whether they rise with x."""
    assert quantizer.numbers is not None and quantizer.integers is not None
    integers, first = quantizer.integers, quantizer.numbers(params, stats).first

    def rank(x):
        return (integers(params, stats, x) - first).astype(jnp.int32)

    edges, fits = _edges(jax.vmap(rank), count, first.shape)
    return jnp.moveaxis(edges, 0, -1), fits


def table_of(quantizer: Quantizer, params: Params, stats: Stats, bits: int) -> Table:
    """The table of a quantizer whose widest block has so many bits; per block of its leaves."""
    block = _block(params, stats)
    codes = _in_order(quantizer, bits)
    most = jnp.left_shift(1, jnp.rint(params["bits"]).astype(jnp.int32)) - 1

    def level(code):
        found = jnp.broadcast_to(code, block)
        return quantizer.decode(params, stats, Codes(jnp.minimum(found, most)))

    def rank(x):
        found = quantizer.encode(params, stats, x).codes
        place = np.zeros(1 << bits, np.int32)
        place[codes] = np.arange(len(codes))
        return jnp.asarray(place)[found]

    levels = jax.vmap(level)(jnp.asarray(codes))
    edges, fits = _edges(jax.vmap(rank), len(codes), block)
    return Table(jnp.moveaxis(levels, 0, -1), jnp.moveaxis(edges, 0, -1), fits)


def _block(params, stats):
    """The shape of what quantizes: that of the leaves which tell blocks apart."""
    leaves = [x.shape for tree in (params, stats) for x in tree.values()]
    deepest = max(len(shape) for shape in leaves)
    # A vector may also be coefficients of planes, of which no block has its own.
    own = "coefficients" in params
    return () if own else np.broadcast_shapes(*(s for s in leaves if len(s) == deepest))


def _in_order(quantizer, bits):
    """All codes, by the number that they stand for."""
    codes = np.arange(1 << bits)
    if quantizer.traits.coding != "sign_magnitude":
        return codes
    last = (1 << (bits - 1)) - 1
    return np.concatenate([codes[: last + 1 : -1], codes[: last + 1]])  # without minus zero


def _edges(rank, count, block):
    """Where each rank but the first begins, and whether ranks rise."""
    most = np.float32(np.finfo(np.float32).max)
    wanted = jnp.arange(1, count).reshape(-1, *(1,) * len(block))
    shape = (count - 1, *block)
    low = jnp.full(shape, _key(-most), jnp.int32)
    high = jnp.full(shape, _key(most), jnp.int32)

    def halve(_, ends):
        low, high = ends
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        there = rank(_float(middle)) >= wanted
        return jnp.where(there, low, middle), jnp.where(there, middle, high)

    below, first = jax.lax.fori_loop(0, 32, halve, (low, high))
    reached = rank(_float(high)) >= wanted
    edges = jnp.where(reached, _float(first), jnp.inf)
    risen = (rank(_float(below)) < wanted) & ((rank(_float(first)) >= wanted) | ~reached)
    # Between two edges there is one rank.
    begin = jnp.concatenate([jnp.full((1, *block), -most), edges[:-1]])
    inside = jnp.minimum(begin, most) * 0.5 + jnp.minimum(edges, most) * 0.5
    ranks = rank(inside)
    counted = jnp.sum(edges[:, None] <= inside[None], axis=0)
    return edges, jnp.all(risen) & jnp.all(ranks == counted)


def _key(x):
    """An integer that rises with a float."""
    bits = np.float32(x).view(np.int32)
    return int(bits if bits >= 0 else bits ^ 0x7FFFFFFF)


def _float(key):
    bits = jnp.where(key >= 0, key, key ^ 0x7FFFFFFF)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
