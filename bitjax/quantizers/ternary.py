"""Kernels of very few levels, with a scale per filter: ternary, binary, and low-bit.

Ternary: Li and Liu, "Ternary Weight Networks" (TWN), arXiv 1605.04711, and Wang et al., "Two-Step
Quantization for Low-bit Neural Networks", CVPR 2018. Binary: Rastegari et al., "XNOR-Net",
arXiv 1603.05279. The scale either follows the kernel, computed anew from it at every call, or is
stored: a parameter that a solver finds or training learns.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bitjax.checks import SWITCH, checked, choice
from bitjax.quantizers import blocks
from bitjax.quantizers.alphabet import SIGNS, SYMMETRIC, THRESHOLDED, TWO_SIDED, Alphabet
from bitjax.quantizers.base import (
    BITS,
    Axes,
    Batch,
    Codes,
    Numbers,
    Params,
    Quantizer,
    Stats,
    Traits,
)
from bitjax.quantizers.grid import inverse, steps, widen
from bitjax.quantizers.ste import replace_ste, scale_gradient
from bitjax.quantizers.weight_codes import (
    binary_codes,
    otwn_codes,
    rounded_codes,
    twn_codes,
    twn_threshold,
)

# (x, axes, bits) -> what codes and levels need of each filter, float leaves of a number per filter
Fit = Callable[[jax.Array, Axes, jax.Array], Stats]


@checked(fit=choice("optimal", "twn", "stored"))
def ternary(fit: str = "optimal") -> Quantizer:
    """Codes in {-1, 0, 1} times a scale per filter, 2 bits.

    x_hat = scale * code. Fits of the scale:

      optimal: the exact minimum of ||x - x_hat||^2, `otwn_codes`.
      twn: codes by TWN's threshold of 0.7 mean|x|, `twn_codes`.
      stored: a parameter, which starts at the optimal one.

    The first two follow the kernel: scales are observed (the leaf `scale` of the statistics, which
    for a kernel are taken anew at every call) and the gradient to x is 1 everywhere. A stored scale
    is the leaf `scale` of the parameters, codes are the nearest ones, and gradients are LSQ's: to x
    1 for |x| <= scale and 0 outside; to the scale, round(v) - v inside, v = x / scale, and the end
    outside, times 1 / sqrt(elements of a filter).

    Args:
      fit: `optimal`, `twn` or `stored`.

    Raises:
      ValueError: `fit` is another.

    A filter of zeros has the scale 0 and comes out as 0; a stored scale of 0 stays there.

    Example:
      >>> q, x = ternary(), jnp.array([[0.1], [-1.0], [3.0]])
      >>> q.apply(*q.init(x, Axes()), x).tolist()
      [[0.0], [0.0], [3.0]]

    Source: arXiv 1605.04711; the public OTWN program of the authors of TSQ, whose forward pass is
      that of `optimal` and whose gradient goes straight to the kernel.
    """
    form = {"fit": fit, "granularity": "per_channel"}
    if fit == "twn":
        return _following(2, _twn, THRESHOLDED, "ternary", form)
    build = _stored if fit == "stored" else _following
    return build(2, _otwn, SYMMETRIC, "ternary", form)


@checked(fit=choice("mean", "stored"))
def binary(fit: str = "mean") -> Quantizer:
    """Codes in {-1, 1} times a scale per filter, 1 bit.

    x_hat = scale * sign(x), sign(0) = 1. The fit `mean` is mean|x|, which is the best scale; it and
    `stored` follow the kernel, are stored and have gradients as in `ternary`.

    Args:
      fit: `mean` or `stored`.

    Raises:
      ValueError: `fit` is another.

    Example:
      >>> q, x = binary(), jnp.array([[0.0], [-1.0], [5.0]])
      >>> q.apply(*q.init(x, Axes()), x).tolist()
      [[2.0], [-2.0], [2.0]]

    Source: arXiv 1603.05279, with the gradient of HWGQ's public program: that of the identity.
    """
    form = {"fit": fit, "granularity": "per_channel"}
    build = _stored if fit == "stored" else _following
    return build(1, _mean, SIGNS, "binary", form)


@checked(bits=BITS._replace(low=2), fit=choice("rounded", "stored"), narrow=SWITCH)
def low_bit(bits: int = 4, *, fit: str = "rounded", narrow: bool = True) -> Quantizer:
    """Codes in {-M .. M}, M = 2^(bits-1) - 1, or {-M - 1 .. M}, times a scale per filter.

    x_hat = scale * clip(round(x / scale), -M, M). The fit `rounded` is that of alternate rounding,
    `rounded_codes`; it and `stored` follow the kernel, are stored and have gradients as in
    `ternary`, the stored scale's times 1 / sqrt(elements of a filter * M).

    Args:
      bits: integer code length, 2 to 16.
      fit: `rounded` or `stored`.
      narrow: whether the least code, -M - 1, which has no opposite, is left out. With it a scale
        serves 2^bits levels: less error, and no multiplication less.

    Raises:
      ValueError: an argument is outside what is listed above.

    Example:
      >>> q, x = low_bit(bits=3), jnp.array([[0.1], [-1.0], [3.0]])
      >>> q.apply(*q.init(x, Axes()), x).tolist()
      [[0.0], [-1.0], [3.0]]

    Unlike those of `lsq`, the codes are symmetric unless `narrow` is False.
    """
    form = {"bits": bits, "fit": fit, "granularity": "per_channel"}
    build = _stored if fit == "stored" else _following
    if narrow:
        return build(bits, _rounded, SYMMETRIC, "low_bit", form)
    return build(bits, _rounded_whole, TWO_SIDED, "low_bit", {**form, "narrow": False})


def _otwn(x, axes, bits):
    del bits  # two
    return {"scale": otwn_codes(x, axes)[1]}


def _twn(x, axes, bits):
    del bits  # two
    return {"scale": twn_codes(x, axes)[1], "threshold": twn_threshold(x, axes)}


def _mean(x, axes, bits):
    del bits  # one
    return {"scale": binary_codes(x, axes)[1]}


def _rounded(x, axes, bits):
    return {"scale": rounded_codes(x, bits, axes)[1]}


def _rounded_whole(x, axes, bits):
    return {"scale": rounded_codes(x, bits, axes, narrow=False)[1]}


def _following(bits: int, fit: Fit, alphabet: Alphabet, name: str, form) -> Quantizer:
    """The scale is observed from the tensor; the gradient passes straight through."""

    def look(x, axes, bits):
        return {name: leaf.astype(jnp.float32) for name, leaf in fit(x, axes, bits).items()}

    def init(x, axes):
        params = {"bits": jnp.float32(bits)}
        return params, look(x, axes, params["bits"])

    def measure(params, stats, x):
        # The filters are where the statistics have entries.
        kept = tuple(i for i, size in enumerate(stats["scale"].shape) if size > 1)
        return Batch(max=look(x, Axes(kept), params["bits"]))

    def update(stats, batch):
        del stats  # no history: a kernel is known at all times
        return dict(batch.max)

    def apply(params, stats, x, *, train=False, key=None):
        del train, key  # deterministic, and the same in training
        params, stats, frozen = jax.lax.stop_gradient((params, stats, x))
        code = alphabet.nearest(widen(frozen), stats, params["bits"])
        return replace_ste(x, (blocks.spread(stats["scale"], x.shape) * code).astype(x.dtype))

    fields = _coding(alphabet, lambda params, stats: stats)
    traits = Traits(zero_is_code=alphabet is not SIGNS, coding=alphabet.coding)
    return Quantizer(
        init, apply, **fields, measure=measure, update=update, name=name, form=form, traits=traits
    )


def _stored(bits: int, fit: Fit, alphabet: Alphabet, name: str, form) -> Quantizer:
    """The scale is a parameter, which starts at that of the fit."""

    def init(x, axes):
        n = jnp.float32(bits)
        return {"bits": n, "scale": fit(x, axes, n)["scale"].astype(jnp.float32)}, {}

    def apply(params, stats, x, *, train=False, key=None):
        del stats, train, key  # deterministic, and the same in training
        n, scale = jax.lax.stop_gradient(params["bits"]), params["scale"]
        last = steps(jnp.maximum(jnp.rint(n) - 1.0, 1.0))
        factor = 1.0 / jnp.sqrt(x.size / scale.size * last)
        return alphabet.learned(x, scale_gradient(jnp.abs(scale), factor), n)

    def fitted_of(params, stats):
        del stats
        return {"scale": jnp.abs(params["scale"])}

    fields = _coding(alphabet, fitted_of)
    traits = Traits(stored_scale=True, zero_is_code=alphabet is not SIGNS, coding=alphabet.coding)
    learned = Quantizer(init, apply, **fields, name=name, form=form, traits=traits)
    return learned._replace(frozen=lambda: learned._replace(apply=_held(apply)))


def _held(apply):
    """`apply` with its codes held as constants: the scale alone has a gradient, which is the code.

    That of a learned step, code - x / scale, is 0 for a kernel on its codes, as a solver leaves it.
    """

    def held(params, stats, x, *, train=False, key=None):
        scale = params["scale"]
        frozen, x_hat = jax.lax.stop_gradient(
            (scale, apply(params, stats, x, train=train, key=key))
        )
        code = x_hat * inverse(frozen)
        return x_hat + ((scale - frozen) * code).astype(x_hat.dtype)

    return held


def _coding(alphabet: Alphabet, fitted_of: Callable[[Params, Stats], Stats]):
    """What stores filters, by the scale that `fitted_of` gives."""

    def numbers(params, stats):
        scale = fitted_of(params, stats)["scale"]
        last = jnp.broadcast_to(alphabet.last(params["bits"]), scale.shape)
        return Numbers(scale, inverse(scale), -last - alphabet.below, last)

    def integers(params, stats, x):
        return alphabet.nearest(widen(x), fitted_of(params, stats), params["bits"])

    def encode(params, stats, x):
        return Codes(alphabet.pack(integers(params, stats, x), params["bits"]))

    def decode(params, stats, codes):
        scale = blocks.spread(fitted_of(params, stats)["scale"], codes.codes.shape)
        return scale * alphabet.unpack(codes.codes, params["bits"])

    return {"encode": encode, "decode": decode, "numbers": numbers, "integers": integers}
