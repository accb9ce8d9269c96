"""The quantizers of a deployed model: their numbers are given and nothing is observed any more.

Whatever quantizer trained a site, what it leaves is one of two forms. `affine` has integers and a
scale; `table` has the levels and, for a tensor that is quantized at run time, the edges between
them. So whoever writes a file or runs a model elsewhere handles these two alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.quantizers import blocks
from bitjax.quantizers.base import Codes, Numbers, Params, Quantizer, Stats, Traits
from bitjax.quantizers.coding import codes_of_integers, integers_of_codes
from bitjax.quantizers.grid import inverse, steps, widen
from bitjax.quantizers.ste import replace_ste

CODINGS = ("offset", "sign_magnitude", "signs")
# What the first integer is: a number of its own, or one that the bits give.
ENDS = ("stored", "symmetric", "unsigned", "narrow")


@functools.cache
def affine(coding: str = "offset", ends: str = "stored") -> Quantizer:
    """Integers times a scale, between two ends.

    Leaves: `bits`, and `scale` of the block's shape. `first`, where the ends are stored. `rate`,
    the integers per unit of x, where it is not what `inverse` makes of the scale. `edges`, behind
    the axes of the block's shape, where the integers are not the nearest ones: as many of them as
    are at most x are counted from the first integer.
    """

    def numbers(params: Params, stats: Stats) -> Numbers:
        del stats
        scale, first, last = params["scale"], *ends_of(params["bits"], coding, ends)
        first, last = (
            (params["first"], params["first"] + last) if ends == "stored" else (first, last)
        )
        rate = params.get("rate", inverse(scale))
        return Numbers(*jnp.broadcast_arrays(scale, rate, first, last))

    def integers(params, stats, x):
        scale, rate, first, last = (blocks.spread(a, x.shape) for a in numbers(params, stats))
        if "edges" in params:
            return first + edges_below(params["edges"], x).astype(scale.dtype)
        if coding == "signs":
            return jnp.where(x >= 0, 1.0, -1.0).astype(scale.dtype)
        return jnp.clip(jnp.rint(widen(x) * rate), first, last).astype(scale.dtype)

    def levels(params, stats, whole):
        return blocks.spread(numbers(params, stats).scale, whole.shape) * whole

    def encode(params, stats, x):
        told = numbers(params, stats)
        return Codes(codes_of_integers(found, told, integers(params, stats, x)))

    def decode(params, stats, codes):
        whole = integers_of_codes(found, numbers(params, stats), codes.codes)
        return levels(params, stats, whole)

    def level(params, stats, x):
        return levels(params, stats, integers(params, stats, x))

    found = Quantizer(
        _init,
        _apply(level),
        encode,
        decode,
        numbers=numbers,
        integers=integers,
        name="deployed/affine",
        form={"coding": coding, "ends": ends},
        traits=Traits(
            numbers="unsigned" if ends == "unsigned" else "signed",
            zero_is_code=coding != "signs",
            coding=coding,
        ),
    )
    return found


@functools.cache
def table() -> Quantizer:
    """Any levels, one for each code.

    Leaves: `bits`; `levels`, `[.., 2^bits]` behind the axes of the block's shape, if it has any.
    `edges`, `[.., 2^bits - 1]`: the code of x is how many of them are at most x. Without them the
    levels rise, and a tensor lies on them.
    """

    def code(params, x):
        return edges_below(params.get("edges", params["levels"][..., 1:]), x)

    def encode(params, stats, x):
        del stats
        return Codes(code(params, x))

    def decode(params, stats, codes):
        del stats
        entries, place = _blocks_of(params["levels"], codes.codes)
        return entries[place, codes.codes]

    def level(params, stats, x):
        return decode(params, stats, Codes(code(params, x)))

    # Whether 0.0 is a level is in the numbers, which no value of a quantizer knows.
    return Quantizer(_init, _apply(level), encode, decode, name="deployed/table", traits=Traits())


def is_deployed(quantizer: Quantizer) -> bool:
    """Whether it is one of these."""
    return quantizer.init is _init


def _init(x, axes):
    raise ValueError(
        "a deployed model's quantizers have no start of their own: its variables are those that "
        "`deploy` gave, or a file."
    )


def _apply(level):
    def apply(params, stats, x, *, train=False, key=None):
        del train, key  # there is one form
        x_hat = level(jax.lax.stop_gradient(params), stats, jax.lax.stop_gradient(x))
        return replace_ste(x, x_hat.astype(x.dtype))

    return apply


def ends_of(bits: jax.Array, coding: str, ends: str) -> tuple[jax.Array, jax.Array]:
    """The first and the last integer of so many bits; from 0 where the first one is stored."""
    bits = jnp.rint(bits)
    if coding == "signs":
        return -jnp.ones_like(bits), jnp.ones_like(bits)
    if coding == "sign_magnitude" or ends == "narrow":
        last = steps(jnp.maximum(bits - 1.0, 0.0))
        return -last, last
    count = steps(bits)
    first = -jnp.floor((count + 1.0) / 2.0) if ends == "symmetric" else jnp.zeros_like(count)
    return first, first + count


def edges_below(edges, x):
    """How many edges are at most x, by a search by halves."""
    entries, place = _blocks_of(edges, x)
    found, wide = jnp.zeros(x.shape, jnp.int32), widen(x)
    most = entries.shape[-1]
    for bit in reversed(range(most.bit_length())):
        tried = found + (1 << bit)
        edge = entries[place, jnp.minimum(tried, most) - 1]
        found = jnp.where((tried <= most) & (wide >= edge), tried, found)
    return found


def _blocks_of(entries, x):
    """A table as `[blocks, numbers]`, and the block of each element of x."""
    block = entries.shape[:-1]
    place = jnp.arange(int(np.prod(block))).reshape(block)
    return entries.reshape(-1, entries.shape[-1]), blocks.spread(place, x.shape)
