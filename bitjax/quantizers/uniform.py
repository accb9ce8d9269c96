"""Fixed-bit uniform grids over ranges from data, and what every affine quantizer is made of."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bitjax.checks import NONE, SWITCH, checked, choice, either, number
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
from bitjax.quantizers.forms import SCALE, Form, check_form, form_of, said
from bitjax.quantizers.grid import (
    Grid,
    decode,
    encode,
    fake_quant,
    from_range,
    integers,
    numbers,
    snapped,
)

GridOf = Callable[[Params, Stats, bool], Grid]


def affine(
    init: Callable[[jax.Array, Axes], tuple[Params, Stats]],
    grid_of: GridOf,
    *,
    lies: Form,
    clipped_only: bool = False,
    **fields,
) -> Quantizer:
    """A quantizer on the affine grid that `grid_of(params, stats, train)` gives."""
    # The one place where a fixed-bit grid becomes apply, encode and decode: the three agree.

    def apply(params, stats, x, *, train=False, key=None):
        del key  # deterministic
        grid = grid_of(params, stats, train)
        return fake_quant(x, grid, params["bits"], lies, clipped_only)

    def encode_x(params, stats, x):
        return Codes(encode(x, grid_of(params, stats, False), jnp.rint(params["bits"]), lies))

    def decode_codes(params, stats, codes):
        grid = grid_of(params, stats, False)
        return decode(codes.codes, grid, jnp.rint(params["bits"]), lies)

    if lies.zero:
        fields["numbers"] = lambda params, stats: numbers(
            grid_of(params, stats, False), jnp.rint(params["bits"]), lies
        )
        fields["integers"] = lambda params, stats, x: integers(
            x, grid_of(params, stats, False), jnp.rint(params["bits"]), lies
        )
    return Quantizer(init, apply, encode_x, decode_codes, **fields)


def observed(
    method: str,
    lies: Form,
    *,
    signed: bool | None,
    percentile: float,
    decay: float,
) -> tuple[Callable, Callable, Callable]:
    """`(calibrate, measure, update)` of a quantizer whose range is observed from data.

    `calibrate(x, block, bits)` gives one tensor's range, `measure` and `update` its history.
    """

    tried = tried_of(lies)

    def calibrate(x, block, bits):
        low, high = ranges.calibrate(
            x,
            block,
            method,
            signed=signed,
            percentile=percentile,
            quantize=lambda x, low, high: fake_quant(x, from_range(low, high, tried), bits, tried),
        )
        if lies.rounded != "nearest":
            return low, high
        low, width = snapped(from_range(low, high, lies), bits, lies)
        return low, low + width

    def measure(params, stats, x):
        low, high = calibrate(x, stats["clip_min"].shape, params["bits"])
        return ranges.as_batch(low, high, method)

    return calibrate, measure, functools.partial(ranges.update_stats, decay=decay)


def tried_of(lies: Form) -> Form:
    """The form in which a search tries ranges: every power of two up to the full range's."""
    return lies._replace(rounded="up") if lies.rounded else lies


SHARED = {
    "bits": BITS,
    "granularity": blocks.GRANULARITY,
    "group_size": blocks.GROUP_SIZE,
}
HARDWARE = {"scale": SCALE, "narrow": SWITCH}


@checked(
    range=choice(*ranges.METHODS),
    signed=either(NONE, SWITCH),
    zero_on_grid=SWITCH,
    percentile=number(50, 100),
    decay=number(0, 1),
    **SHARED,
    **HARDWARE,
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
    scale: str = "free",
    narrow: bool = False,
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
      scale: `power_of_two` rounds the scale to one: up, so that nothing more is cut off, with
        `range="mse"` to the best one. Rescaling is then a shift, and every level is exact.
      narrow: whether the least code, -2^(bits - 1), is left out; with `signed=True`.

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
    check_form(scale, narrow, signed, zero_on_grid, bits)
    symmetric = signed is True or (signed is None and range == "absmax")
    lies = form_of(scale, narrow, symmetric, range == "mse", zero_on_grid)
    calibrate, measure, update = observed(
        range, lies, signed=signed, percentile=percentile, decay=decay
    )

    def init(x, axes):
        block = blocks.block_shape(x.shape, axes, granularity, group_size)
        params = {"bits": jnp.float32(bits)}
        return params, ranges.init_stats(*calibrate(x, block, params["bits"]))

    def grid_of(params, stats, train):
        del params
        low, high = ranges.read_range(stats, train)
        return jax.lax.stop_gradient(from_range(low, high, lies))

    return affine(
        init,
        grid_of,
        lies=lies,
        measure=measure,
        update=update,
        name="uniform",
        form={"bits": bits, "range": range, "granularity": granularity, "signed": signed}
        | said(scale, narrow),
        traits=Traits(
            numbers="unsigned" if signed is False else "signed",
            zero_is_code=zero_on_grid,
            power_of_two=lies.rounded is not None,
            narrow=narrow,
        ),
    )
