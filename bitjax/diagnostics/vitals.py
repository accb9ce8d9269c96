"""Health figures of a quantized tensor: zeros, saturation, cut values, unused codes, gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bitjax.program.values import Site
from bitjax.quantizers.base import Params, Quantizer, Stats
from bitjax.quantizers.grid import widen

# Share of the squared error from which on the range is to blame. At the best range it is about a
# half, and at 2 bits that leaves more than 5 % of the elements outside.
_CLIPPING_ERROR = 0.8
_FAR = 1e6  # over the largest element, which is in reach of any range that is not absurd
_SAMPLE = 1 << 18  # elements of a batch that are looked at, about


class Vitals(NamedTuple):
    """Figures of one tensor; scalars, or a leading axis over the layers of a scan."""

    zeros: jax.Array  # share of zeros among the elements that were none before quantization
    # share beyond the outer levels by over half a step, if most of the error is there; else 0
    saturated: jax.Array
    cut: jax.Array  # share of elements below 0 where no level is
    half_used: jax.Array  # whether no element is below 0 though about half of the levels are
    moved: jax.Array  # share of elements that were exactly 0 and are not any more
    bits: jax.Array  # the most bits of its blocks
    peak: jax.Array  # the largest size of an element
    mean: jax.Array  # the mean size of the elements
    low: jax.Array  # the lowest level
    high: jax.Array  # the highest level; infinite where nothing is clipped
    error: jax.Array  # root of the squared error over the root of the squared elements
    # The quantizer's gradient beside the straight-through one, on the elements between its ends.
    inside: jax.Array  # their number
    cosine: jax.Array
    ratio: jax.Array  # of their lengths
    passed: jax.Array  # share of the elements other than 0 that get a gradient
    # By filter of a kernel, empty for others: the largest size before and after quantization.
    filters: jax.Array
    kept: jax.Array


class Response(NamedTuple):
    """What a quantizer does with a tensor."""

    x: jax.Array  # as it was looked at: of a large one the first examples
    x_hat: jax.Array
    gain: jax.Array  # the gradient over that of the identity
    low: jax.Array  # the lowest and the highest level, where they broadcast to x
    high: jax.Array


def respond(
    quantizer: Quantizer,
    params: Params,
    stats: Stats,
    x: jax.Array,
    train: bool = False,
    site: Site | None = None,
) -> Response:
    """What a quantizer does with one tensor; `site` says whether the first axis is examples."""
    examples = site is not None and site.role != "kernel" and not _keeps_examples(site)
    x = widen(x[: max(1, _SAMPLE * len(x) // max(1, x.size))] if examples else x)
    if quantizer.traits.rectifies:  # what is below 0 is not its error, as behind a ReLU
        x = jnp.maximum(x, 0.0)

    def quantize(x):
        return quantizer.apply(params, stats, x, train=train, key=jax.random.key(0))

    x_hat, pull = jax.vjp(quantize, x)
    # No two neighbours alike, so that a gradient by way of a sum over the tensor nearly cancels.
    g = (jax.lax.iota(jnp.int32, x.size) % 5 - 1.75).astype(x.dtype).reshape(x.shape)
    (slope,) = pull(g)
    # The ends of the levels are found by quantizing numbers far outside. They are the same for all
    # examples, so that one of them will do.
    one = x[:1] if examples else x
    far = jnp.full_like(one, _FAR * jnp.max(jnp.abs(x)) + 1.0)
    return Response(x, x_hat, slope / g, quantize(-far), quantize(far))


def vitals(
    quantizer: Quantizer,
    params: Params,
    stats: Stats,
    x: jax.Array,
    train: bool = False,
    site: Site | None = None,
) -> Vitals:
    """The figures of one tensor and its quantizer, inside a program too."""
    seen = respond(quantizer, params, stats, x, train, site)
    return figures_of(jnp, quantizer, params["bits"], seen, site)


def figures_of(xp: Any, quantizer: Quantizer, bits: Any, seen: Response, site: Any) -> Vitals:
    """The figures of one tensor, by NumPy or by `jax.numpy`."""
    # NumPy where that will do: to compile these sums takes far longer than to compute them.
    x, x_hat, gain, low, high = seen
    size = xp.abs(x)
    peak, any_above, others = xp.max(size), xp.sum(x != 0), ()
    is_kernel = site is not None and site.role == "kernel"
    between = (x > low) & (x < high)
    count, inside = xp.sum(between), xp.where(between, gain, 0.0)
    length = xp.sqrt(xp.sum(inside * inside))
    most = xp.max(xp.clip(xp.rint(bits), 0, 16))
    step = (high - low) / xp.maximum(2.0**most - 1.0, 1.0)
    # Bits that training moves come down, and a range that is fitted to fewer bits is right to clip:
    # what is outside is counted at the fewest, where steps are wider.
    wider = _wider(xp, quantizer, most)
    beyond = xp.maximum(low - x, x - high)
    outside, error = beyond > wider * step / 2, xp.square(x_hat - x)
    clipped, total = xp.sum(xp.where(outside, error, 0.0)), xp.sum(error)
    rounded = xp.sum(xp.where(beyond > step / 2, 0.0, error))
    to_blame = clipped / xp.maximum(total + rounded * (wider**2 - 1.0), 1e-30)
    # Where nothing is clipped there are no ends to compare.
    bounded = high < _FAR / 2 * peak + 0.5
    two_sided = (high > 0) & (low <= -0.4 * high) & bounded
    if is_kernel:
        kept = {axis % x.ndim for axis in site.axes.channel}
        others = tuple(i for i in range(x.ndim) if i not in kept)
    return Vitals(
        zeros=xp.sum((x_hat == 0) & (x != 0)) / xp.maximum(any_above, 1),
        saturated=xp.mean(outside) * (to_blame > _CLIPPING_ERROR),
        cut=xp.mean((x < 0) & (low >= 0) & (high > 0)),
        half_used=(xp.min(x) >= 0) & (xp.min(x) < xp.max(x)) & xp.all(two_sided),
        moved=xp.mean((x == 0) & (x_hat != 0)),
        bits=xp.max(bits),
        peak=peak,
        mean=xp.mean(size),
        low=xp.min(low) + 0.0,  # no -0
        high=xp.max(xp.where(bounded, high, xp.inf)),
        error=xp.sqrt(total / xp.maximum(xp.sum(xp.square(x)), 1e-30)),
        inside=count,
        cosine=xp.sum(inside) / xp.maximum(length * xp.sqrt(count), 1e-30),
        ratio=length / xp.sqrt(xp.maximum(count, 1)),
        passed=xp.sum((gain != 0) & (x != 0)) / xp.maximum(any_above, 1),
        filters=xp.max(size, axis=others).ravel() if is_kernel else xp.zeros(0),
        kept=xp.max(xp.abs(x_hat), axis=others).ravel() if is_kernel else xp.zeros(0),
    )


def _wider(xp, quantizer, most):
    """How much wider a step is at the fewest bits that the quantizer may come to, but 2."""
    if quantizer.traits.learns_bits is None:
        return 1.0
    fewest = xp.minimum(most, max(quantizer.traits.learns_bits[0], 2.0))
    return (2.0**most - 1.0) / xp.maximum(2.0 ** xp.rint(fewest) - 1.0, 1.0)


def _keeps_examples(site):
    """Whether the first axis is one that ranges may keep."""
    rank = len(site.shape)
    return rank < 2 or 0 in {axis % rank for axis in (*site.axes.channel, site.axes.group)}
