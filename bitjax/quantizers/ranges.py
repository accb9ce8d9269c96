"""Chooses where a grid begins and ends, from data, and keeps the range's history.

`calibrate` looks at one tensor; `init_stats`, `measure` and `update` carry a range through batches
as an exponential moving average (Jacob et al., arXiv 1712.05877, section 3.1).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bitjax.quantizers import blocks
from bitjax.quantizers.base import Batch, Stats
from bitjax.quantizers.grid import widen

METHODS = ("absmax", "minmax", "percentile", "mse")
_SAMPLE = 1 << 18  # elements of a block that a percentile or a search looks at, about
_SHRINK = 80  # candidate ranges of the MSE search, from 1/80 of the full range to all of it

Quantize = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def calibrate(
    x: jax.Array,
    block: tuple[int, ...],
    method: str = "minmax",
    *,
    signed: bool | None = None,
    percentile: float = 99.9,
    quantize: Quantize | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The range (clip_min, clip_max) of every block of x.

    `absmax`: [-max|x|, max|x|]; `minmax`: [min x, max x]; `percentile`: the same with the given
    percentile in place of the extreme; `mse`: the full range shrunk by the factor, of 80 evenly
    spaced ones, that makes the squared error of `quantize` least. `signed=True` makes the range
    symmetric, `False` starts it at 0, `None` follows the data (absmax: as True). A constant block
    gets the range between its value and 0, so that a grid holds it exactly.

    Args:
      x: float, any shape, at least one element.
      block: shape of the result, `[]` or blocks of x.
      method: one of `METHODS`.
      signed: whether the range is symmetric (True), starts at 0 (False), or is as the data are.
      percentile: share of elements inside the range, in percent, above 50.
      quantize: `(x, clip_min, clip_max) -> x_hat`, required by `mse`.

    Returns:
      Two float32 arrays of shape `block`, in units of x.

    Example:
      >>> lo, hi = calibrate(jnp.array([-1.0, 0.0, 3.0]), (), "absmax")
      >>> float(lo), float(hi)
      (-3.0, 3.0)
    """
    x = jax.lax.stop_gradient(widen(x))
    cut, inner = blocks.split(x, block)
    low, high = jnp.min(cut, axis=inner), jnp.max(cut, axis=inner)
    low, high = low.reshape(block), high.reshape(block)
    constant = low == high
    exact = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
    if method == "percentile":
        low, high = _percentiles(x, block, percentile)
    if signed or (signed is None and method == "absmax"):
        high = jnp.maximum(-low, high)
        low = -high
    elif signed is not None:
        low, high = jnp.zeros_like(low), jnp.maximum(high, 0.0)
    if method == "mse":
        assert quantize is not None, "calibrate: `mse` needs `quantize`"
        low, high = _least_error(x, block, low, high, quantize)
    low, high = jnp.where(constant, exact[0], low), jnp.where(constant, exact[1], high)
    return low.astype(jnp.float32), high.astype(jnp.float32)


def _percentiles(x, block, percentile):
    ordered = jnp.sort(thin(blocks.flatten(x, block)), axis=1)

    # jnp.percentile finds the place in float32, which is elements off in a long tensor.
    def at(percent):
        place = percent / 100.0 * (ordered.shape[1] - 1)
        below, above = math.floor(place), math.ceil(place)
        low, high = ordered[:, below], ordered[:, above]
        return (low + (place - below) * (high - low)).reshape(block)

    return at(100.0 - percentile), at(percentile)


def thin(flat: jax.Array) -> jax.Array:
    """Subsamples each row evenly to at most 2^19 elements."""
    return flat[:, :: spacing(flat.shape[1], _SAMPLE)]


def spacing(length: int, sample: int) -> int:
    """The spacing that leaves `sample` to twice as many of `length` elements."""
    # It shares no factor with the length, so that no channel or position is left out.
    stride = max(1, length // sample)
    while math.gcd(stride, length) > 1:
        stride += 1
    return stride


def _least_error(x, block, low, high, quantize):
    if not block:
        x = thin(x.reshape(1, -1))[0]  # one range for all: a sample tells as much

    def error(factor):
        x_hat = quantize(x, low * factor, high * factor)
        cut, inner = blocks.split(jnp.square(x_hat - x), block)
        return jnp.sum(cut, axis=inner).reshape(block)

    # The full range first, so that a tie keeps it; one candidate at a time keeps memory flat.
    factors = jnp.arange(_SHRINK, 0, -1, dtype=x.dtype) / _SHRINK
    best = factors[jnp.argmin(jax.lax.map(error, factors), axis=0)]
    return low * best, high * best


def init_stats(clip_min: jax.Array, clip_max: jax.Array) -> Stats:
    """The history of a range before any batch was observed; the given ends stand in until then."""
    return {
        "clip_min": clip_min,
        "clip_max": clip_max,
        "batch_min": clip_min,
        "batch_max": clip_max,
        "count": jnp.float32(0.0),
    }


def as_batch(clip_min: jax.Array, clip_max: jax.Array, method: str) -> Batch:
    """One batch's range with its reduction: extremes merge as extremes, fitted ranges as means."""
    if method in ("absmax", "minmax"):
        return Batch(min={"clip_min": clip_min}, max={"clip_max": clip_max})
    return Batch(mean={"clip_min": clip_min, "clip_max": clip_max})


def update_stats(stats: Stats, batch: Batch, decay: float) -> Stats:
    """Merges a batch into the history: the first batch replaces it, later ones move it.

    clip <- decay * clip + (1 - decay) * batch, and `batch_*` is the batch's own range.
    """
    new = {**batch.min, **batch.max, **batch.mean}

    def merge(name):
        # A select, not a factor of 0: where the count is known to be 0, a kernel's, the compiler
        # then drops whatever made the old value, be it a search.
        moved = decay * stats[name] + (1.0 - decay) * new[name]
        return jnp.where(stats["count"] > 0, moved, new[name])

    return {
        "clip_min": merge("clip_min"),
        "clip_max": merge("clip_max"),
        "batch_min": new["clip_min"],
        "batch_max": new["clip_max"],
        "count": stats["count"] + 1.0,
    }


def read_range(stats: Stats, train: bool) -> tuple[jax.Array, jax.Array]:
    """(clip_min, clip_max): the last batch's range in training, the moving average otherwise."""
    return (
        (stats["batch_min"], stats["batch_max"])
        if train
        else (stats["clip_min"], stats["clip_max"])
    )
