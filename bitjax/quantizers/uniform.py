"""Fixed-bit uniform grids: ranges from data, learned scale (LSQ), learned clip (PACT).

LSQ: Esser et al., arXiv 1902.08153. PACT: Choi et al., arXiv 1805.06085.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bitjax.checks import NONE, SWITCH, check_one, checked, choice, either, number
from bitjax.quantizers import blocks, ranges
from bitjax.quantizers.base import (
    BITS,
    Axes,
    Codes,
    Params,
    Quantizer,
    Stats,
    Traits,
)
from bitjax.quantizers.grid import (
    Grid,
    decode,
    encode,
    fake_quant,
    from_range,
    integers,
    numbers,
    steps,
)
from bitjax.quantizers.ste import scale_gradient

GridOf = Callable[[Params, Stats, bool], Grid]


def affine(
    init: Callable[[jax.Array, Axes], tuple[Params, Stats]],
    grid_of: GridOf,
    *,
    zero: bool,
    clipped_only: bool = False,
    **fields,
) -> Quantizer:
    """A quantizer on the affine grid that `grid_of(params, stats, train)` gives."""
    # The one place where a fixed-bit grid becomes apply, encode and decode: the three agree.

    def apply(params, stats, x, *, train=False, key=None):
        del key  # deterministic
        grid = grid_of(params, stats, train)
        return fake_quant(x, grid, params["bits"], zero, clipped_only)

    def encode_x(params, stats, x):
        return Codes(encode(x, grid_of(params, stats, False), jnp.rint(params["bits"]), zero))

    def decode_codes(params, stats, codes):
        grid = grid_of(params, stats, False)
        return decode(codes.codes, grid, jnp.rint(params["bits"]), zero)

    if zero:
        fields["numbers"] = lambda params, stats: numbers(
            grid_of(params, stats, False), jnp.rint(params["bits"])
        )
        fields["integers"] = lambda params, stats, x: integers(
            x, grid_of(params, stats, False), jnp.rint(params["bits"])
        )
    return Quantizer(init, apply, encode_x, decode_codes, **fields)


def observed(
    method: str,
    zero: bool,
    *,
    signed: bool | None,
    percentile: float,
    decay: float,
) -> tuple[Callable, Callable, Callable]:
    """`(calibrate, measure, update)` of a quantizer whose range is observed from data.

    `calibrate(x, block, bits)` gives one tensor's range, `measure` and `update` its history.
    """

    def calibrate(x, block, bits):
        return ranges.calibrate(
            x,
            block,
            method,
            signed=signed,
            percentile=percentile,
            quantize=lambda x, low, high: fake_quant(x, from_range(low, high, zero), bits, zero),
        )

    def measure(params, stats, x):
        low, high = calibrate(x, stats["clip_min"].shape, params["bits"])
        return ranges.as_batch(low, high, method)

    return calibrate, measure, functools.partial(ranges.update_stats, decay=decay)


_SHARED = {
    "bits": BITS,
    "granularity": blocks.GRANULARITY,
    "group_size": blocks.GROUP_SIZE,
}


@checked(
    range=choice(*ranges.METHODS),
    signed=either(NONE, SWITCH),
    zero_on_grid=SWITCH,
    percentile=number(50, 100),
    decay=number(0, 1),
    **_SHARED,
)
def uniform(
    bits: float = 8,
    *,
    range: str = "minmax",
    signed: bool | None = None,
    granularity: str = "per_tensor",
    group_size: int | None = None,
    zero_on_grid: bool = True,
    percentile: float = 99.9,
    decay: float = 0.99,
) -> Quantizer:
    """A fixed-bit uniform grid over a range observed from data.

    x_hat = scale * (clip(round(x / scale) + z, 0, 2^bits - 1) - z),
    scale = (clip_max - clip_min) / (2^bits - 1).

    In training the range is the batch's, whose history moves an average; outside training it is
    that average, never the batch's. A kernel's range is always that of its present value.

    Args:
      bits: integer code length, 1 to 16.
      range: `minmax`, `absmax`, `percentile` or `mse`, see `ranges.calibrate`.
      signed: True symmetric, False from 0, None as the data are.
      granularity: what shares a range: `per_tensor`, `per_channel` or `per_group`.
      group_size: elements of a group, with `per_group`.
      zero_on_grid: whether the range moves so that 0.0 is a code.
      percentile: share of elements inside the range, in percent, with `range="percentile"`.
      decay: factor of the moving average's past at each observed batch.

    Raises:
      ValueError: an argument is outside what is listed above.

    Example:
      >>> q = uniform(bits=2, signed=False)
      >>> x = jnp.array([0.0, 0.4, 3.0])
      >>> params, stats = q.init(x, Axes())
      >>> q.apply(params, stats, x).tolist()
      [0.0, 0.0, 3.0]

    Source: Jacob et al., arXiv 1712.05877, eq. 11-13; min-max as in arXiv 2002.03090 with
      `zero_on_grid=False`.
    """
    blocks.check_granularity(granularity, group_size)
    calibrate, measure, update = observed(
        range, zero_on_grid, signed=signed, percentile=percentile, decay=decay
    )

    def init(x, axes):
        block = blocks.block_shape(x.shape, axes, granularity, group_size)
        params = {"bits": jnp.float32(bits)}
        return params, ranges.init_stats(*calibrate(x, block, params["bits"]))

    def grid_of(params, stats, train):
        del params
        low, high = ranges.read_range(stats, train)
        return jax.lax.stop_gradient(from_range(low, high, zero_on_grid))

    return affine(
        init,
        grid_of,
        zero=zero_on_grid,
        measure=measure,
        update=update,
        name="uniform",
        form={"bits": bits, "range": range, "granularity": granularity, "signed": signed},
        traits=Traits(
            numbers="unsigned" if signed is False else "signed", zero_is_code=zero_on_grid
        ),
    )


@checked(signed=SWITCH, init_range=choice("mse", "lsq"), **_SHARED)
def lsq(
    bits: float = 8,
    *,
    signed: bool = True,
    granularity: str = "per_tensor",
    group_size: int | None = None,
    init_range: str = "mse",
) -> Quantizer:
    """Learned step size quantization: the scale is a parameter.

    x_hat = scale * clip(round(x / scale), qmin, qmax), with codes -2^(bits-1) .. 2^(bits-1) - 1 if
    signed, 0 .. 2^bits - 1 if not. Gradients: to x, 1 inside and 0 outside; to scale,
    round(v) - v inside, qmin or qmax outside, times 1 / sqrt(elements * qmax) as in the paper's
    section 2.2. A scale is kept above 0 by its absolute value.

    Args:
      bits: integer code length; 2 to 16 signed, 1 to 16 unsigned.
      signed: whether codes lie on both sides of 0.
      granularity: what shares a scale: `per_tensor`, `per_channel` or `per_group`.
      group_size: elements of a group, with `per_group`.
      init_range: `mse` starts at the scale of least squared error, `lsq` at the paper's
        2 mean|x| / sqrt(qmax).

    Raises:
      ValueError: an argument is outside what is listed above.

    Example:
      >>> q = lsq(bits=2, init_range="lsq")
      >>> params, stats = q.init(jnp.array([-1.0, 1.0]), Axes())
      >>> float(params["scale"])
      2.0

    Source: Esser et al., arXiv 1902.08153, eq. 1-3 and 5. Departure: the start by squared error;
      on a constant tensor the result is within 4 ulp, not exact, since the scale is what is stored.
    """
    check_one("bits", BITS._replace(low=1 + signed), bits)
    blocks.check_granularity(granularity, group_size)

    def code_limits(n):
        count = steps(n)
        qmin = -(count + 1.0) / 2.0 if signed else jnp.zeros_like(count)
        return qmin, count + qmin, count

    def grid_from_scale(scale, n):
        qmin, _, count = code_limits(n)
        return Grid(qmin * scale, count * scale)

    def init(x, axes):
        block = blocks.block_shape(x.shape, axes, granularity, group_size)
        n = jnp.float32(bits)
        _, qmax, _ = code_limits(n)
        if init_range == "lsq":
            cut, inner = blocks.split(jnp.abs(x).astype(jnp.float32), block)
            scale = 2.0 * jnp.mean(cut, axis=inner).reshape(block) / jnp.sqrt(qmax)
        else:

            def quantize(x, low, high):
                del low
                return fake_quant(x, grid_from_scale(high / qmax, n), n, True)

            low, high = ranges.calibrate(x, block, "mse", signed=signed, quantize=quantize)
            # A constant block's range ends at 0 on one side; the other side sets the scale.
            scale = jnp.maximum(high, -low if signed else high) / qmax
        return {"bits": n, "scale": jnp.where(scale > 0, scale, 1.0).astype(jnp.float32)}, {}

    def grid_of(params, stats, train):
        del stats, train
        n = jax.lax.stop_gradient(params["bits"])
        return grid_from_scale(jnp.abs(params["scale"]), n)

    base = affine(
        init,
        grid_of,
        zero=True,
        name="lsq",
        form={"bits": bits, "granularity": granularity, "signed": signed},
        traits=Traits(
            numbers="signed" if signed else "unsigned", normalized=("scale",), zero_is_code=True
        ),
    )

    def apply(params, stats, x, *, train=False, key=None):
        _, qmax, _ = code_limits(params["bits"])
        per_block = x.size / max(1, params["scale"].size)
        factor = 1.0 / jnp.sqrt(per_block * jnp.maximum(qmax, 1.0))
        scale = scale_gradient(params["scale"], jax.lax.stop_gradient(factor))
        return base.apply({**params, "scale": scale}, stats, x, train=train, key=key)

    return base._replace(apply=apply)


@checked(signed=SWITCH, init_clip=either(choice("mse"), number(0, above=True)), **_SHARED)
def pact(
    bits: float = 8,
    *,
    signed: bool = False,
    granularity: str = "per_tensor",
    group_size: int | None = None,
    init_clip: float | str = "mse",
) -> Quantizer:
    """Parameterized clipping activation: the upper end of the range is a parameter.

    x_hat = scale * round(clip(x, 0, clip_max) / scale), scale = clip_max / (2^bits - 1). Gradients:
    to x, 1 inside and 0 outside; to clip_max, 0 inside and 1 for each clipped element, the paper's
    eq. 3. The paper adds L2 decay on clip_max: give its label weight decay.

    Args:
      bits: integer code length, 1 to 16.
      signed: clip to [-clip_max, clip_max] instead, with 0.0 kept a code (not in the paper).
      granularity: what shares a clip: `per_tensor`, `per_channel` or `per_group`.
      group_size: elements of a group, with `per_group`.
      init_clip: a number, or `mse` for the clip of least squared error.

    Raises:
      ValueError: an argument is outside what is listed above.

    Example:
      >>> q = pact(bits=2, init_clip=3.0)
      >>> params, stats = q.init(jnp.array([0.0, 9.0]), Axes())
      >>> q.apply(params, stats, jnp.array([1.4, 9.0])).tolist()
      [1.0, 3.0]

    A constant tensor comes out exactly if unsigned; signed, its end of the range may be no level.

    Source: Choi et al., arXiv 1805.06085, eq. 1-3.
    """
    blocks.check_granularity(granularity, group_size)

    def grid_from_clip(clip_max):
        return Grid(-clip_max if signed else jnp.zeros_like(clip_max), clip_max * (1 + signed))

    def init(x, axes):
        block = blocks.block_shape(x.shape, axes, granularity, group_size)
        n = jnp.float32(bits)
        if isinstance(init_clip, str):  # `mse`

            def quantize(x, low, high):
                del low
                return fake_quant(x, grid_from_clip(high), n, True)

            low, high = ranges.calibrate(x, block, "mse", signed=signed, quantize=quantize)
            clip_max = jnp.maximum(high, -low if signed else high)
        else:
            clip_max = jnp.full(block, init_clip, jnp.float32)
        return {"bits": n, "clip_max": jnp.where(clip_max > 0, clip_max, 1.0)}, {}

    def grid_of(params, stats, train):
        del stats, train
        return grid_from_clip(jnp.abs(params["clip_max"]))

    return affine(
        init,
        grid_of,
        zero=True,
        clipped_only=True,
        name="pact",
        form={"bits": bits, "granularity": granularity, "signed": signed},
        traits=Traits(numbers="signed" if signed else "unsigned", zero_is_code=True),
    )
