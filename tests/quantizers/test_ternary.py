"""Kernels of few levels: what they keep, what they learn, and how they follow the kernel."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.quantizers import Axes, binary, low_bit, ternary
from bitjax.quantizers.weight_codes import binary_codes, otwn_codes, rounded_codes, twn_codes

FOLLOWING = {
    "optimal": (ternary, otwn_codes),
    "twn": (partial(ternary, "twn"), twn_codes),
    "mean": (binary, binary_codes),
    "rounded": (partial(low_bit, 4), partial(rounded_codes, bits=4)),
}
STORED = {
    "ternary": (partial(ternary, "stored"), 1),
    "binary": (partial(binary, "stored"), 1),
    "low_bit": (partial(low_bit, 4, fit="stored"), 7),
}
following = pytest.mark.parametrize("name", FOLLOWING)
stored = pytest.mark.parametrize("name", STORED)


def kernel(seed=0, shape=(3, 3, 4, 5)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def start(q, x):
    """`q.init` as one program: eagerly, each of its operations is compiled apart."""
    return jax.jit(lambda x: q.init(x, Axes()))(x)


def pulled(q, params, stats, x, weight=1.0, power=1):
    """`q.apply`, and the gradients of its weighted sum to the parameters and x; one program."""

    @jax.jit
    def program(params, x):
        def loss(params, x):
            x_hat = q.apply(params, stats, x)
            return jnp.sum(weight * x_hat**power), x_hat

        (_, x_hat), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
        return x_hat, gradients

    return program(params, x)


@following
def test_what_comes_out_is_the_codes_times_the_scales_of_the_fit(name):
    make, codes_of = FOLLOWING[name]
    q, x = make(), kernel()
    codes, scale = jax.jit(codes_of)(x)
    params, stats = start(q, x)
    assert sorted(params) == ["bits"] and stats["scale"].shape == (1, 1, 1, 5)
    np.testing.assert_array_equal(jax.jit(q.apply)(params, stats, x), codes * scale)


@following
def test_the_scale_follows_the_kernel_and_the_gradient_passes_straight_through(name):
    make, codes_of = FOLLOWING[name]
    model = bj.Quantized(nn.Conv(5, (3, 3)), [bj.rule("kernel", make())])
    x, other = jnp.ones((1, 4, 4, 4)), kernel(1)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    moved = {**variables, "params": {**variables["params"], "kernel": other}}
    codes, scale = jax.jit(codes_of)(other)
    exact = {"params": {**variables["params"], "kernel": codes * scale}}
    out, updates = model.apply(moved, x, mutable=["quant_stats"])
    np.testing.assert_allclose(out, nn.Conv(5, (3, 3)).apply(exact, x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(updates["quant_stats"]["kernel"]["scale"], scale, rtol=1e-6)

    def loss(model, params):
        return jnp.sum(model.apply({**variables, "params": params}, x) ** 2)

    through = jax.grad(partial(loss, model))(moved["params"])["kernel"]
    direct = jax.grad(partial(loss, nn.Conv(5, (3, 3))))(exact["params"])["kernel"]
    np.testing.assert_allclose(through, direct, rtol=1e-4, atol=1e-4)


@stored
def test_a_stored_scale_starts_at_the_fit_and_then_stays(name):
    q = STORED[name][0]()
    fit = {"ternary": otwn_codes, "binary": binary_codes, "low_bit": partial(rounded_codes, bits=4)}
    codes, scale = fit[name](kernel())
    params, stats = q.init(kernel(), Axes())
    assert not stats and q.measure is None
    np.testing.assert_array_equal(params["scale"], scale)
    np.testing.assert_allclose(q.apply(params, {}, kernel()), codes * scale, rtol=1e-6)
    outside = np.abs(q.apply(params, {}, 1e6 * kernel()))
    np.testing.assert_allclose(outside, jnp.broadcast_to(STORED[name][1] * scale, outside.shape))


@stored
def test_codes_that_a_solver_found_come_back_from_the_kernel_that_they_make(name):
    make, last = STORED[name]
    values = [-1, 1] if last == 1 and name == "binary" else np.arange(-last, last + 1)
    codes = np.random.default_rng(0).choice(values, size=(64, 5)).astype(np.float32)
    scale = np.random.default_rng(1).uniform(0.01, 9.0, (1, 5)).astype(np.float32)
    q = make()
    params = {**start(q, jnp.ones((64, 5)))[0], "scale": jnp.asarray(scale)}
    np.testing.assert_array_equal(jax.jit(q.apply)(params, {}, codes * scale), codes * scale)


def frozen_surrogate(name, x, scale, last):
    """What LSQ differentiates: scale clip(x / scale) + scale * residual, the residual frozen."""
    v = x / scale
    code = np.where(v >= 0, 1.0, -1.0) if name == "binary" else np.rint(v)
    code = np.clip(code, -last, last)
    inside = np.abs(v) <= last
    residual = np.where(inside, code - v, 0.0)

    def surrogate(x, scale):
        clipped = np.where(inside, x / scale, np.sign(x) * last)
        return scale * (clipped + residual)

    return surrogate


@stored
def test_gradients_of_a_stored_scale_are_those_of_the_frozen_surrogate(name):
    make, last = STORED[name]
    q, h = make(), 1e-6
    rng = np.random.default_rng(5)
    x, g = rng.normal(size=(40, 3)) * last, rng.normal(size=(40, 3))
    scale = np.array([[0.4, 0.9, 1.7]])
    surrogate = frozen_surrogate(name, x, scale, last)
    assert 0 < np.mean(np.abs(x / scale) > last) < 1
    with jax.enable_x64(True):
        params = {"bits": start(q, jnp.ones((2, 3)))[0]["bits"], "scale": jnp.array(scale)}
        x_hat, (d_params, d_x) = pulled(q, params, {}, jnp.array(x), g)
        np.testing.assert_allclose(x_hat, surrogate(x, scale))
    expected = (surrogate(x, scale + h) - surrogate(x, scale - h)) / (2 * h)
    expected = np.sum(g * expected, axis=0, keepdims=True) / np.sqrt(40 * last)
    np.testing.assert_allclose(d_params["scale"], expected, rtol=1e-6)
    np.testing.assert_allclose(
        d_x, g * (surrogate(x + h, scale) - surrogate(x - h, scale)) / (2 * h), atol=1e-7
    )
    assert not d_params["bits"]


@pytest.mark.parametrize("name", [*FOLLOWING, *STORED])
def test_a_filter_of_zeros_comes_out_as_zeros_with_finite_gradients(name):
    q = {**FOLLOWING, **STORED}[name][0]()
    x = kernel(shape=(6, 2)).at[:, 0].set(0.0)
    params, stats = start(q, x)
    x_hat, gradients = pulled(q, params, stats, x, power=2)
    assert not x_hat[:, 0].any() and x_hat[:, 1].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    moved = jax.jit(q.measure)(params, stats, x).max if q.measure else params
    assert float(moved["scale"][0, 0]) == 0


def test_bits_are_those_that_a_code_takes():
    bits = [float(q.init(kernel(), Axes())[0]["bits"]) for q in (ternary(), binary(), low_bit(5))]
    assert bits == [2, 1, 5]


@pytest.mark.parametrize("name", [*FOLLOWING, *STORED])
def test_nan_is_not_hidden(name):
    q = {**FOLLOWING, **STORED}[name][0]()
    params, stats = q.init(kernel(), Axes())
    assert np.isnan(q.apply(params, stats, kernel().at[0, 0, 0, 0].set(np.nan))[0, 0, 0, 0])


def test_the_bytes_of_a_model_count_a_scale_per_filter():
    x = jnp.ones((1, 30))
    costs = bj.site_costs(nn.Dense(8, use_bias=False), x)
    for q in (ternary(), ternary("stored")):
        model = bj.Quantized(nn.Dense(8, use_bias=False), [bj.rule("kernel", q)])
        variables = jax.jit(model.init)(jax.random.key(0), x)
        assert bj.model_bytes(variables, costs) == 30 * 8 * 2 / 8 + 8 * 4 + 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ternary("rounded"), r"`fit` must be one of \['optimal', 'twn', 'stored'\], got"),
        (lambda: binary("twn"), r"`fit` must be one of \['mean', 'stored'\], got 'twn'"),
        (lambda: low_bit(1), r"`bits` must be an integer in \[2, 16\], got 1"),
        (lambda: low_bit(3.5), r"`bits` must be an integer in .*, got 3.5"),
        (lambda: low_bit(fit="mean"), r"`fit` must be one of \['rounded', 'stored'\], got 'mean'"),
    ],
)
def test_an_argument_out_of_bounds_is_an_error_with_its_bound_and_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_held_codes_give_the_same_numbers_and_the_scale_the_codes_as_its_gradient():
    kernel = jax.random.normal(jax.random.key(0), (12, 3))
    stored = ternary(fit="stored")
    params, stats = start(stored, kernel)
    kernel = jax.jit(stored.apply)(params, stats, kernel)  # on its codes, as a solver leaves it
    held = stored.frozen()
    weight = jax.random.normal(jax.random.key(1), kernel.shape)
    both = [pulled(q, params, stats, kernel, weight) for q in (stored, held)]
    grads = [gradients for _, gradients in both]
    np.testing.assert_array_equal(both[1][0], kernel)
    codes = kernel / params["scale"]
    expected = jnp.sum(weight * codes, axis=0, keepdims=True)
    np.testing.assert_allclose(grads[1][0]["scale"], expected, rtol=1e-5)
    assert np.abs(grads[0][0]["scale"]).max() < 1e-5 and not grads[1][1].any()
    assert ternary().frozen is None
