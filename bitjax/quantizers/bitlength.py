"""Real-valued, learned bitlengths between two integer grids (BitPruning).

Nikolić et al., "BitPruning: Learning Bitlengths for Aggressive and Accurate Quantization",
arXiv 2002.03090.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bitjax.checks import NONE, SWITCH, check_one, checked, choice, either, number
from bitjax.quantizers import blocks, ranges
from bitjax.quantizers.base import Quantizer, Traits
from bitjax.quantizers.forms import Form, check_form, form_of, said
from bitjax.quantizers.grid import (
    Grid,
    Levels,
    fake_quant,
    from_range,
    inverse,
    is_inside,
    level,
    levels,
    nearest,
    once,
    position,
    slope,
    snapped,
    widen,
)
from bitjax.quantizers.ste import clip_ste
from bitjax.quantizers.uniform import HARDWARE, affine, observed, tried_of

MODES = ("blend", "sharpen", "sample", "ste", "fixed")
RANGES = ("minmax", "learned")


class _Blend(NamedTuple):
    """The two grids that a bitlength lies between, their shares, and the levels of their mix."""

    low: Levels
    high: Levels
    low_share: jax.Array
    high_share: jax.Array
    mixed: Levels
    steep: jax.Array | None  # d share / d bits, where it is not 1


def _blend_of(shape, grid, bits, sharpness, form):
    floor = jnp.floor(bits)
    # floor + 1, not ceil: at an integer the slope towards the next bit stays alive (FracBits' does
    # not). The mix is sharpened around 1/2, where the fixed point of the task's slope stays put;
    # outside the ramp the slope stays 1, so that a bitlength never dies.
    ramp, steep = bits - floor, None
    if sharpness is not None:
        ramp = (ramp - 0.5) * sharpness + 0.5
        steep = blocks.spread(jnp.where((ramp > 0.0) & (ramp < 1.0), sharpness, 1.0), shape)
    mix = blocks.spread(jnp.clip(ramp, 0.0, 1.0), shape)
    low, high = (levels(grid, n, form, shape) for n in (floor, floor + 1.0))
    if form.rounded:  # in the upper grid's widths, which are twice or half its own
        own = low.width * inverse(high.width)
        low = low._replace(width=high.width, unit=low.unit * own)
    # No bits is 0.0, not the start of the range: the lower grid then adds nothing.
    low_share = jnp.where(low.unit > 0, 1.0 - mix, 0.0)
    # The inside of the mix begins at the mix of the first levels, the upper's alone below one bit.
    low_first = jnp.where(low.unit > 0, low.first * low.unit, high.first * high.unit)
    first = low_first + mix * (high.first * high.unit - low_first)
    highest = first + (1.0 + 1e-6)
    if form.rounded:
        low_last = jnp.where(low.unit > 0, low.last * low.unit, high.last * high.unit)
        highest = low_last + mix * (high.last * high.unit - low_last) + 1e-6
    base = None if high.base is None else high.base * (low_share + mix)
    mixed = high._replace(base=base, lowest=first - 1e-6, highest=highest)
    # As numbers in memory, where a compiler heeds it: XLA drops this on the CPU before it fuses.
    return jax.lax.optimization_barrier(_Blend(low, high, low_share, mix, mixed, steep))


# Compiled as one function, so that layers of one shape share its trace.
@functools.partial(jax.jit, static_argnums=4)
def blend_quant(
    x: jax.Array, grid: Grid, bits: jax.Array, sharpness: jax.Array | None, form: Form
) -> jax.Array:
    """x on the blend of two neighbouring integer grids.

    With b = floor(n), a = n - b:  Q(x, n) = (1 - a) Q(x, b) + a Q(x, b + 1), where Q(x, 0) = 0.
    Surrogates: dQ/dx = 1 between the blend's first and last level, 0 outside; dQ/dn =
    Q(x, b + 1) - Q(x, b), times the slope of the sharpened mix; the range as in `grid.fake_quant`.
    One pass forward, one backward, which keeps x in its own dtype and recomputes the rest.

    Source: arXiv 2002.03090, the non-integer bitlength; sharpening is ours.
    """
    return _blend_quant(x, grid, bits, sharpness, form)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blend_quant(x, grid, bits, sharpness, form):
    return _blend_fwd(x, grid, bits, sharpness, form)[0]


def _blend_fwd(x, grid, bits, sharpness, form):
    b = _blend_of(x.shape, grid, bits, sharpness, form)
    wide = widen(x)
    # A share of 0 or 1 is exact in this form.
    ratio = b.low_share * nearest(wide, b.low) + b.high_share * nearest(wide, b.high)
    x_hat = level(ratio, b.mixed).astype(x.dtype)
    return once(x_hat, x), (x, grid, bits, sharpness, b)


def _blend_bwd(form, residual, g):
    x, grid, bits, sharpness, b = residual
    g, wide = widen(g), widen(x)
    low, high = nearest(wide, b.low), nearest(wide, b.high)
    at = position(wide, b.mixed)
    inside = is_inside(at, b.mixed)
    # Below one bit only the upper grid is there, and with its share.
    total = b.low_share + b.high_share
    ratio = b.low_share * low + b.high_share * high
    d_width = jnp.where(inside, ratio - total * at, ratio)
    d_width = d_width * slope(b.high) if form.rounded else d_width
    d_lo = jnp.zeros_like(grid.lo) if form.zero else blocks.fold(g * total, grid.lo, ~inside)
    rise = b.high.width * (high - low)
    if not form.zero:
        rise = rise + (b.high.base - b.low.base)
    d_mix = g * rise if b.steep is None else g * rise * b.steep
    return (
        jnp.where(inside, g * total, 0.0).astype(x.dtype),
        Grid(d_lo, blocks.fold(g * d_width, grid.width, total > 0)),
        blocks.fold(d_mix, bits, b.high.unit > 0),
        jax.tree.map(jnp.zeros_like, sharpness),
    )


_blend_quant.defvjp(_blend_fwd, _blend_bwd)


@checked(
    init=number(0, 16),
    mode=choice(*MODES),
    range=choice(*RANGES),
    signed=either(NONE, SWITCH),
    granularity=blocks.GRANULARITY,
    range_granularity=either(NONE, blocks.GRANULARITY),
    group_size=blocks.GROUP_SIZE,
    min_bits=number(0, 16),
    max_bits=number(0, 16),
    zero_on_grid=SWITCH,
    clip_bits=either(NONE, number(1, 16)),
    decay=number(0, 1),
    **HARDWARE,
)
def bitlength(
    init: float = 8.0,
    *,
    mode: str = "blend",
    range: str = "minmax",
    signed: bool | None = None,
    granularity: str = "per_tensor",
    range_granularity: str | None = None,
    group_size: int | None = None,
    min_bits: float = 1.0,
    max_bits: float = 16.0,
    zero_on_grid: bool = False,
    clip_bits: float | None = None,
    decay: float = 0.99,
    scale: str = "free",
    narrow: bool = False,
) -> Quantizer:
    """A learned, real-valued bitlength.

    Modes, whose values agree at integer bits:
      blend: (1 - a) Q(x, b) + a Q(x, b + 1), the paper's.
      sharpen: the same with the mix steepened around 1/2 by the leaf `sharpness`, which a schedule
        raises from 1, so that training ends on integer grids.
      sample: in training Q(x, b + 1) with probability a, else Q(x, b), one draw per block (needs
        `key`), with the blend's gradient; outside training round(n) bits.
      ste: round(n) bits always; the gradient to n is the analytic one of `grid.fake_quant`.
      fixed: round(n) bits always, and no stage is to move them.

    Args:
      init: bits to start from, in [min_bits, max_bits].
      mode: one of `MODES`.
      range: `minmax` is the tensor's own range (a kernel's present one; an input's batch range in
        training, its moving average otherwise), held constant in the backward pass; `learned` is
        [-c, c] or [0, c] with c = exp(log_clip_max) a parameter, started at least squared error
        (at 1 for a tensor of zeros; the rounding of the logarithm is up to 64 ulp of c).
      signed: whether a learned range is [-c, c] (True or None) or [0, c] (False).
      granularity: what shares a bitlength: `per_tensor`, `per_channel` or `per_group`. For one
        bitlength per network, tie the leaves in the optimizer: `methods.optimizers.tie`.
      range_granularity: what shares a range; by default what shares a bitlength.
      group_size: elements of a group, with `per_group`.
      min_bits: least bitlength, 0 or more; 0 prunes the block.
      max_bits: greatest bitlength, at most 16.
      zero_on_grid: move the range so that 0.0 is a code (see `grid`).
      clip_bits: bits at which a learned range is fitted; `init` by default.
      decay: factor of the moving average's past at each observed batch.
      scale: `power_of_two` rounds the scale at each code length to one, of a `minmax` range up, of
        a `learned` one to the nearest in the exponent; with `zero_on_grid=True`.
      narrow: whether the least code, -2^(bits - 1), is left out; with `signed=True`,
        `zero_on_grid=True` and `min_bits` of 2 or more.

    Raises:
      ValueError: an argument is outside what is listed above.

    Example:
      >>> from bitjax.quantizers.base import Axes
      >>> q = bitlength(init=2.5)
      >>> params, stats = q.init(jnp.array([0.0, 3.0]), Axes())
      >>> round(float(q.apply(params, stats, jnp.array([1.0]))[0]), 3)  # 2 bits: 1, 3 bits: 6/7
      0.929

    Source: arXiv 2002.03090. Departures: ranges by moving average or learned (min-max alone is
      worse than pruning below 3 bits), Q(x, 0) = 0, the other modes.
    """
    settings: dict[str, Any] = dict(locals())
    del settings["scale"], settings["narrow"]
    settings |= said(scale, narrow)
    check_one("max_bits", number(min_bits, 16), max_bits)
    check_one("init", number(min_bits, max_bits), init)
    range_granularity = range_granularity or granularity
    for kind in (granularity, range_granularity):
        blocks.check_granularity(kind, group_size if kind == "per_group" else None)
    check_form(scale, narrow, signed, zero_on_grid, min_bits)
    learned = range == "learned"
    symmetric = signed is not False
    lies = form_of(scale, narrow, symmetric if learned else signed is True, learned, zero_on_grid)
    tried = tried_of(lies)
    calibrate, measure, update = observed(
        "minmax", lies, signed=signed, percentile=100.0, decay=decay
    )

    def fit_clip(x, block):
        n = jnp.float32(max(1.0, round(init if clip_bits is None else clip_bits)))

        def quantize(x, low, high):
            return fake_quant(x, from_range(low, high, tried), n, tried)

        low, high = ranges.calibrate(x, block, "mse", signed=symmetric, quantize=quantize)
        if lies.rounded:
            low, width = snapped(from_range(low, high, lies), n, lies)
            high = low + width
        clip_max = jnp.maximum(high, -low if symmetric else high)
        return jnp.log(jnp.where(clip_max > 0, clip_max, 1.0))

    def init_fn(x, axes):
        block = blocks.block_shape(x.shape, axes, granularity, group_size)
        params = {"bits": jnp.full(block, jnp.float32(init))}
        if mode == "sharpen":
            params["sharpness"] = jnp.float32(1.0)
        block = blocks.block_shape(x.shape, axes, range_granularity, group_size)
        if learned:
            return {**params, "log_clip_max": fit_clip(x, block)}, {}
        return params, ranges.init_stats(*calibrate(x, block, None))

    def grid_of(params, stats, train):
        if learned:
            high = jnp.exp(params["log_clip_max"])
            low = -high if symmetric else jnp.zeros_like(high)
        else:
            low, high = jax.lax.stop_gradient(ranges.read_range(stats, train))
        return from_range(low, high, lies)

    def limited(params):
        return {**params, "bits": clip_ste(params["bits"], min_bits, max_bits)}

    def frozen():
        return bitlength(**settings | {"mode": "fixed", "zero_on_grid": True})

    integer = affine(
        init_fn,
        grid_of,
        lies=lies,
        measure=None if learned else measure,
        update=None if learned else update,
        name=f"bitlength/{mode}",
        form=settings,
        traits=Traits(
            learns_bits=None if mode == "fixed" else (min_bits, max_bits),
            numbers="signed" if symmetric else "unsigned",
            # Both grids of a blend have the zero of one; a learned [0, c] starts with it.
            zero_is_code=zero_on_grid or (learned and not symmetric),
            power_of_two=lies.rounded is not None,
            narrow=narrow,
        ),
        frozen=None if mode == "fixed" else frozen,
    )

    def apply(params, stats, x, *, train=False, key=None):
        params = limited(params)
        if mode in ("ste", "fixed") or (mode == "sample" and not train):
            return integer.apply(params, stats, x, train=train)
        bits, sharpness = params["bits"], None
        if mode == "sharpen":
            sharpness = jax.lax.stop_gradient(params["sharpness"])
        if mode == "sample":
            if key is None:
                raise ValueError(
                    "mode='sample' draws bits in training: pass `key`, or rngs={'quant': key} to "
                    "the model's apply; an NNX model draws from its attribute rngs, nnx.Rngs(0)."
                )
            grid = grid_of(params, stats, train)
            blend = blend_quant(x, grid, bits, sharpness, lies)
            drawn = jnp.floor(bits) + jax.random.bernoulli(key, bits - jnp.floor(bits))
            value = fake_quant(x, grid, drawn, lies)
            # The value is the draw's, the surrogate gradient the blend's (Schroedinger's FP); what
            # is added is exactly 0, so that the value stays a level.
            return jax.lax.stop_gradient(value) + (blend - jax.lax.stop_gradient(blend))
        return blend_quant(x, grid_of(params, stats, train), bits, sharpness, lies)

    def of_limited(function):
        return lambda params, stats, *x: function(limited(params), stats, *x)

    # Of a blend, evaluation lies between two grids.
    whole = integer.numbers is not None and mode not in ("blend", "sharpen")
    return integer._replace(
        apply=apply,
        encode=lambda params, stats, x: integer.encode(limited(params), stats, x),
        decode=lambda params, stats, codes: integer.decode(limited(params), stats, codes),
        numbers=of_limited(integer.numbers) if whole else None,
        integers=of_limited(integer.integers) if whole else None,
    )
