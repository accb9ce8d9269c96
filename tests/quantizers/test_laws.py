"""Each law catches a quantizer that breaks it, in one line that names the law."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.quantizers import bitlength, bitplane, identity, lsq, pact, ternary, trait_laws, uniform
from bitjax.quantizers import laws as contract
from bitjax.quantizers.base import Planes, Quantizer
from bitjax.quantizers.laws import check_quantizer
from bitjax.quantizers.subject import BrokenLaw, Claims, subject

SOUND = uniform(4)
FEW = Claims(bits=(2, 4, 8))


def normal(seed=0, offset=0.0, dtype="float32"):
    values = np.random.default_rng(seed).normal(size=(6, 4)) + offset
    return jnp.asarray(values, dtype)


def with_apply(change: Callable, quantizer: Quantizer = SOUND) -> Quantizer:
    """The quantizer with `change(x_hat, x)` in place of its x_hat."""

    def apply(params, stats, x, *, train=False, key=None):
        return change(quantizer.apply(params, stats, x, train=train, key=key), x)

    return quantizer._replace(apply=apply)


def with_both(change: Callable, quantizer: Quantizer = SOUND) -> Quantizer:
    """The same change to what `apply` and `decode` give, so that these agree."""

    def decode(params, stats, codes):
        return change(quantizer.decode(params, stats, codes))

    return with_apply(lambda x_hat, x: change(x_hat), quantizer)._replace(decode=decode)


def with_leaves(change: Callable) -> Quantizer:
    """The quantizer with `change(params)` in place of its parameters."""

    def init(x, axes):
        params, stats = SOUND.init(x, axes)
        return change(params), stats

    return SOUND._replace(init=init)


def nudged() -> Quantizer:
    """Rounds x + 0.3 steps."""

    def moved(params, stats, x):
        steps = 2.0 ** params["bits"] - 1
        return (x + 0.3 * (stats["clip_max"] - stats["clip_min"]) / steps).astype(x.dtype)

    return SOUND._replace(
        apply=lambda params, stats, x, train=False, key=None: SOUND.apply(
            params, stats, moved(params, stats, x)
        ),
        encode=lambda params, stats, x: SOUND.encode(params, stats, moved(params, stats, x)),
    )


def shifted_codes(by: int) -> Quantizer:
    """Its codes are moved, and moved back when they are decoded."""

    def move(codes, by):
        return codes._replace(codes=codes.codes + by)

    return SOUND._replace(
        encode=lambda params, stats, x: move(SOUND.encode(params, stats, x), by),
        decode=lambda params, stats, codes: SOUND.decode(params, stats, move(codes, -by)),
    )


def only(kind: str) -> Quantizer:
    """Something else where x, or the bits, are of one kind of tracer, or of none."""

    def apply(params, stats, x, *, train=False, key=None):
        found = "none" if not isinstance(x, jax.core.Tracer) else "jit"
        if "BatchTracer" in type(params["bits"]).__name__:
            found = "vmap"
        x_hat = SOUND.apply(params, stats, x, train=train, key=key)
        return 1.25 * x_hat if found == kind else x_hat

    return SOUND._replace(apply=apply)


def unobserving() -> Quantizer:
    """Its history changes its shape with the first batch."""
    return SOUND._replace(update=lambda stats, batch: {k: v[None] for k, v in stats.items()})


def noisy_at_zero_bits() -> Quantizer:
    quantizer = bitlength(4.0, min_bits=0.0)
    return with_both(lambda x_hat: x_hat + 1.0, quantizer)


def steep_scale() -> Quantizer:
    """Its scale has the slope of a root at 0."""
    quantizer = lsq(4)

    def apply(params, stats, x, *, train=False, key=None):
        nothing = params["scale"] - jax.lax.stop_gradient(params["scale"])
        x_hat = quantizer.apply(params, stats, x, train=train)
        return x_hat + (0.0 * jnp.sqrt(nothing)).astype(x.dtype)

    return quantizer._replace(apply=apply)


def off_between(zero: bool = False) -> Quantizer:
    """Is right at whole bits only."""
    quantizer = bitlength(4.0, zero_on_grid=zero)

    def apply(params, stats, x, *, train=False, key=None):
        return quantizer.apply(params, stats, x, train=train) + (params["bits"] % 1 > 0)

    return quantizer._replace(apply=apply)


def moving_in_training() -> Quantizer:
    """Adds a little noise in training."""

    def apply(params, stats, x, *, train=False, key=None):
        return SOUND.apply(params, stats, x, train=train) + (0.1 if train else 0.0)

    return SOUND._replace(apply=apply)


def silently(x, axes):
    return SOUND.init(x if x.size else jnp.ones((6, 4)), axes)


def badly(x, axes):
    if not x.size:
        raise ValueError("no data")
    return SOUND.init(x, axes)


def with_bits_of(change: Callable, quantizer: Quantizer) -> Quantizer:
    """The quantizer with `change(bits)` in place of the bits that `apply` sees."""

    def apply(params, stats, x, *, train=False, key=None):
        params = {**params, "bits": change(params["bits"])}
        return quantizer.apply(params, stats, x, train=train, key=key)

    return quantizer._replace(apply=apply)


def saying(quantizer: Quantizer = SOUND, **traits) -> Quantizer:
    """The quantizer, which says something else of itself."""
    return quantizer._replace(traits=quantizer.traits._replace(**traits))


def frozen_to(made: Callable[[], Quantizer], quantizer: Quantizer | None = None) -> Quantizer:
    """The quantizer, a learned bitlength if None, with another `frozen`."""
    return (quantizer or ON_ZERO)._replace(frozen=made)


def deaf_to_its_scale() -> Quantizer:
    """Has a stored scale of 1, and levels of scale 1 whatever it is."""
    quantizer = lsq(4)

    def one(params):
        return {**params, "scale": jnp.ones_like(params["scale"])}

    made = Quantizer(
        lambda x, axes: (one(quantizer.init(x, axes)[0]), {}),
        lambda params, stats, x, **kwargs: quantizer.apply(one(params), stats, x, **kwargs),
        lambda params, stats, x: quantizer.encode(one(params), stats, x),
        lambda params, stats, codes: quantizer.decode(one(params), stats, codes),
    )
    return storing(made)


def storing(quantizer: Quantizer) -> Quantizer:
    """The quantizer, which says that its scale is stored, and can hold its codes."""
    held = with_apply(lambda x_hat, x: jax.lax.stop_gradient(x_hat), quantizer)
    return saying(quantizer, stored_scale=True)._replace(frozen=lambda: held)


ON_ZERO = bitlength(4.0, zero_on_grid=True)
FREE = bitplane(4, coefficients="free", shift=0)
LEARNED = Claims(bits=(2, 4, 8), fractional=True)
LOOSE = FEW._replace(constant=None, ordered=False, steady=False)


class Case(NamedTuple):
    """A broken quantizer, the law, how it is asked, what the line says, and its other claims."""

    quantizer: Quantizer
    ask: Callable
    message: str
    claims: Claims = FEW


def gradients(s, tensors=None):
    contract.has_finite_gradients(s, tensors or (normal(), jnp.zeros((6, 4))), normal(1), (4.0,))


CASES = {
    "dtype": Case(
        with_apply(lambda x_hat, x: x_hat.astype("float32")),
        lambda s: contract.keeps_shape_and_dtype(s, normal(dtype="bfloat16")),
        r"'shape and dtype are kept'.*bfloat16.*float32.*in evaluation",
    ),
    "shape": Case(
        with_apply(lambda x_hat, x: x_hat.ravel()),
        lambda s: contract.keeps_shape_and_dtype(s, normal()),
        r"'shape and dtype are kept'.*\(6, 4\).*\(24,\)",
    ),
    "no bits": Case(
        with_leaves(lambda params: {"length": params["bits"]}),
        lambda s: contract.keeps_shape_and_dtype(s, normal()),
        "`params` has no leaf 'bits', only \\['length'\\]",
    ),
    "half precision": Case(
        with_leaves(lambda params: {**params, "scale": jnp.float16(1.0)}),
        lambda s: contract.keeps_shape_and_dtype(s, normal()),
        "a leaf is stored as float16",
    ),
    "history": Case(
        unobserving(), lambda s: contract.keeps_shape_and_dtype(s, normal()), "`update` makes"
    ),
    "decoding": Case(
        with_apply(lambda x_hat, x: x_hat * 1.0000002),
        lambda s: contract.decodes_exactly(s, normal()),
        r"'decoding the codes gives exactly what apply gives': at 2 bits decoded is",
    ),
    "codes above": Case(
        shifted_codes(1), lambda s: contract.decodes_exactly(s, normal()), "codes are 1 to 4"
    ),
    "codes below": Case(
        shifted_codes(-1), lambda s: contract.decodes_exactly(s, normal()), "codes are -1 to 2"
    ),
    "no bits at all": Case(
        noisy_at_zero_bits(),
        lambda s: contract.decodes_exactly(s, normal()),
        "at 0 bits something is not 0",
        Claims(bits=(0,), fractional=True),
    ),
    "rounding": Case(
        nudged(),
        lambda s: contract.errs_at_most_half_a_step(s, normal()),
        "'the error is at most half a step inside the range': at 2 bits it is",
    ),
    "twice": Case(
        with_both(lambda x_hat: 0.5 * x_hat),
        lambda s: contract.changes_nothing_twice(s, normal()),
        "'quantizing twice changes nothing': at 8 bits twice is",
        FEW._replace(ordered=False),
    ),
    "constants": Case(
        with_both(lambda x_hat: 0.5 * x_hat),
        lambda s: contract.keeps_a_constant(s, jnp.full((6, 4), 0.1)),
        r"'a constant tensor comes out as it is': at 2 bits x_hat is",
        FEW._replace(ordered=False, steady=False),
    ),
    "constants between": Case(
        off_between(),
        lambda s: contract.keeps_a_constant(s, jnp.full((6, 4), 0.1)),
        "'a constant tensor comes out as it is': at 2.5 bits",
        Claims(bits=(4,), fractional=True),
    ),
    "gradients": Case(
        with_apply(lambda x_hat, x: x_hat + 0.0 * jnp.sqrt(jnp.abs(x))),
        gradients,
        "'gradients are finite': not to x at [248] bits",
    ),
    "gradients of ranges": Case(
        steep_scale(),
        gradients,
        "'gradients are finite': not to scale at [248] bits",
        FEW._replace(constant=None),
    ),
    "eager": Case(
        only("none"),
        lambda s: contract.agrees_with_eager(s, normal(3)),
        "'jit and eager differ only at the boundary of a code'",
    ),
    "vmap": Case(
        only("vmap"),
        lambda s: contract.maps_over_a_stack(s, normal(4), (2.0, 4.0)),
        "'a stack of parameters under vmap equals a loop'",
    ),
    "empty": Case(
        SOUND._replace(init=silently),
        contract.refuses_an_empty_tensor,
        "'an empty tensor is an error that says so': there is none",
    ),
    "empty, said badly": Case(
        SOUND._replace(init=badly),
        contract.refuses_an_empty_tensor,
        "'an empty tensor is an error that says so': it says 'no data'",
    ),
    "bits that start outside": Case(
        saying(bitlength(8.0), learns_bits=(1.0, 4.0)),
        lambda s: trait_laws.learns_its_bits(s, normal()),
        "'learned bits start in their bounds and move': they start at 8, outside 1 to 4",
        LEARNED,
    ),
    "bits that cannot move": Case(
        with_bits_of(jax.lax.stop_gradient, bitlength(4.0)),
        lambda s: trait_laws.learns_its_bits(s, normal()),
        "the gradient to `bits` at 3.4 is 0 everywhere",
        LEARNED,
    ),
    "bits of an endless slope": Case(
        with_bits_of(lambda bits: bits + 0.0 * jnp.sqrt(bits - 3.4), bitlength(4.0)),
        lambda s: trait_laws.learns_its_bits(s, normal()),
        "the gradient to `bits` at 3.4 is not finite|'gradients are finite': not to bits|decoded",
        LEARNED,
    ),
    "bits that cannot be frozen": Case(
        bitlength(4.0)._replace(frozen=None),
        lambda s: trait_laws.freezes(s, normal()),
        "'frozen, it has the same leaves and levels': there is no `frozen`",
        LEARNED,
    ),
    "frozen and learning": Case(
        frozen_to(lambda: ON_ZERO),
        lambda s: trait_laws.freezes(s, normal()),
        "it still says that it learns its bits",
        FEW,
    ),
    "frozen with other leaves": Case(
        frozen_to(lambda: lsq(4)),
        lambda s: trait_laws.freezes(s, normal()),
        r"its leaves are \{.*'scale': \(\)\}, not \{'bits'",
        FEW,
    ),
    "frozen on other levels": Case(
        frozen_to(lambda: with_both(lambda x_hat: 0.5 * x_hat, bj.freeze(ON_ZERO))),
        lambda s: trait_laws.freezes(s, normal()),
        "frozen at 2 bits x_hat is",
        FEW,
    ),
    "frozen without its codes": Case(
        frozen_to(lambda: with_apply(lambda x_hat, x: 0.5 * x_hat, bj.freeze(ON_ZERO))),
        lambda s: trait_laws.freezes(s, normal()),
        "frozen at 2 bits decoded is",
        FEW,
    ),
    "codes that are not held": Case(
        frozen_to(lambda: ternary(fit="stored"), ternary(fit="stored")),
        lambda s: trait_laws.freezes(s, normal()),
        "its codes still follow x",
        Claims(bits=(2,), constant=4, ordered=False),
    ),
    "unsigned": Case(
        saying(numbers="unsigned"),
        lambda s: trait_laws.cuts_below_zero(s, normal()),
        "'what is below 0 becomes 0': at 2 bits something below 0 becomes -",
    ),
    "rectifying": Case(
        saying(rectifies=True),
        lambda s: trait_laws.cuts_below_zero(s, normal()),
        "'what is below 0 becomes 0': at 2 bits something below 0 becomes -",
    ),
    "no scale to store": Case(
        storing(SOUND),
        lambda s: trait_laws.scales_its_codes(s, normal()),
        "'a level is an integer times the stored scale': `params` has no leaf 'scale', only",
    ),
    "levels between the scale's": Case(
        storing(with_both(lambda x_hat: 0.5 * x_hat, lsq(4))),
        lambda s: trait_laws.scales_its_codes(s, normal()),
        "'a level is an integer times the stored scale': in scales a level is",
        LOOSE,
    ),
    "levels deaf to the scale": Case(
        deaf_to_its_scale(),
        lambda s: trait_laws.scales_its_codes(s, normal()),
        "at twice the scale a level is",
        LOOSE,
    ),
    "normalized without a leaf": Case(
        saying(normalized=("scale",)),
        lambda s: trait_laws.divides_its_gradients(s, normal()),
        "'normalized gradients are divided by .*': `params` has no leaf 'scale'",
    ),
    "normalized without a divisor": Case(
        saying(pact(4, init_clip=1.0, signed=True), normalized=("clip_max",)),
        lambda s: trait_laws.divides_its_gradients(s, normal()),
        "to 'clip_max' of each row twice it is",
        FEW._replace(constant=None),
    ),
    "planes without their leaves": Case(
        saying(planes=Planes(8)),
        lambda s: trait_laws.adds_up_its_planes(s, normal()),
        r"`params` must have 'shift' of shape \(\), has None",
    ),
    "planes that do not add up": Case(
        with_both(lambda x_hat: jnp.where(x_hat > 1.0, 0.5 * x_hat, x_hat), FREE),
        lambda s: trait_laws.adds_up_its_planes(s, normal()),
        "'the level of a code is the sum of its planes'': at 8 bits a level is",
        LOOSE,
    ),
    "zeros that move": Case(
        saying(uniform(4, zero_on_grid=False), zero_is_code=True),
        lambda s: trait_laws.keeps_zeros(s, normal()),
        "'what is 0 stays 0': at 2 bits 0 becomes",
        LOOSE,
    ),
    "zeros that move between whole bits": Case(
        saying(off_between(True), zero_is_code=True),
        lambda s: trait_laws.keeps_zeros(s, normal()),
        "'what is 0 stays 0': at 2.3 bits 0 becomes 1 in evaluation",
        LEARNED._replace(constant=None),
    ),
    "zeros that move in training": Case(
        saying(moving_in_training(), zero_is_code=True),
        lambda s: trait_laws.keeps_zeros(s, normal()),
        "'what is 0 stays 0': at 2 bits 0 becomes .* in training",
        LOOSE,
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


@every_case
def test_a_law_catches_the_quantizer_that_breaks_it_in_one_line(name):
    quantizer, ask, message, claims = CASES[name]
    with pytest.raises(BrokenLaw, match=message) as caught:
        ask(subject(quantizer, claims))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{quantizer.name} breaks '")


@every_case
@pytest.mark.slow
def test_a_law_lets_a_sound_quantizer_through(name):
    CASES[name].ask(subject(SOUND, FEW))


def test_shapes_that_compile_anew_are_caught():
    with pytest.raises(BrokenLaw, match="'new values compile nothing': they compiled 2 times"):
        gradients(subject(SOUND, FEW), (normal(), normal()[:, :1]))


def test_claiming_no_bits_is_an_error():
    with pytest.raises(ValueError, match="`claims.bits` must name at least one code length"):
        check_quantizer(SOUND, Claims(bits=()))


def test_a_sound_quantizer_keeps_all_laws():
    check_quantizer(uniform(4), FEW)


@every_case
@pytest.mark.slow
def test_the_whole_contract_catches_what_breaks_any_law(name):
    with pytest.raises(BrokenLaw, match=CASES[name].message):
        check_quantizer(CASES[name].quantizer, CASES[name].claims)


@pytest.mark.parametrize(
    ("quantizer", "claims"),
    [
        (identity(), Claims(bits=(32,), grid=False)),
        (lsq(4), Claims(bits=range(2, 17), constant=4, any_bits=False)),
        (bitlength(4.0), Claims(fractional=True)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.slow
def test_quantizers_of_each_kind_of_claims_keep_all_laws(quantizer, claims):
    check_quantizer(quantizer, claims)
