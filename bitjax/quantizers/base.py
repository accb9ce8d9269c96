"""The quantizer contract: a value made of pure functions on arrays."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Params = dict[str, jax.Array]
Stats = dict[str, jax.Array]


class Axes(NamedTuple):
    """Which axes of a tensor granularity may keep.

    Attributes:
      channel: the filter axes of a kernel, or the feature axis of an input.
      group: the axis that `per_group` cuts into blocks: a kernel's input features, an input's
        features.
    """

    channel: tuple[int, ...] = (-1,)
    group: int = -1


class Codes(NamedTuple):
    """Integers that stand for a tensor.

    Attributes:
      codes: int32, the tensor's shape.
      side: the per-example scales they need, if any, by name; they count in the rate.
    """

    codes: jax.Array
    side: Mapping[str, jax.Array] = {}


class Batch(NamedTuple):
    """One batch's statistics, by the reduction that merges them across devices.

    Attributes:
      max: leaves of which the largest counts.
      min: leaves of which the smallest counts.
      sum: leaves that add up.
      mean: leaves that are averaged.
    """

    max: Mapping[str, jax.Array] = {}
    min: Mapping[str, jax.Array] = {}
    sum: Mapping[str, jax.Array] = {}
    mean: Mapping[str, jax.Array] = {}


class Quantizer(NamedTuple):
    """Pure functions that quantize one tensor; knows nothing of Flax, layers or training.

    Attributes:
      init: `(x, axes) -> (params, stats)`, dicts of float32 leaves; `params` always holds `bits`.
        The leaves' shapes carry the granularity: `[]`, or x's rank with each axis a divisor of
        x's, every entry serving a block of neighbours.
      apply: `(params, stats, x, *, train=False, key=None) -> x_hat`, x's shape and dtype,
        differentiable in params and x. `train` is static.
      encode: `(params, stats, x) -> Codes`, int32 codes at the nearest integer bits (`identity`
        gives x's own bit pattern).
      decode: `(params, stats, codes) -> levels`, what `apply(train=False)` gives.
      measure: `(params, stats, x) -> Batch`, or None where nothing is observed.
      update: `(stats, batch) -> stats`, or None.
      name: what the summary prints, for example `lsq` or `bitlength/blend`.
      form: the static settings, for the summary and the run's record. `normalized` names the leaves
        whose gradient is divided by the root of the number of elements; where devices or parts
        divide a batch, `Quantized` makes that the whole batch's.
    """

    init: Callable[[jax.Array, Axes], tuple[Params, Stats]]
    apply: Callable[..., jax.Array]
    encode: Callable[[Params, Stats, jax.Array], Codes]
    decode: Callable[[Params, Stats, Codes], jax.Array]
    measure: Callable[[Params, Stats, jax.Array], Batch] | None = None
    update: Callable[[Stats, Batch], Stats] | None = None
    name: str = "quantizer"
    form: Mapping[str, Any] = {}


def reduce_batch(batch: Batch, axis_name: str | None) -> Batch:
    """Merges a batch's statistics over the devices of `axis_name`; None changes nothing.

    Example:
      >>> float(reduce_batch(Batch(max={"clip_max": jnp.float32(2.0)}), None).max["clip_max"])
      2.0
    """
    if axis_name is None:
        return batch
    reducers = (jax.lax.pmax, jax.lax.pmin, jax.lax.psum, jax.lax.pmean)
    return Batch(
        *(dict(reduce(dict(f), axis_name)) for reduce, f in zip(reducers, batch, strict=True))
    )


def identity() -> Quantizer:
    """The quantizer that changes nothing and costs 32 bits.

    Example:
      >>> q = identity()
      >>> params, stats = q.init(jnp.ones(3), Axes())
      >>> float(params["bits"])
      32.0
    """

    def init(x, axes):
        del x, axes  # a float tensor has nothing to learn
        return {"bits": jnp.float32(32.0)}, {}

    def apply(params, stats, x, *, train=False, key=None):
        del params, stats, train, key
        return x

    def encode(params, stats, x):
        del params, stats
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return Codes(jax.lax.bitcast_convert_type(wide, f"int{wide.dtype.itemsize * 8}"))

    def decode(params, stats, codes):
        del params, stats
        return jax.lax.bitcast_convert_type(codes.codes, f"float{codes.codes.dtype.itemsize * 8}")

    return Quantizer(init, apply, encode, decode, name="identity")


def check_bits(bits: float, low: float, high: float, name: str = "bits") -> float:
    """Returns `bits` if it lies in [low, high]; a ValueError that says so if not."""
    if not low <= bits <= high:
        raise ValueError(f"`{name}` must be in [{low:g}, {high:g}], got {bits:g}.")
    return bits


def check_integer_bits(bits: float, low: float, high: float) -> float:
    """As `check_bits`, of a code length that cannot be fractional."""
    if check_bits(bits, low, high) != round(bits):
        raise ValueError(f"`bits` must be an integer, got {bits:g}; bitlength() learns fractions.")
    return bits


def check_choice(value: Any, choices: tuple[Any, ...], name: str) -> Any:
    """Returns `value` if it is one of `choices`; a ValueError that lists them if not."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}, got {value!r}.")
    return value
