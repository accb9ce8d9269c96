"""Half-wave quantizers: a rectifier whose positive half is a few evenly spaced levels.

HWGQ: Cai et al., "Deep Learning with Low Precision by Half-wave Gaussian Quantization", CVPR 2017.
With a threshold above 0, the activations of TSQ: Wang et al., "Two-Step Quantization for Low-bit
Neural Networks", CVPR 2018.
"""

import jax
import jax.numpy as jnp

from bitjax.checks import NONE, SWITCH, checked, choice, either, number
from bitjax.quantizers import blocks
from bitjax.quantizers.base import BITS, Codes, Numbers, Params, Quantizer, Traits
from bitjax.quantizers.grid import steps, widen
from bitjax.quantizers.halfwave_fit import gaussian_levels, gaussian_step, measured_step
from bitjax.quantizers.halfwave_grid import half_wave_quant, level, levels, nearest
from bitjax.quantizers.ste import scale_gradient

FITS = ("gaussian", "measured")

_TABLE = {
    "bits": BITS,
    "step": either(NONE, number(0, above=True)),
    "fit": choice(*FITS),
    "learn_step": SWITCH,
}


@checked(threshold=either(NONE, number(0)), **_TABLE)
def halfwave(
    bits: int = 2,
    *,
    step: float | None = None,
    threshold: float | None = None,
    fit: str = "gaussian",
    learn_step: bool = False,
) -> Quantizer:
    """A rectifier and quantizer in one: 0 up to a threshold, then 2^bits - 1 evenly spaced levels.

    Q and its gradients are those of `half_wave_quant`. Leaves: `bits`, `scale` (the step) and
    `threshold`, `[]`. What is not given is fitted, by the least squared error of x > 0:

      gaussian: to N(0, 1), what a batch normalisation without scale and shift gives. With a
        threshold the step alone, `gaussian_step`; without, both, `gaussian_levels`.
      measured: to the tensor that `init` sees, of any spread.

    The joint optimum is rounding to the nearest level, 0 among them: threshold = step / 2.

    Args:
      bits: integer code length, 1 to 16.
      step: distance of neighbouring levels in units of x; None fits it.
      threshold: the largest x that becomes 0, in units of x; None is half of the step. To a
        measured step it may only be 0.
      fit: one of `FITS`.
      learn_step: whether the step gets a gradient, times 1 / sqrt(elements M) as in LSQ; the
        threshold stays where it is.

    Raises:
      ValueError: an argument is outside what is listed above, or the threshold is 1.5 steps or
        more, so that the first level would never be used.

    Example:
      >>> from bitjax.quantizers.base import Axes
      >>> q = halfwave(bits=2, threshold=0.32)
      >>> params, stats = q.init(jnp.zeros(1), Axes())
      >>> round(float(params["scale"]), 4)
      0.6488
      >>> q.apply(params, stats, jnp.array([-1.0, 0.3, 0.4])).tolist()
      [0.0, 0.0, 0.648766]

    Source: TSQ's public AlexNet has a threshold of 0.32, 62.5 % zeros, and a step of 0.6487 at 2
      bits. Departures: the threshold is by default at the joint optimum, 0.3254 at 2 bits, where
      that choice becomes good for every number of bits; `measured` and `learn_step`.
    """
    bits = int(bits)
    measured = fit == "measured" and step is None
    if measured and threshold:
        raise ValueError(
            f"`threshold` must be None or 0 with a measured step, got {threshold!r}: give `step` "
            "too, or fit='gaussian'."
        )
    if not measured:
        if step is None:  # fitted to N(0, 1)
            step = gaussian_levels(bits)[0] if threshold is None else gaussian_step(bits, threshold)
        first = step / 2 if threshold is None else threshold
        if bits > 1 and first >= 1.5 * step:  # the only level above 0 is always reached
            raise ValueError(
                f"`threshold` must be below 1.5 steps = {1.5 * step:.4g} at {bits} bits, or the "
                f"first level is never used, got {first!r}: lower it, or leave it None."
            )

    def init(x, axes):
        blocks.block_shape(x.shape, axes, "per_tensor")  # for its check
        n = jnp.float32(bits)
        if measured:
            scale = measured_step(x, n, half=threshold is None)
            start = 0.5 * scale if threshold is None else jnp.zeros_like(scale)
        else:
            scale, start = jnp.float32(step), jnp.float32(first)
        return {"bits": n, "scale": scale, "threshold": start}, {}

    def apply(params, stats, x, *, train=False, key=None):
        del stats, train, key  # deterministic, and the same in training
        step, threshold, bits = _leaves(params)
        if learn_step:
            last = jnp.maximum(steps(jnp.rint(bits)), 1.0)
            step = scale_gradient(step, jax.lax.stop_gradient(1.0 / jnp.sqrt(x.size * last)))
        return half_wave_quant(x, step, threshold, bits, learn_step)

    def numbers(params, stats):
        del stats
        to = levels(*_leaves(params))
        return Numbers(to.step, to.rate, jnp.zeros_like(to.last), to.last)

    def integers(params, stats, x):
        del stats
        return nearest(widen(x), levels(*_leaves(params)))

    def encode(params, stats, x):
        return Codes(integers(params, stats, x).astype(jnp.int32))

    def decode(params, stats, codes):
        del stats
        to = levels(*_leaves(params))
        return level(codes.codes.astype(to.step.dtype), to)

    name = "hwgq" if threshold == 0 else "halfwave"
    form = {"bits": bits, "fit": fit, "granularity": "per_tensor", "learn_step": learn_step}
    normalized = ("scale",) if learn_step else ()
    traits = Traits(numbers="unsigned", rectifies=True, normalized=normalized, zero_is_code=True)
    return Quantizer(
        init, apply, encode, decode, numbers=numbers, integers=integers,
        name=name, form=form, traits=traits,
    )  # fmt: skip


@checked(**_TABLE)
def hwgq(
    bits: int = 2, *, step: float | None = None, fit: str = "gaussian", learn_step: bool = False
) -> Quantizer:
    """Half-wave Gaussian quantization: `halfwave` with threshold 0, every x > 0 above level 0.

    Args:
      bits: integer code length, 1 to 16.
      step: distance of neighbouring levels in units of x; None fits it.
      fit: `gaussian` or `measured`, see `halfwave`.
      learn_step: whether the step gets a gradient.

    Example:
      >>> from bitjax.quantizers.base import Axes
      >>> round(float(hwgq(bits=2).init(jnp.zeros(1), Axes())[0]["scale"]), 4)
      0.5388

    Source: Cai et al., CVPR 2017, its uniform quantizer: 0.538 at 2 bits. Departure: the gradient
      ends below the highest level, not on it.
    """
    return halfwave(bits, step=step, threshold=0.0, fit=fit, learn_step=learn_step)


def _leaves(params: Params):
    fixed = jax.lax.stop_gradient((params["threshold"], params["bits"]))
    return jnp.abs(params["scale"]), *fixed
