"""Half-wave quantizers against their definition, published constants and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

import bitjax as bj
from bitjax.quantizers import Axes, halfwave, hwgq
from bitjax.quantizers.halfwave_fit import gaussian_levels, gaussian_step

NORMAL = np.random.default_rng(0).normal(size=50_000).astype(np.float32)


def started(q, x=NORMAL):
    return q.init(jnp.asarray(x, jnp.float32), Axes())[0]


def slow_codes(x, step, threshold, bits):
    """The definition, an interval at a time, in the arithmetic of float32."""
    step, last = np.float32(step), 2**bits - 1
    edges = [np.float32(threshold)]
    edges += [max(np.float32(threshold), np.float32((k - 0.5) * step)) for k in range(2, last + 1)]
    code = np.zeros(x.shape, int)
    for k, edge in enumerate(edges, 1):
        code[x > edge] = k
    return code


@given(
    step=st.floats(0.015625, 3.0, width=32),
    ratio=st.floats(0.0, 1.4),
    bits=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_codes_are_those_of_the_definition_edges_included(step, ratio, bits, seed):
    threshold = float(np.float32(step * ratio))
    q = halfwave(bits, step=step, threshold=threshold)
    edges = np.float32((np.arange(-1, 2**bits + 1) + 0.5) * np.float32(step))
    near = [np.nextafter(edges, np.float32(side)) for side in (-9e9, 9e9)]
    spread = np.random.default_rng(seed).normal(size=99) * step * 2.0**bits
    x = np.concatenate([edges, *near, [threshold, 0.0, np.inf], spread]).astype(np.float32)
    params = started(q, x)
    codes = np.asarray(jax.jit(q.encode)(params, {}, x).codes)
    np.testing.assert_array_equal(codes, slow_codes(x, step, threshold, bits))


def test_the_upper_edge_of_an_interval_of_two_bits_belongs_to_it():
    """TSQ's public AlexNet: x <= eps: 0; <= 1.5 D: D; <= 2.5 D: 2 D; else 3 D."""
    q = halfwave(2, step=0.6487, threshold=0.32)
    step, eps = np.float32(0.6487), np.float32(0.32)
    edges = np.array([eps, 1.5 * step, 2.5 * step], np.float32)
    above = np.nextafter(edges, np.float32(9))
    np.testing.assert_array_equal(q.apply(started(q), {}, edges), step * np.float32([0, 1, 2]))
    np.testing.assert_array_equal(q.apply(started(q), {}, above), step * np.float32([1, 2, 3]))


@given(bits=st.integers(1, 8), threshold=st.sampled_from([None, 0.0]), seed=st.integers(0, 99))
def test_levels_are_fixed_points_and_order_survives_so_that_pooling_commutes(bits, threshold, seed):
    q = halfwave(bits, threshold=threshold)
    params = started(q)
    levels = np.asarray(params["scale"]) * np.arange(2.0**bits, dtype=np.float32)
    np.testing.assert_array_equal(q.apply(params, {}, levels), levels)
    x = np.sort(np.random.default_rng(seed).normal(size=200)).astype(np.float32)
    x_hat = np.asarray(q.apply(params, {}, x))
    assert (np.diff(x_hat) >= 0).all()
    pairs = np.random.default_rng(seed).permutation(x).reshape(100, 2)
    pooled = q.apply(params, {}, pairs.max(axis=1))
    np.testing.assert_array_equal(pooled, np.max(q.apply(params, {}, pairs), axis=1))


def test_steps_for_a_gaussian_are_those_that_were_published():
    """HWGQ's and TSQ's programs at 2 bits; EdMIPS has .799, .3217 and .185 at 1, 3 and 4 bits."""
    assert gaussian_step(2) == pytest.approx(0.5388, abs=2e-4)
    assert gaussian_step(2, 0.32) == pytest.approx(0.6488, abs=2e-4)
    assert gaussian_step(1) == pytest.approx(np.sqrt(2 / np.pi), abs=1e-12)
    assert gaussian_step(3) == pytest.approx(0.3217, abs=1e-4)
    assert gaussian_step(4) == pytest.approx(0.1842, abs=1e-4)
    joint = [gaussian_levels(bits)[0] for bits in (1, 2, 3, 4)]
    np.testing.assert_allclose(joint, [1.2240, 0.6508, 0.3534, 0.1933], atol=1e-4)
    assert float(started(hwgq(2))["scale"]) == pytest.approx(0.5388, abs=2e-4)


def squared_error(step, threshold, bits):
    """E[(Q(x) - x)^2; x > 0] of N(0, 1), integrated a cell at a time."""
    last = 2**bits - 1
    edges = [max(threshold, (k - 0.5) * step) for k in range(2, last + 1)]
    edges = [0.0, threshold, *edges, np.inf]
    cells = zip(edges[:-1], edges[1:], range(last + 1), strict=True)
    return sum(
        integrate.quad(lambda x, k=k: (k * step - x) ** 2 * stats.norm.pdf(x), low, high)[0]
        for low, high, k in cells
    )


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_no_other_step_or_threshold_has_less_error_on_a_gaussian(bits):
    step, threshold = gaussian_levels(bits)
    least = squared_error(step, threshold, bits)
    for factor in (0.5, 0.8, 0.99, 1.01, 1.2, 2.0):
        assert squared_error(factor * step, factor * threshold, bits) > least
        assert squared_error(step, factor * threshold, bits) > least
    for start in (0.0, 0.4 * step, 0.9 * step):
        step = gaussian_step(bits, start)
        least = squared_error(step, start, bits)
        assert all(squared_error(f * step, start, bits) > least for f in (0.7, 0.99, 1.01, 1.5))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("make", [halfwave, hwgq])
def test_a_measured_step_follows_the_spread_and_is_the_best_of_many(make, bits):
    q = make(bits, fit="measured")
    x = np.maximum(np.random.default_rng(1).laplace(size=20_000), 0).astype(np.float32)
    params = jax.jit(lambda x: q.init(x, Axes())[0])(x)

    def error(factor):
        moved = {name: factor * params[name] for name in ("scale", "threshold")}
        return float(jnp.sum(jnp.square(q.apply({**params, **moved}, {}, x) - x)))

    least = error(1.0)
    assert all(error(f) > 0.9995 * least for f in np.geomspace(0.3, 3.0, 41))
    wide = started(q, 1e6 * x)
    np.testing.assert_allclose(wide["scale"], 1e6 * params["scale"], rtol=1e-4)
    assert float(params["threshold"]) == pytest.approx(
        0.0 if make is hwgq else float(params["scale"]) / 2
    )


def test_a_step_measured_on_a_gaussian_is_the_gaussians():
    measured = [float(started(make(2, fit="measured"))["scale"]) for make in (halfwave, hwgq)]
    np.testing.assert_allclose(measured, [0.6508, 0.5388], rtol=0.01)


@pytest.mark.parametrize("x", [np.zeros(5), -np.ones(5)])
def test_a_tensor_without_a_positive_element_measures_a_step_of_one(x):
    params = started(halfwave(fit="measured"), x)
    assert (float(params["scale"]), float(params["threshold"])) == (1.0, 0.5)


@pytest.mark.parametrize("learn_step", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_gradient_to_x_begins_at_zero_and_ends_below_the_highest_level(bits, learn_step):
    q = halfwave(bits, step=0.5, threshold=0.25, learn_step=learn_step)
    params, top = started(q), 0.5 * (2**bits - 1)
    x = np.float32([-1.0, 0.0, 1e-6, 0.2, 0.25, np.nextafter(np.float32(top), 0), top, 2 * top])
    g = np.arange(1.0, 9.0, dtype=np.float32)
    d_params, d_x = jax.grad(lambda p, x: jnp.sum(g * q.apply(p, {}, x)), (0, 1))(params, x)
    np.testing.assert_array_equal(d_x, g * [0, 0, 1, 1, 1, 1, 0, 0])
    assert bool(d_params["scale"]) is learn_step
    assert not d_params["threshold"] and not d_params["bits"]


def test_the_gradient_to_the_step_is_that_of_the_frozen_surrogate():
    """LSQ: x_hat = step clip(x / step + residual), the residual of rounding frozen."""
    x = np.array([-0.7, 0.1, 0.2, 0.4, 0.9, 1.3, 1.4, 1.7, 5.0])
    step, last, threshold = 0.5, 3, 0.3
    code = np.clip(np.ceil(x / step - 0.5), 1, last) * (x > threshold)
    inside = (x > 0) & (x < last * step)

    def surrogate(step):
        return np.where(inside, step * (x / step + code - x / 0.5), (x > 0) * last * step)

    h = 1e-6
    expected = (surrogate(step + h) - surrogate(step - h)) / (2 * h) / np.sqrt(x.size * last)
    q = halfwave(2, step=step, threshold=threshold, learn_step=True)
    with jax.enable_x64(True):
        params = {name: leaf.astype("float64") for name, leaf in started(q).items()}
        params["scale"] = jnp.float64(step)
        each = jax.jacobian(lambda p: q.apply(p, {}, jnp.asarray(x)))(params)["scale"]
    np.testing.assert_allclose(each, expected, atol=1e-8)


def test_it_is_a_clipped_relu_in_training_and_moves_no_parameter():
    q = hwgq(2)
    params = started(q)
    both = [q.apply(params, {}, NORMAL, train=train) for train in (False, True)]
    np.testing.assert_array_equal(*both)
    gradient = jax.grad(lambda p: jnp.sum(q.apply(p, {}, NORMAL)))(params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_nan_is_not_hidden():
    assert np.isnan(halfwave(2).apply(started(halfwave(2)), {}, jnp.float32(np.nan)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: halfwave(0), r"`bits` must be an integer in \[1, 16\], got 0"),
        (lambda: halfwave(2.5), r"`bits` must be an integer in .*, got 2.5"),
        (lambda: halfwave(fit="lloyd"), r"`fit` must be one of \['gaussian', 'measured'\]"),
        (lambda: halfwave(step=0.0), r"`step` must be None or a finite number above 0, got 0.0"),
        (
            lambda: hwgq(step=float("nan")),
            r"`step` must be .* above 0, got nan",
        ),
        (
            lambda: halfwave(threshold=-0.1),
            r"`threshold` must be .* of 0 or more, got -0.1",
        ),
        (lambda: halfwave(2, step=0.5, threshold=0.75), r"below 1.5 steps = 0.75 at 2 bits.* 0.75"),
        (lambda: halfwave(4, threshold=0.32), r"`threshold` must be below 1.5 steps = 0.295"),
        (lambda: halfwave(fit="measured", threshold=0.3), r"must be None or 0 with a measured st"),
        (
            lambda: gaussian_step(2, -1.0),
            r"`threshold` must be .* of 0 or more, got -1.0",
        ),
        (lambda: gaussian_levels(17), r"`bits` must be an integer in \[1, 16\], got 17"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_one_bit_may_have_any_threshold_since_its_level_is_always_reached():
    q = halfwave(1, step=1.0, threshold=2.0)
    x = jnp.array([1.9, 2.1])
    np.testing.assert_array_equal(q.apply(started(q), {}, x), [0.0, 1.0])


def test_behind_a_batch_normalisation_the_share_of_zeros_is_the_gaussians():
    q = bj.halfwave(2)
    zeros = np.mean(np.asarray(q.apply(started(q), {}, NORMAL)) == 0)
    assert zeros == pytest.approx(stats.norm.cdf(0.3254), abs=0.01)
