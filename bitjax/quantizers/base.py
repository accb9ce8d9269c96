"""The quantizer contract: a value made of pure functions on arrays."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bitjax.checks import checked, instance, whole

Params = dict[str, jax.Array]
Stats = dict[str, jax.Array]

# Leaves of params that training moves by the rule for ranges.
RANGES = ("scale", "clip_max", "clip_min", "log_clip_max", "coefficients")


class Axes(NamedTuple):
    """What axes of a tensor mean: which ones granularity may keep, which one holds examples.

    Attributes:
      channel: the filter axes of a kernel, or the feature axis of an input.
      group: the axis that `per_group` cuts into blocks: a kernel's input features, an input's
        features.
      example: the axis of a batch's examples, counted from the front; None of a kernel, and of an
        input without one.
    """

    channel: tuple[int, ...] = (-1,)
    group: int = -1
    example: int | None = None


class Codes(NamedTuple):
    """Integers that stand for a tensor.

    Attributes:
      codes: int32, the tensor's shape.
      side: the per-example scales they need, if any, by name; they count in the rate.
    """

    codes: jax.Array
    side: Mapping[str, jax.Array] = {}


class Numbers(NamedTuple):
    """A grid as integer arithmetic needs it; float32 leaves of the granularity's block shape.

      level = scale * integer,   first <= integer <= last

    Where `Traits.coding` is `offset` or `sign_magnitude`, integers are the nearest ones,
    clip(round(x * rate), first, last), unless the quantizer says otherwise.

    Attributes:
      scale: the level of the integer 1, in units of x, at least 0.
      rate: integers per unit of x; 0 where the scale is too small to divide by.
      first: the least integer.
      last: the greatest integer.
    """

    scale: jax.Array
    rate: jax.Array
    first: jax.Array
    last: jax.Array


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


class Planes(NamedTuple):
    """What a quantizer on bit planes is, for what chooses its planes (`bitjax.allocate`).

    Such a quantizer has the leaf `shift`, the lowest kept plane, beside `bits`. The level of a code
    is the sum of the levels of its planes.

    Attributes:
      depth: magnitude planes of the whole code, of which some are kept.
      coefficients: where the planes' coefficients come from: `power_of_two` (they are 2^i), or the
        leaf `coefficients` of `[depth]` numbers, which is `free` (learned) or `solved`.
      scale: where the scale of plane 0 comes from: `learned` is the parameter `scale`, `observed`
        follows the statistics, `example` is each example's own and travels with its codes.
      truncated: whether low planes are cut off a finished code; else x is rounded at the lowest
        kept plane.
    """

    depth: int
    coefficients: str = "power_of_two"
    scale: str = "learned"
    truncated: bool = False


class Traits(NamedTuple):
    """What a quantizer says of itself, for methods and reports to ask; every default is safe.

    The laws of `bitjax.check_quantizer` hold a quantizer to what it says here.

    Attributes:
      learns_bits: `(least, most)` of the leaf `bits` where training is to move it; None where the
        bits are fixed. Methods that learn bits keep the leaf between the two and round it.
      numbers: `signed` where levels may lie below 0, `unsigned` where what is below 0 becomes 0.
      rectifies: whether the quantizer is the layer's ReLU as well: what it cuts below 0 is then no
        error.
      normalized: names of parameters whose gradient `apply` divides by the root of the number of
        elements of x. In a model the elements of an input are those of one example: a batch's
        number of examples is divided out.
      stored_scale: whether the level of a code is the parameter `scale`, one number per filter,
        times an integer. A solver may then choose integers and scale (`bitjax.solve_layers`).
      planes: the bit planes, of a quantizer that has them; else None.
      coding: how codes hold the integers of `numbers`: `offset` counts them from the first,
        `sign_magnitude` has the sign in the plane above the magnitude, `signs` has 0 for -1.
      power_of_two: whether the scales of `numbers` are powers of two. Then each rate is 1 / scale
        and each level is scale * integer exactly, and hardware rescales by shifts.
      narrow: whether each integer has its opposite, so that the greatest of 2^bits codes stands for
        nothing.
      zero_is_code: whether an element that is exactly 0.0 stays exactly 0.0, at every number of
        bits, range and scale, in training and evaluation. Zeros that carry meaning, those of a
        mask or of pruned weights, need it.
    """

    learns_bits: tuple[float, float] | None = None
    numbers: str = "signed"
    rectifies: bool = False
    normalized: tuple[str, ...] = ()
    stored_scale: bool = False
    planes: Planes | None = None
    zero_is_code: bool = False
    coding: str = "offset"
    power_of_two: bool = False
    narrow: bool = False


class Quantizer(NamedTuple):
    """Pure functions that quantize one tensor; knows nothing of Flax, layers or training.

    What training moves goes by the name of a leaf of `params`: `bits` by the method's rule for bits
    if `traits.learns_bits`, and `scale`, `clip_max`, `clip_min`, `log_clip_max`, `coefficients` by
    its rule for ranges. Leaves of other names stay as `init` made them.

    Attributes:
      init: `(x, axes) -> (params, stats)`, dicts of float32 leaves; `params` always holds `bits`.
        The leaves' shapes carry the granularity: `[]`, or x's rank with each axis a divisor of
        x's, every entry serving a block of neighbours.
      apply: `(params, stats, x, *, train=False, key=None) -> x_hat`, x's shape and dtype,
        differentiable in params and x. `train` is static.
      encode: `(params, stats, x) -> Codes`, int32 codes at the nearest integer bits (`identity`
        gives x's own bit pattern).
      decode: `(params, stats, codes) -> levels`, what `apply(train=False)` gives.
      numbers: `(params, stats) -> Numbers`, what its levels are integers of; None where they are
        not integer multiples of one number per block, or where x sets the number.
      integers: `(params, stats, x) -> integers`, as float32 of x's shape, which `encode` stores;
        None without `numbers`.
      measure: `(params, stats, x) -> Batch`, or None where nothing is observed.
      update: `(stats, batch) -> stats`, or None.
      name: what the summary prints, for example `lsq` or `bitlength/blend`.
      form: the static settings as a record, for tables and files to show. It decides nothing.
      traits: what the quantizer says of itself; what decides anything is asked here.
      frozen: `() -> Quantizer`, the same one with what it chooses held: the bits where it learns
        them, which are then integers, or the codes where its scale is stored. Leaves keep their
        names and shapes. None where nothing is to be held.
    """

    init: Callable[[jax.Array, Axes], tuple[Params, Stats]]
    apply: Callable[..., jax.Array]
    encode: Callable[[Params, Stats, jax.Array], Codes]
    decode: Callable[[Params, Stats, Codes], jax.Array]
    measure: Callable[[Params, Stats, jax.Array], Batch] | None = None
    update: Callable[[Stats, Batch], Stats] | None = None
    numbers: Callable[[Params, Stats], Numbers] | None = None
    integers: Callable[[Params, Stats, jax.Array], jax.Array] | None = None
    name: str = "quantizer"
    form: Mapping[str, Any] = {}
    traits: Traits = Traits()
    frozen: "Callable[[], Quantizer] | None" = None


def is_learned(quantizer: Quantizer, leaf: str) -> bool:
    """Whether training moves a leaf of the quantizer's params."""
    return leaf in RANGES or (leaf == "bits" and quantizer.traits.learns_bits is not None)


QUANTIZER = instance(Quantizer, hint="make one by bitjax.uniform(bits=4), say.")
BITS = whole(1, 16, hint="bitlength() learns fractions.")


@checked(quantizer=QUANTIZER)
def freeze(quantizer: Quantizer) -> Quantizer:
    """The quantizer for integer bits that are not to move; one that learns no bits as it is.

    Leaves keep their names, so that a stage may follow another one with it.

    Args:
      quantizer: any; those that learn bits answer with what their `frozen` makes.

    Example:
      >>> from bitjax.quantizers.bitlength import bitlength
      >>> freeze(bitlength(init=4.0)).name
      'bitlength/fixed'
    """
    if quantizer.traits.learns_bits is None or quantizer.frozen is None:
        return quantizer
    return quantizer.frozen()


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

    traits = Traits(zero_is_code=True)
    return Quantizer(init, apply, encode, decode, name="identity", traits=traits)
