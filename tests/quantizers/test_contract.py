"""The laws every quantizer keeps, asked of one table of all of them."""

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
    Axes,
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
    uniform,
)
from bitjax.quantizers.bitlength import MODES, RANGES
from bitjax.quantizers.blocks import GRANULARITIES
from bitjax.quantizers.ranges import METHODS

SHAPE = (6, 4)
AXES = Axes((-1,), -2)
DTYPES = ("float32", "bfloat16", "float64")


class Row(NamedTuple):
    """A quantizer and the laws it claims.

    `zero`: 0.0 is a code. `constant`: ulps by which a constant tensor may be off, None if it claims
    nothing. `negative`: negative numbers are in its range. `grid`: it rounds at all. `ordered`:
    codes rise with what they stand for. `steady`: its range does not follow the tensor in `apply`,
    so that quantizing twice changes nothing. `slow`: a combination that is asked only when the
    slow tests are.
    """

    make: Callable[[], Quantizer]
    bits: range = range(1, 17)
    zero: bool = True
    constant: float | None = 0
    negative: bool = True
    grid: bool = True
    ordered: bool = True
    steady: bool = True
    slow: bool = False


UNIFORM_BLOCKS = (("minmax", "per_channel"), ("absmax", "per_group"))


def form(granularity, **others):
    group = {"group_size": 3} if granularity == "per_group" else {}
    return {"granularity": granularity, **group, **others}


def rows():
    yield "identity", Row(identity, bits=range(32, 33), grid=False)
    for i, method in enumerate(METHODS):
        for j, granularity in enumerate(GRANULARITIES):
            zero = (i + j) % 2 == 0
            make = partial(uniform, 4, **form(granularity, range=method, zero_on_grid=zero))
            slow = j > 0 and (method, granularity) not in UNIFORM_BLOCKS
            yield f"uniform-{method}-{granularity}", Row(make, zero=zero, slow=slow)
    yield "uniform-signed", Row(partial(uniform, 4, signed=True), slow=True)
    yield "uniform-unsigned", Row(partial(uniform, 4, signed=False), negative=False, slow=True)
    for granularity in GRANULARITIES:
        make = partial(lsq, 4, **form(granularity))
        slow = granularity == "per_group"
        yield f"lsq-{granularity}", Row(make, bits=range(2, 17), constant=4, slow=slow)
        # Of a symmetric range that keeps 0.0 a code, one end is no level.
        make = partial(pact, 4, **form(granularity, signed=True))
        slow = granularity != "per_tensor"
        yield f"pact-signed-{granularity}", Row(make, constant=None, slow=slow)
    unsigned = partial(lsq, 4, signed=False)
    yield "lsq-unsigned", Row(unsigned, constant=4, negative=False)
    paper = partial(lsq, 4, init_range="lsq")
    yield "lsq-paper-start", Row(paper, bits=range(2, 17), constant=None, slow=True)
    yield "pact", Row(partial(pact, 4), negative=False)
    clip = partial(pact, 4, init_clip=2.0)
    yield "pact-given-clip", Row(clip, constant=None, negative=False, slow=True)
    for i, mode in enumerate(MODES):
        for j, span in enumerate(RANGES):
            for zero in (False, True):
                granularity = GRANULARITIES[(i + j + zero) % 3]
                options = form(granularity, mode=mode, range=span, zero_on_grid=zero, min_bits=0.0)
                constant = 0 if span == "minmax" else None
                slow = j != i % 2 or zero != (i > 2)
                row = Row(partial(bitlength, 4.0, **options), range(0, 17), zero, constant)
                ending = "zero" if zero else "ends"
                yield f"bitlength-{mode}-{span}-{ending}", row._replace(slow=slow)
    after_relu = partial(bitlength, 4.0, range="learned", signed=False)
    # The clip is stored as a logarithm, whose rounding grows with its size.
    yield "bitlength-learned-unsigned", Row(after_relu, constant=64, negative=False)
    options = {"granularity": "per_channel", "range_granularity": "per_tensor"}
    row = Row(partial(bitlength, 4.0, **options), zero=False, slow=True)
    yield "bitlength-two-granularities", row
    # A learned scale is stored for the planes that it was started at, and the highest level of some
    # planes is short of the range: nothing is claimed of constants. A sign's plane orders nothing.
    claims = {"constant": None, "negative": False}
    every_plane = {"depth": 16, "shift": 0}
    yield "bitplane", Row(partial(bitplane, 4, **every_plane), **claims)
    make = partial(bitplane, 4, coefficients="free", shift=0)
    yield "bitplane-free", Row(make, range(1, 9), **claims)
    make = partial(bitplane, 4, coefficients="solved", shift=0)
    yield "bitplane-solved", Row(make, range(1, 9), slow=True, **claims)
    make = partial(bitplane, 4, scale="observed", range="absmax", **every_plane)
    yield "bitplane-observed", Row(make, slow=True, **claims)
    make = partial(bitplane, 4, scale="observed", coefficients="free", shift=0)
    yield "bitplane-observed-free", Row(make, range(1, 9), slow=True, **claims)
    for kind in ("power_of_two", "free"):
        make = partial(bitplane, 4, signed=True, coefficients=kind, shift=0)
        row = Row(make, range(2, 10), constant=None, ordered=False)
        yield f"bitplane-signed-{kind}", row._replace(slow=kind != "free")
    faithful = {"mode": "faithful", **every_plane}
    row = Row(partial(bitplane, 4, **faithful), steady=False, **claims)
    yield "bitplane-faithful", row._replace(slow=True)
    make = partial(bitplane, 4, mode="faithful", signed=True, coefficients="free", shift=0)
    row = Row(make, range(2, 10), constant=None, ordered=False, steady=False)
    yield "bitplane-faithful-signed", row._replace(slow=True)
    options = {"truncate": True, "wrap": True, "dither": True}
    # It is off by up to a step, and by all of it where it wraps.
    row = Row(partial(bitplane, 4, **faithful, **options), ordered=False, steady=False, **claims)
    yield "bitplane-faithful-defects", row._replace(slow=True)
    # Steps are fitted for the bits that they were started at, and to no range.
    yield "halfwave", Row(partial(halfwave, 4), slow=True, **claims)
    yield "halfwave-learned", Row(partial(halfwave, 4, learn_step=True), slow=True, **claims)
    yield "halfwave-measured", Row(partial(halfwave, 4, fit="measured"), **claims)
    # Without a cell around 0 it is off by up to a step.
    yield "hwgq", Row(partial(hwgq, 4), ordered=False, slow=True, **claims)
    row = Row(partial(hwgq, 4, fit="measured"), ordered=False, slow=True, **claims)
    yield "hwgq-measured", row
    # Signs and magnitudes order nothing.
    for fit in ("optimal", "twn", "stored"):
        row = Row(partial(ternary, fit), range(2, 3), constant=4, ordered=False)
        yield f"ternary-{fit}", row._replace(slow=fit != "optimal")
    for fit in ("mean", "stored"):
        row = Row(partial(binary, fit), range(1, 2), zero=False, constant=4)
        yield f"binary-{fit}", row._replace(slow=fit == "mean")
    # A scale is fitted for the bits that it was started at.
    for fit in ("rounded", "stored"):
        row = Row(partial(low_bit, 4, fit=fit), range(2, 17), constant=None, ordered=False)
        yield f"low_bit-{fit}", row._replace(slow=fit == "rounded")


ROWS = dict(rows())


def every(claim=lambda row: True):
    """Parametrizes a test by the names of the rows that claim something."""
    names = [
        pytest.param(name, marks=pytest.mark.slow if row.slow else ())
        for name, row in ROWS.items()
        if claim(row)
    ]
    return pytest.mark.parametrize("name", names)


every_quantizer = every()
every_grid = every(lambda row: row.grid)
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
one_of_each_kind = every(lambda row: any(row is ROWS[name] for name in KINDS))


class Jitted(NamedTuple):
    init: Callable
    apply: Callable
    decode: Callable
    roundtrip: Callable


@cache
def jitted(name):
    """Programs compiled apart from one another, as training and export would."""
    q = ROWS[name].make()

    def roundtrip(params, stats, x):
        codes = q.encode(params, stats, x)
        return codes, q.decode(params, stats, codes)

    return Jitted(
        jax.jit(lambda x: q.init(x, AXES)),
        jax.jit(lambda params, stats, x: q.apply(params, stats, x)),
        jax.jit(lambda params, stats, codes: q.decode(params, stats, codes)),
        jax.jit(roundtrip),
    )


def normal(seed=0, scale=1.0, offset=0.0, dtype="float32"):
    values = (np.random.default_rng(seed).normal(size=SHAPE) + offset) * scale
    return jnp.asarray(values, dtype)


def with_bits(params, bits):
    return {**params, "bits": np.full(params["bits"].shape, bits, np.float32)}


def numbers(x):
    return np.asarray(x.astype(jnp.promote_types(x.dtype, jnp.float32)))


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
    q = ROWS[name].make()

    def everything(x):
        params, stats = q.init(x, AXES)
        moved = q.update(stats, q.measure(params, stats, x)) if q.measure else stats
        key = jax.random.key(0)
        training = q.apply(params, stats, x, train=True, key=key)
        return params, stats, moved, (q.apply(params, stats, x), training)

    with jax.enable_x64(dtype == "float64"):
        params, stats, moved, values = jax.eval_shape(everything, normal(dtype=dtype))
    assert "bits" in params
    assert {leaf.dtype.name for leaf in jax.tree.leaves((params, stats))} == {"float32"}
    assert jax.tree.map(str, moved) == jax.tree.map(str, stats)
    for x_hat in values:
        assert (x_hat.shape, x_hat.dtype.name) == (SHAPE, dtype)


def check_decoding(name, x, params, stats):
    f, row = jitted(name), ROWS[name]
    for bits in row.bits:
        params = with_bits(params, bits)
        codes, decoded = f.roundtrip(params, stats, x)
        decoded = decoded.astype(x.dtype)
        x_hat = f.apply(params, stats, x)
        np.testing.assert_array_equal(numbers(decoded), numbers(x_hat), err_msg=f"{bits} bits")
        if row.grid:
            stored = np.asarray(codes.codes)
            assert stored.min() >= 0 and stored.max() <= 2**bits - 1
        if bits == 0:
            assert not numbers(x_hat).any()


@every_quantizer
@tensors
def test_decoding_the_codes_gives_exactly_what_apply_gives(name, seed, exponent, offset):
    x = normal(seed, 10.0**exponent, offset)
    check_decoding(name, x, *jitted(name).init(x))


def dtypes_and_quantizers():
    """Each is compiled anew for a dtype: by default float64 of one quantizer of each kind."""
    for dtype in ("bfloat16", "float64"):
        for name, row in ROWS.items():
            slow = row.slow or dtype == "bfloat16" or name not in KINDS
            yield pytest.param(name, dtype, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(("name", "dtype"), list(dtypes_and_quantizers()))
def test_decoding_is_exact_in_other_dtypes_too(name, dtype):
    params, stats = jitted(name).init(normal(7, 3.0, 1.0))
    with jax.enable_x64(dtype == "float64"):
        check_decoding(name, normal(7, 3.0, 1.0, dtype), params, stats)


@every(lambda row: row.grid and row.ordered)
@tensors
def test_the_error_is_at_most_half_a_step_inside_the_range(name, seed, exponent, offset):
    f, x = jitted(name), normal(seed, 10.0**exponent, offset)
    params, stats = f.init(x)
    for bits in (n for n in ROWS[name].bits if n in (1, 2, 5, 8, 16)):
        params = with_bits(params, bits)
        codes, _ = f.roundtrip(params, stats, x)
        low, high = (
            numbers(f.decode(params, stats, codes._replace(codes=jnp.full_like(codes.codes, c))))
            for c in (0, 2**bits - 1)
        )
        step = (high - low) / (2**bits - 1)
        error = np.abs(numbers(f.apply(params, stats, x)) - np.clip(numbers(x), low, high))
        rounding = 4 * np.finfo(np.float32).eps * np.abs(np.stack([low, high, x])).max(0)
        assert (error <= 0.51 * step + rounding).all()


@every(lambda row: row.grid and row.steady)
@tensors
def test_quantizing_twice_changes_nothing(name, seed, exponent, offset):
    f, x = jitted(name), normal(seed, 10.0**exponent, offset)
    params, stats = f.init(x)
    for bits in (n for n in ROWS[name].bits if n in (0, 1, 3, 8, 16)):
        once = f.apply(with_bits(params, bits), stats, x)
        twice = f.apply(with_bits(params, bits), stats, once)
        ulp = np.finfo(np.float32).eps * np.abs(numbers(once)).max()
        np.testing.assert_allclose(numbers(twice), numbers(once), rtol=0, atol=4 * ulp)


@every(lambda row: row.constant is not None)
@given(value=st.floats(-1e9, 1e9, width=32).filter(lambda v: v == 0 or abs(v) > 1e-20))
@example(value=0.0)
@example(value=0.1)
def test_a_constant_tensor_comes_out_as_it_is(name, value):
    f, row = jitted(name), ROWS[name]
    x = jnp.full(SHAPE, value if row.negative else abs(value), jnp.float32)
    params, stats = f.init(x)
    if value == 0 and not stats and not row.zero:
        pytest.skip("the clip of a tensor of zeros is 1, and the ends alone do not hold 0")
    fraction = [2.5, 7.3] if "bitlength" in name else []
    # A learned scale is stored for the bits that it was started at.
    for bits in (*row.bits, *fraction) if "lsq" not in name else (4,):
        if bits >= 1:
            x_hat = numbers(f.apply(with_bits(params, bits), stats, x))
            atol = row.constant * np.spacing(np.float32(abs(value)))
            np.testing.assert_allclose(x_hat, numbers(x), rtol=0, atol=atol)


@every_quantizer
def test_gradients_are_finite_and_new_values_compile_nothing(name):
    q, f, traced = ROWS[name].make(), jitted(name), []

    @jax.jit
    def gradient(params, stats, x, weights, key):
        traced.append(1)

        def loss(params, x):
            return jnp.sum(q.apply(params, stats, x, train=True, key=key) * weights)

        return jax.grad(loss, argnums=(0, 1))(params, x)

    bits_to_try = [2.5, 0.0, 0.5, 16.0] if "bitlength" in name else [4.0, 16.0]
    for i, x in enumerate((normal(), jnp.zeros(SHAPE), jnp.full(SHAPE, -2.0, jnp.float32))):
        params, stats = f.init(x)
        for bits in bits_to_try:
            gradients = gradient(with_bits(params, bits), stats, x, normal(1), jax.random.key(i))
            for leaf in jax.tree.leaves(gradients):
                assert np.isfinite(numbers(leaf)).all()
    assert len(traced) == 1


@one_of_each_kind
def test_jit_and_eager_differ_only_at_the_boundary_of_a_code(name):
    q, f, x = ROWS[name].make(), jitted(name), normal(3, 2.0)
    params, stats = f.init(x)
    codes, _ = f.roundtrip(params, stats, x)
    levels, same = q.decode(params, stats, codes), f.decode(params, stats, codes)
    span = float(jnp.max(jnp.abs(x)))
    ulp = np.finfo(np.float32).eps * span
    np.testing.assert_allclose(numbers(levels), numbers(same), rtol=0, atol=4 * ulp)
    assert_equal_but_on_boundaries(x, q.apply(params, stats, x), f.apply(params, stats, x))


def assert_equal_but_on_boundaries(x, a, b):
    """Two roundings of x: within 4 ulp of the range, or neighbours that x lies between."""
    x, a, b = numbers(x), numbers(a), numbers(b)
    span = np.abs(x).max()
    differ = np.abs(a - b) > 4 * np.finfo(np.float32).eps * span
    assert (np.abs(x - (a + b) / 2)[differ] <= 1e-5 * span).all()


@one_of_each_kind
def test_a_stack_of_parameters_under_vmap_equals_a_loop(name):
    q, f, x = ROWS[name].make(), jitted(name), normal(4)
    params, stats = f.init(x)
    stack = [with_bits(params, bits) for bits in (2.0, 4.0, 7.0)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *stack)
    together = jax.jit(jax.vmap(lambda p: q.apply(p, stats, x)))(stacked)
    for member, params in zip(together, stack, strict=True):
        assert_equal_but_on_boundaries(x, member, f.apply(params, stats, x))


@every(lambda row: row.zero and row.grid)
@tensors
def test_zero_is_a_code(name, seed, exponent, offset):
    f, x = jitted(name), normal(seed, 10.0**exponent, offset)
    params, stats = f.init(x)
    for bits in ROWS[name].bits:
        params = with_bits(params, bits)
        _, levels = f.roundtrip(params, stats, jnp.zeros_like(x))
        assert not numbers(levels).any()


@every_grid
def test_an_empty_tensor_is_an_error_that_says_so(name):
    with pytest.raises(ValueError, match=r"at least one element.*\(0, 4\)"):
        jax.eval_shape(lambda x: ROWS[name].make().init(x, AXES), jnp.zeros((0, 4)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform(0), r"`bits` must be in \[1, 16\], got 0"),
        (lambda: uniform(bits=17), r"`bits` must be in \[1, 16\], got 17"),
        (lambda: uniform(float("nan")), r"`bits` must be in \[1, 16\], got nan"),
        (lambda: uniform(3.5), r"`bits` must be an integer, got 3.5"),
        (lambda: lsq(1), r"`bits` must be in \[2, 16\], got 1"),
        (lambda: lsq(0, signed=False), r"`bits` must be in \[1, 16\], got 0"),
        (lambda: lsq(2.5), r"`bits` must be an integer, got 2.5"),
        (lambda: pact(32), r"`bits` must be in \[1, 16\], got 32"),
        (lambda: bitlength(0.5), r"`init` must be in \[1, 16\], got 0.5"),
        (lambda: bitlength(9.0, max_bits=8), r"`init` must be in \[1, 8\], got 9"),
        (lambda: bitlength(min_bits=-1), r"`min_bits` must be in \[0, 16\], got -1"),
        (lambda: bitlength(max_bits=17), r"`max_bits` must be in \[1, 16\], got 17"),
        (lambda: bitlength(mode="soft"), r"`mode` must be one of \['blend', .*'soft'"),
        (lambda: bitlength(range="mse"), r"`range` must be one of \['minmax', 'learned'\]"),
        (lambda: uniform(range="max"), r"`range` must be one of .* got 'max'"),
        (lambda: uniform(granularity="layer"), r"`granularity` must be one of"),
        (lambda: uniform(granularity="per_group"), r"`group_size` must be 1 or more"),
        (lambda: lsq(group_size=4), r"`group_size` goes with granularity='per_group'"),
        (lambda: pact(init_clip=-1.0), r"`init_clip` must be 'mse' or a number above 0, got -1"),
        (lambda: uniform(decay=1.5), r"`decay` must be in \[0, 1\], got 1.5"),
        (lambda: bitplane(0), r"`bits` must be in \[1, 16\], got 0"),
        (lambda: bitplane(17), r"`bits` must be in \[1, 16\], got 17"),
        (lambda: bitplane(2.5), r"`bits` must be an integer, got 2.5"),
        (lambda: bitplane(1, signed=True), r"`bits` must be in \[2, 16\], got 1"),
        (lambda: bitplane(mode="weak"), r"`mode` must be one of \['strong', 'faithful'\], got 'w"),
        (lambda: bitplane(depth=17), r"`depth` must be an integer in \[1, 16\], got 17"),
        (lambda: bitplane(4, depth=6, shift=3), r"`depth` must be at least .* 4 \+ 3, .* depth=6"),
        (lambda: bitplane(wrap=True), r"`wrap` goes with mode='faithful', not 'strong'"),
    ],
)
def test_an_argument_out_of_bounds_is_an_error_with_its_bound_and_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()
