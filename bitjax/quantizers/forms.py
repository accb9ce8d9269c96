"""How a grid lies on its range: with 0.0 or without, scales of any size or powers of two, narrow.

A scale that is a power of two makes integer hardware's rescaling a shift, and all arithmetic on
levels exact: scale, rate and every level are floats without rounding. Two ways to round:
  up: for a range that covers data, so that no more is cut off.
  nearest: for a range that was fitted, by squared error or by training. A fitted scale is a power
    of two and so lies in the middle of all that round to it: training does not double it in its
    first step, and an average over batches is the one of most batches.
Gradients pass the rounding as if it were not there.

Source: Jain et al., "Trained Quantization Thresholds", arXiv 1903.08066, which always rounds up.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bitjax.checks import choice

SCALES = ("free", "power_of_two")
SCALE = choice(*SCALES)

# Ranges whose scale is a power of two but for rounding errors keep it.
_UP = 1.0 - 2.0**-20
_NEAREST = 0.5**0.5  # up to half a power of two above
_EXPONENT, _MANTISSA = 0x7F800000, 0x007FFFFF
_LARGEST = 254 << 23


class Form(NamedTuple):
    """What places levels on a range; static."""

    zero: bool  # whether 0.0 is a level, see `grid`
    rounded: str | None = None  # to a power of two: `up` or `nearest`; None leaves scales free
    symmetric: bool = False  # whether a rounded scale has the codes of two's complement
    narrow: bool = False  # whether the least code, which has no opposite, is left out

    @property
    def plain(self) -> bool:
        """Whether the levels divide the range into 2^bits - 1 steps."""
        return self.rounded is None and not self.narrow


ENDS, ZERO = Form(False), Form(True)


def form_of(scale: str, narrow: bool, symmetric: bool, fitted: bool, zero: bool = True) -> Form:
    """The form of a quantizer's arguments."""
    rounded = ("nearest" if fitted else "up") if scale == "power_of_two" else None
    return Form(zero, rounded, symmetric and rounded is not None, narrow)


def check_form(scale: str, narrow: bool, signed: bool | None, zero: bool, bits: float) -> None:
    """Raises a ValueError where these arguments of a quantizer do not go together."""
    if scale == "power_of_two" and not zero:
        raise ValueError("`scale` 'power_of_two' goes with zero_on_grid=True, not False.")
    if narrow and not zero:
        raise ValueError("`narrow` goes with zero_on_grid=True, not False.")
    if narrow and signed is not True:
        raise ValueError(f"`narrow` goes with signed=True, not {signed}.")
    if narrow and bits < 2:
        raise ValueError(f"`narrow` goes with 2 bits or more, not {bits:g}: 1 bit leaves only 0.")


def said(scale: str, narrow: bool) -> dict[str, object]:
    """What a quantizer's record says of these, where it is not as it was without them."""
    return {k: v for k, v in (("scale", scale), ("narrow", narrow)) if v not in ("free", False)}


def power_of_two(scale: jax.Array, rounded: str) -> tuple[jax.Array, jax.Array]:
    """The scale as a power of two, and its inverse; both 0 where there is none."""
    # By the bits of the float: exp2 and log2 are not exact on every backend.
    moved = scale.astype(jnp.float32) * (_UP if rounded == "up" else _NEAREST)
    bits = jax.lax.bitcast_convert_type(moved, jnp.int32)
    found = (bits & _EXPONENT) + jnp.where(bits & _MANTISSA, 1 << 23, 0)
    usable = (moved > jnp.finfo(jnp.float32).tiny) & (found < _LARGEST)
    both = (jnp.where(usable, found, 0), jnp.where(usable, _LARGEST - found, 0))
    power, inverse = (jax.lax.bitcast_convert_type(a, jnp.float32) for a in both)
    return power.astype(scale.dtype), inverse.astype(scale.dtype)
