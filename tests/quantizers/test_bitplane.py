"""Bit planes against sums over planes, finite differences, and what each defect costs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import bitjax as bj
from bitjax.quantizers import Axes, Codes, bitplane
from bitjax.quantizers.bitplane import keep_planes
from bitjax.quantizers.plane_grid import (
    Kept,
    _sums_by_code,
    _sums_by_plane,
    nearest,
    plane_grid,
    plane_quant,
)
from bitjax.quantizers.planes import from_planes, level_table, powers_of_two, to_planes

RNG = np.random.default_rng(0)
HALF_NORMAL = np.abs(RNG.normal(size=(4, 500))).astype(np.float32)
NORMAL = RNG.normal(size=(4, 500)).astype(np.float32)
COEFFICIENTS = np.array([0.9, 2.2, 3.7, 8.5, 15.0], np.float32)


def sqnr(x, x_hat):
    return float(bj.sqnr(jnp.asarray(x), jnp.asarray(x_hat)))


PROGRAMS = {}
TO_PLANES, FROM_PLANES = jax.jit(to_planes, static_argnums=1), jax.jit(from_planes)


def quantize(q, x, **changes):
    """x under the parameters of `q.init`, some of them changed; in one compiled program."""
    params, stats = q.init(jnp.asarray(x), Axes())
    params = {**params, **{name: jnp.asarray(v, jnp.float32) for name, v in changes.items()}}
    # Quantizers of one form differ in what `init` gives alone, see the test of what compiles.
    form = {name: value for name, value in q.form.items() if name not in ("bits", "range")}
    program = PROGRAMS.setdefault((q.name, *form.items()), jax.jit(q.apply))
    return np.asarray(program(params, stats, x)), params


@given(data=st.data(), depth=st.integers(1, 16))
def test_codes_come_back_from_their_planes(data, depth):
    codes = data.draw(
        hnp.arrays(np.int32, (3, 2), elements=st.integers(0, 2**depth - 1)), label="codes"
    )
    planes = TO_PLANES(codes, depth)
    assert planes.shape == (depth, 3, 2) and set(np.unique(planes)) <= {0, 1}
    np.testing.assert_array_equal(planes[0], codes % 2)
    np.testing.assert_array_equal(FROM_PLANES(planes), codes)


@pytest.mark.parametrize("depth", [0, 17])
def test_a_depth_out_of_bounds_is_one_clear_line(depth):
    for function in (lambda d: to_planes(jnp.zeros(2, jnp.int32), d), powers_of_two):
        with pytest.raises(ValueError, match=rf"`depth` must be .* \[1, 16\], got {depth}\."):
            function(depth)
    with pytest.raises(ValueError, match=r"`planes.shape\[0\]` must be .* \[1, 16\]"):
        from_planes(jnp.zeros((depth, 2), jnp.int32))


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_the_table_of_levels_is_the_sum_of_binary_reconstructions(depth):
    coefficients = COEFFICIENTS[:depth]
    planes = np.asarray(to_planes(jnp.arange(2**depth), depth))
    slow = sum(a * plane for a, plane in zip(coefficients, planes, strict=True))
    np.testing.assert_allclose(level_table(jnp.asarray(coefficients)), slow, rtol=1e-6)


def test_powers_of_two_make_a_code_its_own_level_exactly():
    np.testing.assert_array_equal(level_table(powers_of_two(16)), np.arange(2**16))


@pytest.mark.parametrize("coefficients", ["power_of_two", "free"])
@pytest.mark.parametrize("depth", [1, pytest.param(3, marks=pytest.mark.slow), 8])
def test_with_all_planes_the_result_is_the_uniform_grid_bit_for_bit(depth, coefficients):
    q = bitplane(depth, depth=depth, coefficients=coefficients)
    x_hat, params = quantize(q, HALF_NORMAL)
    codes = np.asarray(jax.jit(q.encode)(params, {}, HALF_NORMAL).codes)
    assert codes.max() == 2**depth - 1
    np.testing.assert_array_equal(x_hat, params["scale"] * codes.astype(np.float32))
    away = np.abs(HALF_NORMAL / params["scale"] % 1.0 - 0.5) > 1e-4
    by_hand = np.clip(np.rint(HALF_NORMAL / params["scale"]), 0, 2**depth - 1)
    np.testing.assert_array_equal(codes[away], by_hand[away])


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("bits", "shift"),
    [(3, 5), (9, 0), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((4, 2), (2, 0)))],
)
def test_a_table_of_powers_of_two_changes_no_bit_of_the_result(bits, shift, signed):
    x = NORMAL if signed else HALF_NORMAL
    forms = (bitplane(4, signed=signed, coefficients=c) for c in ("power_of_two", "free"))
    direct, table = (quantize(q, x, bits=bits, shift=shift)[0] for q in forms)
    np.testing.assert_array_equal(table, direct)
    assert len(np.unique(direct)) > 1


@pytest.mark.parametrize("signed", [False, True])
def test_kept_planes_are_those_of_the_rounded_and_saturated_code(signed):
    x, scale, bits, shift = (NORMAL if signed else HALF_NORMAL), np.float32(0.013), 3, 4
    kept = Kept(jnp.float32(bits + signed), jnp.float32(shift))
    x_hat = np.asarray(plane_quant(jnp.asarray(x), scale, kept, 8, signed))
    code = np.clip(np.rint(np.abs(x) / scale / 2**shift), 0, 2**bits - 1)
    np.testing.assert_allclose(x_hat, np.sign(x) * scale * 2**shift * code, rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_a_sign_plane_is_counted_and_its_error_is_half_a_step(bits):
    q = bitplane(bits, signed=True, depth=bits - 1, range="absmax")
    x_hat, params = quantize(q, NORMAL)
    codes = np.asarray(q.encode(params, {}, NORMAL).codes)
    assert 2 ** (bits - 1) < codes.max() <= 2**bits - 1 and codes.min() >= 0
    magnitude, negative = codes % 2 ** (bits - 1), codes >= 2 ** (bits - 1)
    assert (NORMAL[negative] < 0).all() and (magnitude[negative] > 0).all()
    assert (NORMAL[~negative & (magnitude > 0)] > 0).all()
    assert np.abs(x_hat - NORMAL).max() <= 0.5001 * params["scale"]
    fewer = q.encode({**params, "bits": jnp.float32(bits - 1)}, {}, NORMAL).codes
    assert fewer.max() <= 2 ** (bits - 1) - 1


@pytest.mark.parametrize("kind", ["absmax", "percentile", "mse"])
@pytest.mark.parametrize("scale", ["learned", "observed"])
@pytest.mark.parametrize("coefficients", ["power_of_two", "free"])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_the_largest_element_never_becomes_0_and_0_always_does(kind, scale, coefficients, bits):
    q = bitplane(bits, range=kind, scale=scale, coefficients=coefficients)
    x = HALF_NORMAL.copy()
    x[0, :7] = 0.0
    x_hat, _ = quantize(q, x)
    assert x_hat.reshape(-1)[x.argmax()] == x_hat.max() > 0
    assert not x_hat[0, :7].any()


def drawn(signed):
    x = np.array([-1.9, -0.83, -0.21, 0.0, 0.17, 0.4, 1.12, 2.7, 30.0])
    return x if signed else np.abs(x)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("bits", "shift"), [(5, 0), (3, 1)])
def test_the_gradient_to_coefficients_is_that_of_finite_differences(signed, bits, shift):
    """The codes are held: x_hat is linear in the coefficients, so that any step will do."""
    x, scale, g = drawn(signed), 0.11, np.arange(1.0, 10.0)
    with jax.enable_x64(True):
        kept = Kept(jnp.float64(bits + signed), jnp.float64(shift), jnp.float64(COEFFICIENTS))
        to = plane_grid(jnp.float64(scale), kept, 5, signed, x.shape)
        code = np.asarray(nearest(jnp.asarray(x), to)).astype(int)

        @jax.jit
        def gradient(coefficients):
            held = kept._replace(coefficients=coefficients)
            return jax.grad(
                lambda k: jnp.sum(g * plane_quant(jnp.asarray(x), jnp.float64(scale), k, 5, signed))
            )(held).coefficients

        found = np.asarray(gradient(kept.coefficients))

    def loss(coefficients):
        level = np.zeros_like(x)
        for i, coefficient in enumerate(coefficients):
            level += coefficient * (np.abs(code) << shift >> i & 1)
        return np.sum(g * scale * np.sign(code) * level)

    for i, step in enumerate(np.eye(5)):
        expected = loss(COEFFICIENTS + 0.5 * step) - loss(COEFFICIENTS - 0.5 * step)
        assert found[i] == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert np.any(found != 0)


def test_a_pass_per_plane_and_a_sum_per_code_give_the_same():
    x, place = jnp.asarray(NORMAL), jnp.asarray(RNG.integers(0, 32, NORMAL.shape))
    fast, slow = (jax.jit(f)(x, place, jnp.zeros(5)) for f in (_sums_by_code, _sums_by_plane))
    np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-3)
    planes = np.asarray(to_planes(place, 5), np.float64)
    np.testing.assert_allclose(slow, (planes * NORMAL).sum((1, 2)), rtol=1e-4, atol=1e-3)


def gradients(q, params, stats, x, g):
    def loss(params, x):
        return jnp.sum(g * q.apply(params, stats, x, train=True))

    return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, jnp.asarray(x))


@pytest.mark.parametrize("coefficients", ["power_of_two", "free"])
@pytest.mark.parametrize("signed", [False, True])
def test_gradients_to_x_and_scale_follow_the_rule_of_lsq(signed, coefficients):
    """Esser et al., arXiv 1902.08153, eq. 3, for a step of scale * 2^shift."""
    q = bitplane(
        2 + signed, depth=5, shift=1, signed=signed, coefficients=coefficients, normalized=False
    )
    x, scale, g = drawn(signed).astype(np.float32), 0.37, np.arange(1.0, 10.0, dtype=np.float32)
    params = {**q.init(jnp.asarray(x), Axes())[0], "scale": jnp.float32(scale)}
    if coefficients == "free":
        params["coefficients"] = jnp.asarray(COEFFICIENTS)
    d_params, d_x = gradients(q, params, {}, x, g)
    inside = np.abs(x) <= 2 * 3 * scale
    assert inside.any() and not inside.all()
    np.testing.assert_array_equal(d_x, g * inside)
    x_hat = np.asarray(q.apply(params, {}, x))
    to_scale = np.where(inside, (x_hat - x) / scale, x_hat / scale)
    assert float(d_params["scale"]) == pytest.approx(np.sum(g * to_scale), rel=1e-5)
    assert not d_params["bits"].any() and not d_params["shift"].any()


def test_x_below_0_gets_no_gradient_without_a_sign():
    q = bitplane(3)
    params, stats = q.init(jnp.asarray(HALF_NORMAL), Axes())
    _, d_x = gradients(q, params, stats, np.array([-0.5, 0.0, 0.5], np.float32), 1.0)
    assert d_x.tolist() == [0.0, 1.0, 1.0]


def test_normalized_gradients_are_divided_by_the_root_of_elements_times_planes_or_levels():
    plain, normalized = (bitplane(4, coefficients="free", normalized=n) for n in (False, True))
    params, stats = plain.init(jnp.asarray(HALF_NORMAL), Axes())
    wanted, _ = gradients(plain, params, stats, HALF_NORMAL, NORMAL)
    found, _ = gradients(normalized, params, stats, HALF_NORMAL, NORMAL)
    n = HALF_NORMAL.size
    for name, divisor in (("coefficients", np.sqrt(n * 4)), ("scale", np.sqrt(n * 15))):
        np.testing.assert_allclose(found[name], wanted[name] / divisor, rtol=1e-5)


def test_an_observed_range_is_a_moving_average_that_gets_no_gradient():
    q = bitplane(4, scale="observed", range="absmax")
    assert q.measure is not None and q.update is not None
    params, stats = q.init(jnp.asarray(HALF_NORMAL), Axes())
    for largest in (2.0, 4.0):
        stats = q.update(stats, q.measure(params, stats, jnp.array([0.0, largest])))
    assert float(stats["clip_max"]) == pytest.approx(0.99 * 2 + 0.01 * 4)
    top = q.apply(params, stats, jnp.array([99.0]))
    assert float(top[0]) == pytest.approx(2.02 / 255 * 16 * 15)
    swapped = q._replace(apply=lambda stats, params, x, train: q.apply(params, stats, x))
    d_stats, _ = gradients(swapped, stats, params, HALF_NORMAL, 1.0)
    assert not any(leaf.any() for leaf in jax.tree.leaves(d_stats))


@pytest.mark.parametrize("bits", [2, 4, 6])
@pytest.mark.parametrize("draw", ["half-normal", "exponential"])
def test_a_scale_by_squared_error_is_as_good_as_the_best_of_many(bits, draw):
    rng = np.random.default_rng(1)
    x = np.abs(rng.normal(size=20_000)) if draw == "half-normal" else rng.exponential(size=20_000)

    def error(scale):
        return np.mean((scale * np.clip(np.rint(x / scale), 0, 2**bits - 1) - x) ** 2)

    best = min(error(top / (2**bits - 1)) for top in np.linspace(0.05, 1.0, 400) * x.max())
    x_hat, _ = quantize(bitplane(bits), x.astype(np.float32))
    assert np.mean((x_hat - x) ** 2) <= 1.03 * best


def test_new_bits_shifts_scales_and_coefficients_compile_nothing():
    for mode in ("strong", "faithful"):
        q, traced = bitplane(4, mode=mode, coefficients="free"), []
        params, stats = q.init(jnp.asarray(HALF_NORMAL), Axes())

        @jax.jit
        def gradient(params, q=q, stats=stats, traced=traced):
            traced.append(1)

            def loss(p):
                return jnp.sum(q.apply(p, stats, HALF_NORMAL) ** 2)

            return jax.value_and_grad(loss)(params)

        losses = {
            float(gradient({**params, "bits": np.float32(b), "shift": np.float32(j), **others})[0])
            for b, j in ((4, 4), (3, 5), (8, 0), (1, 2))
            for others in ({}, {"coefficients": params["coefficients"] * 1.1})
        }
        assert (len(losses), len(traced)) == (8, 1)


def full_scale(draw, peak, size=200_000):
    """One example of unit root mean square whose largest magnitude is `peak`."""
    x = np.random.default_rng(2).normal(size=(1, size))
    x = np.abs(x) if draw == "half-normal" else x
    x = np.clip(x / np.sqrt(np.mean(x**2)), -peak, peak)
    x[0, 0] = peak
    return x.astype(np.float32)


@pytest.mark.parametrize("n", [5, 6])
def test_dither_costs_3_db(n):
    """Error of rounding plus as much of the noise: step^2 / 12 twice, step = peak / 2^(n - 1).

    By that formula 27.4 and 24.4 dB at n = 6 for a peak of 4.73, the largest of 4e5 normal numbers.
    """
    x = full_scale("normal", 4.73)
    rounding = 10 * np.log10(12 * 4.0 ** (n - 1) / 4.73**2)
    found = {}
    for dither in (False, True):
        q = bitplane(n, mode="faithful", signed=True, depth=n - 1, dither=dither)
        params, stats = q.init(jnp.asarray(x), Axes())
        x_hat = q.apply(params, stats, x, train=True, key=jax.random.key(0))
        found[dither] = sqnr(x, x_hat)
    assert found[False] == pytest.approx(rounding, abs=0.3)
    assert found[True] == pytest.approx(rounding - 10 * np.log10(2), abs=0.3)
    assert found[False] - found[True] == pytest.approx(3.01, abs=0.1)


@pytest.mark.parametrize("bits", [4, 5, 6])
def test_cutting_low_planes_off_costs_6_db_against_rounding(bits):
    """An error of step^2 / 3 where rounding makes step^2 / 12; less where the code is short."""
    x = full_scale("half-normal", 4.73)
    rounded, cut = (
        sqnr(x, quantize(bitplane(bits, mode="faithful", depth=12, truncate=t), x)[0])
        for t in (False, True)
    )
    assert rounded - cut == pytest.approx(20 * np.log10(2), abs=0.35)


def dropped(by):
    """Parameters under which the highest of 4 planes is not kept."""
    if by == "window":
        return {"bits": 3, "shift": 0}
    return {"coefficients": [1, 2, 4, 0]}


@pytest.mark.parametrize("by", ["window", "coefficient"])
def test_dropping_a_high_plane_wraps_only_where_it_is_asked_to(by):
    x = np.array([[3.0, 7.0, 9.0, 12.0, 16.0]], np.float32)  # 16 is 2^depth: its scale is 1
    form = {"depth": 4, "coefficients": "free"}
    for truncate in (False, True):
        faithful = {"mode": "faithful", "truncate": truncate, **form}
        saturated, _ = quantize(bitplane(4, **faithful), x, **dropped(by))
        assert saturated.tolist() == [[3, 7, 7, 7, 7]]
        wrapped, _ = quantize(bitplane(4, wrap=True, **faithful), x, **dropped(by))
        assert wrapped.tolist() == [[3, 7, 1, 4, 0]]
    strong, _ = quantize(bitplane(4, **form), x, **dropped(by), scale=1.0)
    assert strong.tolist() == [[3, 7, 7, 7, 7]]


def test_the_largest_element_becomes_0_where_it_wraps_and_only_there():
    x_hat, _ = quantize(bitplane(4, mode="faithful", depth=4, wrap=True), HALF_NORMAL)
    rows, largest = np.arange(4), HALF_NORMAL.argmax(axis=1)
    assert not x_hat[rows, largest].any()
    x_hat, _ = quantize(bitplane(4, mode="faithful", depth=4), HALF_NORMAL)
    assert (x_hat[rows, largest] == x_hat.max(axis=1)).all()


def test_a_plane_inside_the_window_whose_coefficient_is_0_adds_nothing():
    q = bitplane(3, mode="faithful", depth=3, coefficients="free", truncate=True)
    x = np.array([[1.0, 2.0, 3.0, 7.0, 8.0]], np.float32)
    x_hat, _ = quantize(q, x, coefficients=[1, 0, 4])
    assert x_hat.tolist() == [[1, 0, 1, 5, 5]]


def test_the_faithful_mode_scales_each_example_as_if_it_were_alone():
    q = bitplane(5, mode="faithful")
    x = HALF_NORMAL.reshape(4, 10, 50) * np.array([1.0, 9.0, 0.1, 0.0], np.float32)[:, None, None]
    x_hat, params = quantize(q, x)
    codes = q.encode(params, {}, jnp.asarray(x))
    assert codes.side["scale"].shape == (4, 1, 1)
    for row, alone in zip(x_hat, x, strict=True):
        np.testing.assert_array_equal(row, quantize(q, alone[None])[0][0])
    assert np.abs(x_hat[1]).max() > 50 * np.abs(x_hat[2]).max() and not x_hat[3].any()


def test_the_faithful_gradient_is_1_and_its_coefficients_get_none():
    q = bitplane(3, mode="faithful", coefficients="free", signed=True)
    params, stats = q.init(jnp.asarray(NORMAL), Axes())
    d_params, d_x = gradients(q, params, stats, NORMAL, NORMAL)
    np.testing.assert_array_equal(d_x, NORMAL)
    assert not any(leaf.any() for leaf in d_params.values())
    q = bitplane(3, mode="faithful")
    _, d_x = gradients(q, params, stats, NORMAL, 1.0)
    np.testing.assert_array_equal(d_x, NORMAL >= 0)


def test_evaluation_repeats_even_where_training_dithers():
    q = bitplane(4, mode="faithful", dither=True)
    params, stats = q.init(jnp.asarray(HALF_NORMAL), Axes())
    keys = jax.random.split(jax.random.key(0))
    draws = [q.apply(params, stats, HALF_NORMAL, train=True, key=key) for key in keys]
    assert (draws[0] != draws[1]).any()
    evaluated = [q.apply(params, stats, HALF_NORMAL, key=key) for key in (*keys, None)]
    plain, _ = quantize(bitplane(4, mode="faithful"), HALF_NORMAL)
    for x_hat in evaluated:
        np.testing.assert_array_equal(x_hat, plain)
    with pytest.raises(ValueError, match="pass `key`, or rngs="):
        q.apply(params, stats, HALF_NORMAL, train=True)


@pytest.mark.parametrize("mode", ["strong", "faithful"])
def test_elements_below_0_without_a_sign_are_one_clear_error_where_they_are_seen(mode):
    message = r"`signed` must be True for a tensor with negative elements, got False and -3\."
    x = jnp.array([1.0, -3.0])
    with pytest.raises(ValueError, match=message):
        bitplane(4, mode=mode).init(x, Axes())
    jax.jit(lambda x: bitplane(4, mode=mode).init(x, Axes()))(x)  # nothing is known there
    model = bj.Quantized(nn.Dense(2), [bj.rule(".*/input|input", bitplane(4, mode=mode))])
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), x[None])
    model.init(jax.random.key(0), jnp.abs(x)[None])


def test_observing_elements_below_0_without_a_sign_is_the_same_error():
    q = bitplane(4, scale="observed")
    assert q.measure is not None
    params, stats = q.init(jnp.asarray(HALF_NORMAL), Axes())
    with pytest.raises(ValueError, match="`signed` must be True"):
        q.measure(params, stats, jnp.array([1.0, -3.0]))


@pytest.mark.parametrize("coefficients", ["power_of_two", "free"])
def test_a_nan_is_not_hidden(coefficients):
    q = bitplane(4, coefficients=coefficients)
    params, stats = q.init(jnp.asarray(HALF_NORMAL), Axes())
    x_hat = jax.jit(q.apply)(params, stats, jnp.array([jnp.nan, 1.0]))
    assert np.isnan(x_hat).tolist() == [True, False]


def test_keeping_other_planes_keeps_the_highest_ones():
    q = bitplane(4, range="absmax")
    params, stats = q.init(jnp.asarray(HALF_NORMAL), Axes())
    errors = []
    for bits in range(1, 9):
        params = keep_planes(params, bits, depth=8)
        highest = q.decode(params, stats, Codes(jnp.array([2**bits - 1])))
        assert float(highest[0]) >= 0.5 * HALF_NORMAL.max()
        errors.append(np.mean((q.apply(params, stats, HALF_NORMAL) - HALF_NORMAL) ** 2))
    assert errors == sorted(errors, reverse=True)
    with pytest.raises(ValueError, match=r"`bits` must be an integer in \[1, 8\], got 9"):
        keep_planes(params, 9, depth=8)
