"""Learned bitlengths: the blend, its other modes, zero bits and the rounding that suits it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.quantizers import Axes, bitlength, uniform
from bitjax.quantizers.bitlength import MODES, blend_quant
from bitjax.quantizers.forms import ENDS
from bitjax.quantizers.grid import Grid

X = jnp.asarray(np.random.default_rng(0).normal(size=(50, 4)), jnp.float32)


def at(q, bits, x=X, **changes):
    """x quantized at the given bits, out of training, compiled."""

    @jax.jit
    def quantize(bits, x):
        params, stats = q.init(x, Axes())
        params = {**params, "bits": jnp.full_like(params["bits"], bits), **changes}
        return q.apply(params, stats, x)

    return quantize(bits, x)


def integer(bits, x=X, zero=False):
    return at(uniform(bits, zero_on_grid=zero), bits, x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("zero", [False, True])
def test_at_whole_bits_every_mode_is_the_integer_quantizer_bit_for_bit(mode, zero):
    q, fixed = bitlength(mode=mode, zero_on_grid=zero), uniform(zero_on_grid=zero)
    params, stats = jax.jit(lambda x: q.init(x, Axes()))(X)
    learned, whole = jax.jit(q.apply), jax.jit(fixed.apply)
    for n in map(np.float32, (1, 2, 5, 8, 16)):
        x_hat = learned({**params, "bits": n}, stats, X)
        np.testing.assert_array_equal(x_hat, whole({"bits": n}, stats, X))


def test_between_whole_bits_the_value_is_the_mix_of_both_neighbours():
    expected = 0.3 * integer(3) + 0.7 * integer(4)
    np.testing.assert_allclose(at(bitlength(), 3.7), expected, atol=1e-6)


def test_a_blend_is_continuous_in_the_bits():
    q = bitlength()
    for n in (2.0, 5.0, 8.0):
        np.testing.assert_allclose(at(q, n - 1e-5), at(q, n), atol=1e-4)


@pytest.mark.parametrize("zero", [False, True])
def test_zero_bits_are_zero_and_below_one_bit_the_value_fades_out(zero):
    q = bitlength(min_bits=0.0, zero_on_grid=zero)
    assert not np.asarray(at(q, 0.0)).any()
    one = at(q, 1.0)
    assert np.asarray(one).any()
    for n in (0.1, 0.5, 0.9):
        np.testing.assert_allclose(at(q, n), n * one, atol=1e-6)


def test_zero_bits_still_have_a_slope_towards_the_first():
    q = bitlength(min_bits=0.0)
    params, stats = q.init(X, Axes())
    params = {**params, "bits": jnp.float32(0.0)}
    slope = jax.jit(jax.grad(lambda p: jnp.sum(X * q.apply(p, stats, X))))(params)["bits"]
    assert float(slope) == pytest.approx(float(jnp.sum(X * at(q, 1.0))), rel=1e-5)


def test_bits_beyond_their_limits_count_as_the_limits_and_keep_their_gradient():
    q = bitlength(4.0, min_bits=2, max_bits=6)
    np.testing.assert_array_equal(at(q, 9.3), at(q, 6.0))
    np.testing.assert_array_equal(at(q, -1.0), at(q, 2.0))
    params, stats = q.init(X, Axes())
    slope = jax.grad(lambda p: jnp.sum(X * q.apply(p, stats, X)))
    assert float(slope({**params, "bits": jnp.float32(9.3)})["bits"]) != 0


def test_sharp_enough_a_blend_is_the_nearest_integer():
    q = bitlength(mode="sharpen")
    for n, nearest in ((3.4, 3), (3.6, 4), (2.01, 2), (7.99, 8)):
        x_hat = at(q, n, sharpness=jnp.float32(1e4))
        np.testing.assert_array_equal(x_hat, integer(nearest))
    np.testing.assert_array_equal(at(q, 3.4), at(bitlength(), 3.4))  # 1 is the paper's blend


def test_sharpening_multiplies_the_slope_inside_the_ramp_and_leaves_it_outside():
    grid = Grid(X.min(), X.max() - X.min())
    rise = float(jnp.sum(X * (integer(4) - integer(3))))

    def slope(n):
        def total(n):
            return jnp.sum(X * blend_quant(X, grid, n, jnp.float32(4.0), ENDS))

        return float(jax.grad(total)(jnp.float32(n)))

    assert slope(3.5) == pytest.approx(4 * rise, rel=1e-3)
    assert slope(3.1) == pytest.approx(rise, rel=1e-3)


def test_a_sample_is_one_of_both_grids_as_often_as_the_fraction_says():
    q = bitlength(mode="sample", granularity="per_channel")
    params, stats = q.init(X, Axes())
    params = {**params, "bits": jnp.array([[3.25, 3.25, 3.8, 3.0]])}

    @jax.jit
    def draw(key):
        return q.apply(params, stats, X, train=True, key=key)

    draws = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), 1000)))
    low, high = (
        np.asarray(at(bitlength(granularity="per_channel"), bits, X)) for bits in (3.0, 4.0)
    )
    is_low, is_high = (draws == low).all(1), (draws == high).all(1)  # [draw, channel]
    assert (is_low | is_high).all()
    np.testing.assert_allclose(is_high.mean(0), [0.25, 0.25, 0.8, 0.0], atol=0.05)
    blended = np.asarray(jax.jit(bitlength(granularity="per_channel").apply)(params, stats, X))
    spread = np.abs(high - low).max()
    np.testing.assert_allclose(draws.mean(0), blended, atol=0.06 * spread)


def test_a_sample_has_the_gradient_of_the_blend():
    sample, blend = bitlength(3.3, mode="sample"), bitlength(3.3)
    params, stats = sample.init(X, Axes())

    def gradients(q):
        def loss(p, x):
            return jnp.sum(X * q.apply(p, stats, x, train=True, key=jax.random.key(0)))

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, X)

    jax.tree.map(np.testing.assert_array_equal, gradients(sample), gradients(blend))


def test_sampling_without_a_key_is_an_error_that_says_where_to_pass_it():
    q = bitlength(mode="sample")
    params, stats = q.init(X, Axes())
    with pytest.raises(ValueError, match=r"pass `key`, or rngs=\{'quant': key\}"):
        q.apply(params, stats, X, train=True)
    q.apply(params, stats, X)  # outside training nothing is drawn


@pytest.mark.parametrize("n", [2.0, 3.3, 4.6])
def test_the_ste_gradient_is_the_analytic_one(n):
    """dn = -ln2 2^m / (2^m - 1) sum g (Q - V), at the m = round(n) bits that are used."""
    q = bitlength(mode="ste")
    params, stats = q.init(X, Axes())
    g = jnp.cos(jnp.arange(X.size)).reshape(X.shape)
    slope = jax.grad(lambda p: jnp.sum(g * q.apply(p, stats, X)))(
        {**params, "bits": jnp.float32(n)}
    )["bits"]
    m = round(n)
    expected = -np.log(2) * 2**m / (2**m - 1) * np.sum(g * (integer(m) - X))
    assert float(slope) == pytest.approx(float(expected), rel=1e-4)


def test_a_learned_range_starts_at_least_squared_error_for_its_bits():
    widths = []
    for bits in (2, 4, 8):
        init = bitlength(float(bits), range="learned").init
        params, _ = jax.jit(lambda x, init=init: init(x, Axes()))(X)
        widths.append(float(jnp.exp(params["log_clip_max"])))
    assert widths[0] < widths[1] < widths[2] <= 1.001 * float(jnp.max(jnp.abs(X)))
    full = jnp.mean((at(bitlength(2.0), 2.0) - X) ** 2)
    assert float(jnp.mean((at(bitlength(2.0, range="learned"), 2.0) - X) ** 2)) < 0.7 * float(full)


def test_a_range_learned_by_descent_lowers_the_error():
    q = bitlength(3.0, range="learned", clip_bits=8)  # starts too wide for 3 bits
    params, stats = q.init(X, Axes())

    @jax.jit
    def loss(log_clip):
        return jnp.mean((q.apply({**params, "log_clip_max": log_clip}, stats, X) - X) ** 2)

    step = jax.jit(lambda c: c - 0.2 * jax.grad(loss)(c))
    clip = start = params["log_clip_max"]
    for _ in range(100):
        clip = step(clip)
    assert float(loss(clip)) < 0.9 * float(loss(start))


def test_nearest_is_the_best_integer_where_descent_ends_and_up_is_often_one_too_many():
    """On a rectified Gaussian, for 200 prices per bit, descending from 8 bits.

    The slope of the squared error at half a bit is the secant between both integers.
    """
    x = jnp.maximum(jnp.asarray(np.random.default_rng(0).normal(size=4096), jnp.float32), 0.0)
    grid = Grid(x.min(), x.max() - x.min())

    @jax.jit
    @jax.vmap
    def error_and_slope(n):
        def error(n):
            return jnp.mean((blend_quant(x, grid, n, jnp.float32(1.0), ENDS) - x) ** 2)

        return jax.value_and_grad(error)(n)

    per_bit = 200
    points = np.arange(per_bit, 8 * per_bit + 1) / per_bit
    errors, slopes = map(np.asarray, error_and_slope(jnp.asarray(points, jnp.float32)))
    whole = errors[::per_bit]  # 1 to 8 bits
    prices = np.geomspace(1.2 * (whole[6] - whole[7]), 0.8 * (whole[1] - whole[2]), 200)
    # Descent from above stops at the highest point whose slope no longer pays for going down.
    ends = np.array([points[np.nonzero(slopes + price <= 0)[0].max()] for price in prices])
    best = 1 + np.argmin(whole + prices[:, None] * np.arange(1, 9), axis=1)
    assert (np.abs(ends - best) <= 0.5 + 1 / per_bit).all()  # of which 1 / per_bit is the walk's
    up = np.ceil(ends) - best
    assert set(up) <= {0.0, 1.0}
    assert 0.6 <= up.mean() <= 0.75
