"""The laws of `bitjax.quantizers.laws`, asked of one table of all quantizers."""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bitjax.quantizers import (
    Quantizer,
    binary,
    bitlength,
    bitplane,
    halfwave,
    hwgq,
    identity,
    low_bit,
    lsq,
    pact,
    ternary,
    trait_laws,
    uniform,
)
from bitjax.quantizers import laws as contract
from bitjax.quantizers.bitlength import MODES, RANGES
from bitjax.quantizers.blocks import GRANULARITIES
from bitjax.quantizers.ranges import METHODS
from bitjax.quantizers.subject import BrokenLaw, Claims, subject

SHAPE = (6, 4)
DTYPES = ("float32", "bfloat16", "float64")


class Row(NamedTuple):
    """A quantizer, what it claims, and whether it is asked only when the slow tests are."""

    make: Callable[[], Quantizer]
    claims: Claims
    slow: bool = False


def row(make, bits=range(1, 17), *, slow=False, **claims):
    return Row(make, Claims(bits, **claims), slow)


UNIFORM_BLOCKS = (("minmax", "per_channel"), ("absmax", "per_group"))


def form(granularity, **others):
    group = {"group_size": 3} if granularity == "per_group" else {}
    return {"granularity": granularity, **group, **others}


def rows():
    yield "identity", row(identity, range(32, 33), grid=False)
    for i, method in enumerate(METHODS):
        for j, granularity in enumerate(GRANULARITIES):
            zero = (i + j) % 2 == 0
            make = partial(uniform, 4, **form(granularity, range=method, zero_on_grid=zero))
            slow = j > 0 and (method, granularity) not in UNIFORM_BLOCKS
            yield f"uniform-{method}-{granularity}", row(make, slow=slow)
    yield "uniform-signed", row(partial(uniform, 4, signed=True), slow=True)
    yield "uniform-unsigned", row(partial(uniform, 4, signed=False), slow=True)
    for granularity in GRANULARITIES:
        make = partial(lsq, 4, **form(granularity))
        slow = granularity == "per_group"
        yield f"lsq-{granularity}", row(make, range(2, 17), constant=4, any_bits=False, slow=slow)
        # Of a symmetric range that keeps 0.0 a code, one end is no level.
        make = partial(pact, 4, **form(granularity, signed=True))
        slow = granularity != "per_tensor"
        yield f"pact-signed-{granularity}", row(make, constant=None, slow=slow)
    unsigned = partial(lsq, 4, signed=False)
    yield "lsq-unsigned", row(unsigned, constant=4, any_bits=False)
    paper = partial(lsq, 4, init_range="lsq")
    yield "lsq-paper-start", row(paper, range(2, 17), constant=None, any_bits=False, slow=True)
    yield "pact", row(partial(pact, 4))
    clip = partial(pact, 4, init_clip=2.0)
    yield "pact-given-clip", row(clip, constant=None, slow=True)
    for i, mode in enumerate(MODES):
        for j, span in enumerate(RANGES):
            for zero in (False, True):
                granularity = GRANULARITIES[(i + j + zero) % 3]
                options = form(granularity, mode=mode, range=span, zero_on_grid=zero, min_bits=0.0)
                constant = 0 if span == "minmax" else None
                slow = j != i % 2 or zero != (i > 2)
                make = partial(bitlength, 4.0, **options)
                claims = {"constant": constant, "fractional": True}
                ending = "zero" if zero else "ends"
                yield f"bitlength-{mode}-{span}-{ending}", row(make, range(17), slow=slow, **claims)
    after_relu = partial(bitlength, 4.0, range="learned", signed=False)
    # The clip is stored as a logarithm, whose rounding grows with its size.
    yield (
        "bitlength-learned-unsigned",
        row(after_relu, constant=64, fractional=True),
    )
    options = {"granularity": "per_channel", "range_granularity": "per_tensor"}
    one = row(partial(bitlength, 4.0, **options), fractional=True, slow=True)
    yield "bitlength-two-granularities", one
    # A learned scale is stored for the planes that it was started at, and the highest level of some
    # planes is short of the range: nothing is claimed of constants. A sign's plane orders nothing.
    claims = {"constant": None}
    every_plane = {"depth": 16, "shift": 0}
    yield "bitplane", row(partial(bitplane, 4, **every_plane), **claims)
    make = partial(bitplane, 4, coefficients="free", shift=0)
    yield "bitplane-free", row(make, range(1, 9), **claims)
    make = partial(bitplane, 4, coefficients="solved", shift=0)
    yield "bitplane-solved", row(make, range(1, 9), slow=True, **claims)
    make = partial(bitplane, 4, scale="observed", range="absmax", **every_plane)
    yield "bitplane-observed", row(make, slow=True, **claims)
    make = partial(bitplane, 4, scale="observed", coefficients="free", shift=0)
    yield "bitplane-observed-free", row(make, range(1, 9), slow=True, **claims)
    for kind in ("power_of_two", "free"):
        make = partial(bitplane, 4, signed=True, coefficients=kind, shift=0)
        one = row(make, range(2, 10), constant=None, ordered=False)
        yield f"bitplane-signed-{kind}", one._replace(slow=kind != "free")
    faithful = {"mode": "faithful", **every_plane}
    one = row(partial(bitplane, 4, **faithful), steady=False, **claims)
    yield "bitplane-faithful", one._replace(slow=True)
    make = partial(bitplane, 4, mode="faithful", signed=True, coefficients="free", shift=0)
    one = row(make, range(2, 10), constant=None, ordered=False, steady=False)
    yield "bitplane-faithful-signed", one._replace(slow=True)
    options = {"truncate": True, "wrap": True, "dither": True}
    # It is off by up to a step, and by all of it where it wraps.
    one = row(partial(bitplane, 4, **faithful, **options), ordered=False, steady=False, **claims)
    yield "bitplane-faithful-defects", one._replace(slow=True)
    # Steps are fitted for the bits that they were started at, and to no range.
    yield "halfwave", row(partial(halfwave, 4), slow=True, **claims)
    yield "halfwave-learned", row(partial(halfwave, 4, learn_step=True), slow=True, **claims)
    yield "halfwave-measured", row(partial(halfwave, 4, fit="measured"), **claims)
    # Without a cell around 0 it is off by up to a step.
    yield "hwgq", row(partial(hwgq, 4), ordered=False, slow=True, **claims)
    one = row(partial(hwgq, 4, fit="measured"), ordered=False, slow=True, **claims)
    yield "hwgq-measured", one
    # Signs and magnitudes order nothing.
    for fit in ("optimal", "twn", "stored"):
        one = row(partial(ternary, fit), range(2, 3), constant=4, ordered=False)
        yield f"ternary-{fit}", one._replace(slow=fit != "optimal")
    for fit in ("mean", "stored"):
        one = row(partial(binary, fit), range(1, 2), constant=4)
        yield f"binary-{fit}", one._replace(slow=fit == "mean")
    # A scale is fitted for the bits that it was started at.
    for fit in ("rounded", "stored"):
        one = row(partial(low_bit, 4, fit=fit), range(2, 17), constant=None, ordered=False)
        yield f"low_bit-{fit}", one._replace(slow=fit == "rounded")
    one = row(partial(low_bit, 4, fit="stored", narrow=False), range(2, 17), constant=None)
    yield "low_bit-stored-two-sided", one._replace(slow=True)

    yield from hardware_rows()


def hardware_rows():
    """Scales that are powers of two, which hold no constant, and codes with opposites."""
    rounded, narrow = {"scale": "power_of_two"}, {"narrow": True, "signed": True}
    learned = {"zero_on_grid": True, "min_bits": 2.0, **rounded}
    for make, name, one in (
        (uniform, "as-the-data", rounded),
        (uniform, "signed-per_channel", form("per_channel", signed=True, **rounded)),
        (uniform, "mse-narrow", {"range": "mse", **rounded, **narrow}),
        (lsq, "unsigned", {"signed": False, **rounded}),
        (lsq, "narrow-per_channel", form("per_channel", **rounded, narrow=True)),
        (bitlength, "blend-narrow", {**learned, **narrow}),
        (bitlength, "ste-learned", {**learned, "range": "learned", "mode": "ste"}),
    ):
        bits = range(1 if make is uniform and "narrow" not in one else 2, 17)
        claims = {"constant": None, "any_bits": make is not lsq, "fractional": make is bitlength}
        one = row(partial(make, 4, **one), bits, slow=name != "mse-narrow", **claims)
        yield f"{make.__name__}-power_of_two-{name}", one
    # Its end is a level, and so is a constant.
    yield "uniform-narrow", row(partial(uniform, 4, **narrow), range(2, 17), slow=True)


ROWS = dict(rows())


def every(claim=lambda claims: True):
    """Parametrizes a test by the names of the rows that claim something."""
    names = [
        pytest.param(name, marks=pytest.mark.slow if one.slow else ())
        for name, one in ROWS.items()
        if claim(one.claims)
    ]
    return pytest.mark.parametrize("name", names)


every_quantizer = every()
every_grid = every(lambda claims: claims.grid)
KINDS = (
    "uniform-absmax-per_group",
    "lsq-per_channel",
    "pact-signed-per_tensor",
    "bitlength-blend-learned-ends",
    "bitlength-blend-minmax-zero",
    "bitlength-ste-learned-zero",
    "bitplane",
    "bitplane-signed-free",
    "halfwave-measured",
    "binary-stored",
    "low_bit-rounded",
)
one_of_each_kind = every(lambda claims: any(claims is ROWS[name].claims for name in KINDS))


@cache
def asked(name):
    """A row's quantizer, compiled once for all tests."""
    return subject(ROWS[name].make(), ROWS[name].claims)


def normal(seed=0, scale=1.0, offset=0.0, dtype="float32"):
    values = (np.random.default_rng(seed).normal(size=SHAPE) + offset) * scale
    return jnp.asarray(values, dtype)


def tensors(test):
    """Few examples, since each is asked at every number of bits of every quantizer."""
    draw = given(
        seed=st.integers(0, 2**16),
        exponent=st.floats(-9, 9),
        offset=st.sampled_from([0.0, 0.0, 1.0, -3.0, 5.0]),
    )
    return settings(max_examples=settings.default.max_examples // 4)(draw(test))


@every_quantizer
@pytest.mark.parametrize("dtype", DTYPES)
def test_shape_and_dtype_are_kept_and_what_is_stored_is_float32(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        contract.keeps_shape_and_dtype(asked(name), normal(dtype=dtype))


@every_quantizer
@tensors
def test_decoding_the_codes_gives_exactly_what_apply_gives(name, seed, exponent, offset):
    contract.decodes_exactly(asked(name), normal(seed, 10.0**exponent, offset))


def dtypes_and_quantizers():
    """Each is compiled anew for a dtype: by default float64 of one quantizer of each kind."""
    for dtype in ("bfloat16", "float64"):
        for name, one in ROWS.items():
            slow = one.slow or dtype == "bfloat16" or name not in KINDS
            yield pytest.param(name, dtype, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(("name", "dtype"), list(dtypes_and_quantizers()))
def test_decoding_is_exact_in_other_dtypes_too(name, dtype):
    fitted = asked(name).init(normal(7, 3.0, 1.0))
    with jax.enable_x64(dtype == "float64"):
        contract.decodes_exactly(asked(name), normal(7, 3.0, 1.0, dtype), fitted)


@every(lambda claims: claims.grid and claims.ordered)
@tensors
def test_the_error_is_at_most_half_a_step_inside_the_range(name, seed, exponent, offset):
    contract.errs_at_most_half_a_step(asked(name), normal(seed, 10.0**exponent, offset))


@every(lambda claims: claims.grid and claims.steady)
@tensors
def test_quantizing_twice_changes_nothing(name, seed, exponent, offset):
    contract.changes_nothing_twice(asked(name), normal(seed, 10.0**exponent, offset))


@every(lambda claims: claims.constant is not None)
@given(value=st.floats(-1e9, 1e9, width=32).filter(lambda v: v == 0 or abs(v) > 1e-20))
@example(value=0.0)
@example(value=0.1)
def test_a_constant_tensor_comes_out_as_it_is(name, value):
    value = abs(value) if asked(name).quantizer.traits.numbers == "unsigned" else value
    contract.keeps_a_constant(asked(name), jnp.full(SHAPE, value, jnp.float32))


@every_quantizer
def test_gradients_are_finite_and_new_values_compile_nothing(name):
    bits = (2.5, 0.0, 0.5, 16.0) if ROWS[name].claims.fractional else (4.0, 16.0)
    tensors = (normal(), jnp.zeros(SHAPE), jnp.full(SHAPE, -2.0, jnp.float32))
    contract.has_finite_gradients(asked(name), tensors, normal(1), bits)


@one_of_each_kind
def test_jit_and_eager_differ_only_at_the_boundary_of_a_code(name):
    contract.agrees_with_eager(asked(name), normal(3, 2.0))


@one_of_each_kind
def test_a_stack_of_parameters_under_vmap_equals_a_loop(name):
    contract.maps_over_a_stack(asked(name), normal(4), (2.0, 4.0, 7.0))


@every_quantizer
def test_what_a_quantizer_says_of_itself_is_so(name):
    for law in trait_laws.TRAIT_LAWS:
        law(asked(name), normal(5, 2.0))


@every(lambda claims: claims.grid)
def test_a_quantizer_that_does_not_keep_zeros_moves_one(name):
    quantizer = asked(name).quantizer
    if not quantizer.traits.zero_is_code:
        said = quantizer._replace(traits=quantizer.traits._replace(zero_is_code=True))
        with pytest.raises(BrokenLaw, match="'what is 0 stays 0'"):
            trait_laws.keeps_zeros(asked(name)._replace(quantizer=said), normal(5, 2.0))


@every_grid
def test_an_empty_tensor_is_an_error_that_says_so(name):
    contract.refuses_an_empty_tensor(asked(name))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform(0), r"`bits` must be an integer in \[1, 16\], got 0"),
        (lambda: uniform(bits=17), r"`bits` must be an integer in \[1, 16\], got 17"),
        (lambda: uniform(float("nan")), r"`bits` must be an integer in \[1, 16\], got nan"),
        (lambda: uniform(3.5), r"`bits` must be an integer in .*, got 3.5"),
        (lambda: lsq(1), r"`bits` must be an integer in \[2, 16\], got 1"),
        (lambda: lsq(0, signed=False), r"`bits` must be an integer in \[1, 16\], got 0"),
        (lambda: lsq(2.5), r"`bits` must be an integer in .*, got 2.5"),
        (lambda: pact(32), r"`bits` must be an integer in \[1, 16\], got 32"),
        (lambda: bitlength(0.5), r"`init` must be in \[1, 16\], got 0.5"),
        (lambda: bitlength(9.0, max_bits=8), r"`init` must be in \[1, 8\], got 9"),
        (lambda: bitlength(min_bits=-1), r"`min_bits` must be in \[0, 16\], got -1"),
        (lambda: bitlength(max_bits=17), r"`max_bits` must be in \[0, 16\], got 17"),
        (lambda: bitlength(mode="soft"), r"`mode` must be one of \['blend', .*'soft'"),
        (lambda: bitlength(range="mse"), r"`range` must be one of \['minmax', 'learned'\]"),
        (lambda: uniform(range="max"), r"`range` must be one of .* got 'max'"),
        (lambda: uniform(granularity="layer"), r"`granularity` must be one of"),
        (lambda: uniform(granularity="per_group"), r"`group_size` must be 1 or more"),
        (lambda: lsq(group_size=4), r"`group_size` goes with granularity='per_group'"),
        (lambda: pact(init_clip=-1.0), r"`init_clip` must be 'mse' or a finite number above 0"),
        (lambda: uniform(decay=1.5), r"`decay` must be in \[0, 1\], got 1.5"),
        (lambda: bitplane(0), r"`bits` must be an integer in \[1, 16\], got 0"),
        (lambda: bitplane(17), r"`bits` must be an integer in \[1, 16\], got 17"),
        (lambda: bitplane(2.5), r"`bits` must be an integer in .*, got 2.5"),
        (lambda: bitplane(1, signed=True), r"`bits` must be an integer in \[2, 16\], got 1"),
        (lambda: bitplane(mode="weak"), r"`mode` must be one of \['strong', 'faithful'\], got 'w"),
        (lambda: bitplane(depth=17), r"`depth` must be None or an integer in \[1, 16\], got 17"),
        (lambda: bitplane(4, depth=6, shift=3), r"`depth` must be at least .* 4 \+ 3, got 6"),
        (lambda: bitplane(wrap=True), r"`wrap` goes with mode='faithful', not 'strong'"),
    ],
)
def test_an_argument_out_of_bounds_is_an_error_with_its_bound_and_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()
