"""The quantizer of the bitwise bottleneck: a code of bit planes, of which some are kept.

Zhou et al., "Neural Network Activation Quantization with Bitwise Information Bottlenecks",
arXiv 2006.05210, and the authors' program; "strong" is what we make of it.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from bitjax.checks import (
    NONE,
    SWITCH,
    check_one,
    checked,
    choice,
    either,
    instance,
    integer,
    number,
)
from bitjax.quantizers import blocks, ranges
from bitjax.quantizers.base import (
    BITS,
    Codes,
    Numbers,
    Params,
    Planes,
    Quantizer,
    Traits,
)
from bitjax.quantizers.bitplane_faithful import faithful
from bitjax.quantizers.grid import steps, widen
from bitjax.quantizers.plane_grid import (
    kept_of,
    level,
    nearest,
    pack,
    plane_grid,
    plane_quant,
    unpack,
)
from bitjax.quantizers.plane_statistics import code_sums, init_sums, update_sums
from bitjax.quantizers.planes import DEPTH, powers_of_two
from bitjax.quantizers.ste import scale_gradient

MODES = ("strong", "faithful")
SCALES = ("learned", "observed")
COEFFICIENTS = ("power_of_two", "free", "solved")
RANGES = ("absmax", "percentile", "mse")


@checked(
    bits=BITS,
    signed=SWITCH,
    mode=choice(*MODES),
    scale=choice(*SCALES),
    range=choice(*RANGES),
    coefficients=choice(*COEFFICIENTS),
    depth=either(NONE, DEPTH),
    shift=either(NONE, integer(0, 15)),
    normalized=SWITCH,
    percentile=number(50, 100),
    decay=number(0, 1),
    truncate=SWITCH,
    wrap=SWITCH,
    dither=SWITCH,
)
def bitplane(
    bits: float = 4,
    *,
    signed: bool = False,
    mode: str = "strong",
    scale: str = "learned",
    range: str = "mse",
    coefficients: str = "power_of_two",
    depth: int | None = None,
    shift: int | None = None,
    normalized: bool = True,
    percentile: float = 99.99,
    decay: float = 0.99,
    truncate: bool = False,
    wrap: bool = False,
    dither: bool = False,
) -> Quantizer:
    """Bit planes: of a code of `depth` planes, `bits` neighbouring ones are kept.

    With k = bits kept planes from plane j = shift upwards, and u = |x| / scale:

      q = clip(round(u / 2^j), 0, 2^k - 1),   x_hat = sign(x) scale sum_i alpha_i (bit i of 2^j q)

    where alpha_i = 2^i, so that x_hat = scale 2^j q, or is the leaf `coefficients`. Leaves: `bits`,
    `shift`, `scale` (of plane 0; strong and learned), `coefficients` (`[depth]`; free and solved).
    All are arrays: changing them compiles nothing. Changing `bits` alone keeps the lowest plane and
    drops high ones; `keep_planes` moves both. Under free coefficients that do not each exceed the
    sum of the lower ones, x_hat does not rise with x everywhere.

    Modes:
      strong: one scale, rounds at the lowest kept plane and saturates at the highest before planes
        are extracted. Gradients as in `plane_grid.plane_quant`.
      faithful: the authors' program. Each example's scale is max|x| / 2^depth over all axes but the
        first (over all of a vector), and travels with the codes; at max|x| the code has one bit,
        in a plane above all, which is never kept. The gradient to x is 1 everywhere (0 where x is
        cut at 0); coefficients get none, as in the program.

    Args:
      bits: planes stored, the sign's plane among them; 1 to 16, signed 2 to 16.
      signed: sign and magnitude, k = bits - 1 planes of magnitude; else x below 0 becomes 0.
      mode: one of `MODES`.
      scale: `learned` is a parameter, static where no stage moves it; `observed` is a moving
        average of the range over 2^depth - 1, the batch's own in training.
      range: `absmax`, `percentile` or `mse`, what the scale is fitted by, see `ranges.calibrate`.
      coefficients: `power_of_two` costs as much as a uniform grid; `free`, learned by gradient, a
        table of 2^depth; so does `solved`, where they and the scale have no gradient, and moving
        averages are kept of what `bitjax.solve_coefficients` finds them from. With `solved`, depth
        is at most 8 and the scale is `learned`.
      depth: magnitude planes of the whole code, 1 to 16; by default 8, or as many as are kept.
      shift: the lowest kept plane; by default the highest planes are kept.
      normalized: scales the gradient of `scale` by 1 / sqrt(elements (2^k - 1)), as LSQ, and that
        of `coefficients` by 1 / sqrt(elements k); in a model, elements of one example.
      percentile: share of elements inside the range, in percent, with `range="percentile"`.
      decay: factor of the moving average's past at each observed batch.
      truncate: whether the faithful mode cuts low planes off a finished code instead of rounding.
      wrap: whether the faithful mode cuts high planes off, so that max|x| becomes 0 or small
        instead of the highest code.
      dither: whether the faithful mode adds noise of +-1/2 of plane 0 before rounding, in training;
        this needs `key`.

    Raises:
      ValueError: an argument is outside what is listed above; x given to `init` has elements below
        0 without `signed` (not seen under jit, where `doctor` tells).

    Example:
      >>> from bitjax.quantizers.base import Axes
      >>> q = bitplane(bits=2, depth=4, range="absmax")
      >>> params, stats = q.init(jnp.array([0.0, 15.0]), Axes())
      >>> q.apply(params, stats, jnp.array([1.0, 5.0, 15.0])).tolist()
      [0.0, 4.0, 12.0]

    Source: arXiv 2006.05210; defects of its program, `truncate`, `wrap` and `dither`, are off
      unless asked for. Departures of the faithful mode: it acts on a layer's input, after ReLU,
      where the program acts before it; dither ends with training, so that evaluation repeats; the
      maximum gets no gradient; the sign's plane is counted.
    """
    check_one("bits", BITS._replace(low=1 + signed), bits)
    count = int(bits) - signed
    depth = max(8, count) if depth is None else depth
    shift = max(depth - count, 0) if shift is None else shift
    if count + shift > depth:
        raise ValueError(
            f"`depth` must be at least the magnitude planes and `shift`, {count} + {shift}, got "
            f"{depth}."
        )
    flags = {"truncate": truncate, "wrap": wrap, "dither": dither}
    for name, flag in flags.items():
        if flag and mode == "strong":
            raise ValueError(f"`{name}` goes with mode='faithful', not 'strong'.")
    solved = coefficients == "solved"
    if solved and (mode != "strong" or scale != "learned" or depth > 8):
        raise ValueError(
            "`coefficients` 'solved' goes with mode='strong', scale='learned' and `depth` up to 8, "
            f"got {mode!r}, {scale!r} and {depth}."
        )
    form = {"bits": bits, "signed": signed, "coefficients": coefficients, "depth": depth}
    source = scale if mode == "strong" else "example"
    traits = Traits(
        numbers="signed" if signed else "unsigned",
        planes=Planes(depth, coefficients, source, truncate),
        zero_is_code=True,
        coding="sign_magnitude" if signed else "offset",
    )

    def start(x, axes):
        blocks.block_shape(x.shape, axes, "per_tensor")
        _check_sign(x, signed)
        params = {"bits": jnp.float32(bits), "shift": jnp.float32(shift)}
        if coefficients != "power_of_two":
            params["coefficients"] = powers_of_two(depth)
        return params

    if mode == "faithful":
        fields = {"form": {**form, **flags}, "traits": traits}
        return faithful(start, depth=depth, signed=signed, **flags, **fields)
    fit = functools.partial(_fit, depth=depth, signed=signed, method=range, percentile=percentile)
    learned = [leaf for leaf, yes in (("scale", scale == "learned"),
                                      ("coefficients", coefficients == "free")) if yes]  # fmt: skip
    shared = tuple(learned) if normalized and not solved else ()
    fields = {
        "form": {**form, "scale": scale, "range": range},
        "traits": traits._replace(normalized=shared),
    }
    if scale == "observed":
        return _observed(start, fit, depth, signed, normalized, decay, range, **fields)
    if solved:
        return _solved(start, fit, depth, signed, decay, **fields)
    return _learned(start, fit, depth, signed, normalized, **fields)


@checked(params=instance(Mapping), bits=BITS, depth=DEPTH, signed=SWITCH)
def keep_planes(params: Params, bits: int, depth: int, *, signed: bool = False) -> Params:
    """The parameters with `bits` planes kept, the highest ones of a code of `depth` planes.

    Args:
      params: the parameters of a `bitplane` quantizer.
      bits: planes to keep, the sign's among them; 1 to `depth`, signed 2 to `depth` + 1.
      depth: magnitude planes of the whole code.
      signed: whether the quantizer is signed.

    Raises:
      ValueError: the code has fewer planes.

    Example:
      >>> params = keep_planes({"bits": jnp.float32(4), "shift": jnp.float32(4)}, 6, depth=8)
      >>> float(params["bits"]), float(params["shift"])
      (6.0, 2.0)
    """
    check_one("bits", BITS._replace(low=1 + signed, high=depth + signed), bits)
    shift = jnp.full_like(params["shift"], depth - (bits - signed))
    return {**params, "bits": jnp.full_like(params["bits"], bits), "shift": shift}


def _check_sign(x, signed):
    # Under jit the values are not known yet.
    if not signed and not isinstance(x, jax.core.Tracer) and (low := float(jnp.min(x))) < 0:
        raise ValueError(
            f"`signed` must be True for a tensor with negative elements, got False and {low:g}."
        )


def _fit(params, x, *, depth, signed, method, percentile):
    """The range of x, and the scale of a code that spans it."""
    full = float(2**depth - 1)
    kept = kept_of(params)._replace(coefficients=None)

    def quantize(x, low, high):
        del low
        return plane_quant(x, high / full, kept, depth, signed)

    return ranges.calibrate(x, (), method, signed=signed, percentile=percentile, quantize=quantize)


def _span(low, high, depth, signed):
    """The scale at which a code of all planes spans a range."""
    # A constant tensor's range ends at 0 on one side; the other side sets the scale.
    return jnp.maximum(high, -low if signed else high) / (2.0**depth - 1.0)


def _strong(init, scale_of: Callable, depth, signed, normalized, **fields) -> Quantizer:
    """The quantizer at the scale that `scale_of(params, stats, train)` gives."""

    def numbers(params, stats, shape):
        kept = kept_of(params)
        return plane_grid(scale_of(params, stats, False), kept, depth, signed, shape), kept

    def apply(params, stats, x, *, train=False, key=None):
        del key  # deterministic
        scale, kept = scale_of(params, stats, train), kept_of(params)
        if normalized:
            count = jnp.maximum(kept.bits - signed, 1.0)
            scale = scale_gradient(scale, 1.0 / jnp.sqrt(x.size * steps(jnp.rint(count))))
            if kept.coefficients is not None:
                factor = 1.0 / jnp.sqrt(x.size * count)
                kept = kept._replace(coefficients=scale_gradient(kept.coefficients, factor))
        return plane_quant(x, scale, kept, depth, signed)

    def encode(params, stats, x):
        to, _ = numbers(params, stats, x.shape)
        return Codes(pack(nearest(widen(x), to), to))

    def decode(params, stats, codes):
        to, kept = numbers(params, stats, codes.codes.shape)
        return level(unpack(codes.codes, to), to, kept.coefficients)

    def numbers_of(params, stats):
        to, _ = numbers(params, stats, ())
        return Numbers(to.step, to.rate, to.first, to.last)

    def integers(params, stats, x):
        return nearest(widen(x), numbers(params, stats, x.shape)[0])

    if fields["traits"].planes.coefficients == "power_of_two":
        fields |= {"numbers": numbers_of, "integers": integers}
    return Quantizer(init, apply, encode, decode, name="bitplane", **fields)


def _learned(start, fit, depth, signed, normalized, **fields):
    def init(x, axes):
        params = start(x, axes)
        low, high = fit(params, x)
        scale = _span(low, high, depth, signed)
        return {**params, "scale": jnp.where(scale > 0, scale, 1.0)}, {}

    def scale_of(params, stats, train):
        del stats, train
        return jnp.abs(params["scale"])

    return _strong(init, scale_of, depth, signed, normalized, **fields)


def _observed(start, fit, depth, signed, normalized, decay, method, **fields):
    def init(x, axes):
        params = start(x, axes)
        return params, ranges.init_stats(*fit(params, x))

    def scale_of(params, stats, train):
        del params
        low, high = ranges.read_range(stats, train)
        return jax.lax.stop_gradient(_span(low, high, depth, signed))

    def measure(params, stats, x):
        del stats
        _check_sign(x, signed)
        low, high = fit(params, x)
        return ranges.as_batch(low, high, method)

    update = functools.partial(ranges.update_stats, decay=decay)
    fields |= {"measure": measure, "update": update}
    return _strong(init, scale_of, depth, signed, normalized, **fields)


def _solved(start, fit, depth, signed, decay, **fields):
    learned = _learned(start, fit, depth, signed, False, **fields)

    def init(x, axes):
        return learned.init(x, axes)[0], init_sums(depth)

    def apply(params, stats, x, *, train=False, key=None):
        return learned.apply(jax.lax.stop_gradient(params), stats, x, train=train, key=key)

    def measure(params, stats, x):
        del stats
        _check_sign(x, signed)
        return code_sums(x, jnp.abs(params["scale"]), kept_of(params), depth, signed)

    update = functools.partial(update_sums, decay=decay)
    return learned._replace(init=init, apply=apply, measure=measure, update=update)
