"""Scales that are powers of two and codes with opposites, against arithmetic by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.quantizers import Axes, bitlength, lsq, uniform
from bitjax.quantizers.forms import power_of_two

X = jnp.asarray(np.random.default_rng(0).normal(size=(64, 4)), jnp.float32)
ROUNDED = {"scale": "power_of_two"}


def told(q, x=X):
    """`(numbers, integers, levels)` of a tensor under its own range."""
    params, stats = q.init(x, Axes())
    integers = q.integers(params, stats, x)
    return q.numbers(params, stats), np.asarray(integers), np.asarray(q.apply(params, stats, x))


@pytest.mark.parametrize("rounded", ["up", "nearest"])
def test_a_scale_becomes_a_power_of_two_up_or_the_nearest_in_the_exponent(rounded):
    given = np.random.default_rng(0).uniform(-60, 60, 500)
    scales = np.exp2(np.concatenate([given, np.arange(-60, 60)])).astype(np.float32)
    power, inverse = jax.jit(lambda s: power_of_two(s, rounded))(scales)
    whole = np.ceil if rounded == "up" else np.rint
    np.testing.assert_array_equal(power, np.exp2(whole(np.log2(scales.astype(np.float64)))))
    np.testing.assert_array_equal(inverse, 1.0 / np.asarray(power, np.float64))
    assert [float(a) for a in power_of_two(jnp.float32(0.0), rounded)] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "first"),
    [({"signed": True}, -8), ({"signed": True, "narrow": True}, -7), ({"signed": False}, 0)],
)
def test_a_rounded_range_covers_what_it_did_with_the_least_power_of_two(options, first):
    numbers, integers, levels = told(uniform(4, **options, **ROUNDED))
    assert (float(numbers.first), float(numbers.last)) == (first, first + 15 - (first == -7))
    free = float(told(uniform(4, **options))[0].scale)
    scale = float(numbers.scale)
    assert scale == 2.0 ** np.ceil(np.log2(free)) and float(numbers.rate) == 1.0 / scale
    np.testing.assert_array_equal(levels, integers * scale)


def test_a_fitted_scale_is_the_power_of_two_of_least_squared_error():
    for bits, signed in ((3, True), (8, True), (4, False)):
        x = X if signed else jnp.abs(X)
        first, last = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)

        scales = np.exp2(np.arange(-9.0, 2.0))
        levels = [s * np.clip(np.rint(np.asarray(x) / s), first, last) for s in scales]
        best = scales[np.argmin([np.mean((level - x) ** 2) for level in levels])]
        options = {"signed": signed, **ROUNDED}
        assert float(told(uniform(bits, range="mse", **options), x)[0].scale) == best
        assert float(lsq(bits, **options).init(x, Axes())[0]["scale"]) == best
        learned = bitlength(bits, range="learned", mode="ste", zero_on_grid=True, **options)
        assert float(told(learned, x)[0].scale) == best


def test_the_average_of_fitted_ranges_is_the_scale_of_most_batches():
    q = uniform(8, range="mse", signed=True, decay=0.75, **ROUNDED)
    params, stats = q.init(X, Axes())
    for factor in (1.0, 1.0, 2.0):
        stats = q.update(stats, q.measure(params, stats, factor * X))
    assert float(q.numbers(params, stats).scale) == float(told(q)[0].scale)


@pytest.mark.parametrize("narrow", [False, True])
def test_gradients_pass_the_rounding_of_a_scale_as_if_it_were_not_there(narrow):
    """LSQ's round(v) - v inside and the end outside, with v = x / the rounded scale."""
    x = np.array([0.3, -0.1, 0.8, 5.0, -9.0], np.float32)
    q = lsq(3, narrow=narrow, **ROUNDED)
    params = {"bits": jnp.float32(3.0), "scale": jnp.float32(0.6)}  # 0.5 in use
    slopes = jax.jit(jax.jacrev(lambda p, x: q.apply(p, {}, x), argnums=(0, 1)))
    d_params, d_x = slopes(params, x)
    v, first, last = x / 0.5, -3.0 if narrow else -4.0, 3.0
    inside = (v >= first) & (v <= last)
    expected = np.where(inside, np.rint(v) - v, np.clip(v, first, last)) / np.sqrt(x.size * last)
    np.testing.assert_allclose(d_params["scale"], expected, rtol=1e-5)
    np.testing.assert_array_equal(d_x, np.diag(inside))


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_a_narrow_range_has_both_its_ends_as_levels(bits):
    x = jnp.array([-1.7, 0.3, 1.7])
    numbers, integers, levels = told(uniform(bits, signed=True, narrow=True), x)
    last = 2 ** (bits - 1) - 1
    assert (float(numbers.first), float(numbers.last)) == (-last, last)
    np.testing.assert_array_equal(levels[[0, 2]], x[jnp.array([0, 2])])
    assert integers[0] == -integers[2] == -last
    constant = told(uniform(bits, signed=True, narrow=True), jnp.full((3,), -0.7))
    assert float(constant[0].first) == -last and (constant[2] == np.float32(-0.7)).all()


def test_a_frozen_bitlength_keeps_its_scales_and_codes_and_a_record_says_only_what_is_new():
    q = bitlength(4.0, zero_on_grid=True, signed=True, min_bits=2, narrow=True, **ROUNDED)
    assert q.frozen().form == q.form | {"mode": "fixed"}
    assert q.form["narrow"] is True and q.form["scale"] == "power_of_two"
    for plain in (bitlength(), uniform(), lsq()):
        assert not {"scale", "narrow"} & {*plain.form}
        assert not plain.traits.power_of_two and not plain.traits.narrow


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform(scale="pot"), r"`scale` must be one of \['free', 'power_of_two'\]"),
        (lambda: uniform(narrow=True), "`narrow` goes with signed=True, not None"),
        (lambda: lsq(signed=False, narrow=True), "`narrow` goes with signed=True, not False"),
        (lambda: uniform(1, signed=True, narrow=True), "`narrow` goes with 2 bits or more, not 1"),
        (lambda: bitlength(**ROUNDED), "'power_of_two' goes with zero_on_grid=True, not False"),
        (
            lambda: bitlength(signed=True, zero_on_grid=True, narrow=True),
            "`narrow` goes with 2 bits or more, not 1: 1 bit",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()
