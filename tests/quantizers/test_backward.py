"""Backward passes: frozen residuals, finite differences, naive autodiff, papers' formulas, memory.

A straight-through estimator is not the derivative of its forward. Freezing the residual
round(v) - v makes a function that has one: the surrogate, whose derivative finite differences give.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.quantizers import (
    Axes,
    binary,
    bitlength,
    bitplane,
    halfwave,
    low_bit,
    lsq,
    pact,
    ternary,
    uniform,
)
from bitjax.quantizers.bitlength import blend_quant
from bitjax.quantizers.forms import ENDS, ZERO
from bitjax.quantizers.grid import Grid, fake_quant, is_inside, levels, position
from bitjax.quantizers.ste import round_ste


def clip(x, low, high):
    """Limits x; the gradient is 1 to x inside and on the ends, where `jnp.clip` halves it."""
    return jnp.where(x < low, low, jnp.where(x > high, high, x))


def count_of(n):
    return 2.0**n - 1.0


def residual(x, lo, width, n):
    """round(v) - v in units of the range, of v limited to the grid."""
    v = np.clip((x - lo) / width, 0.0, 1.0) * count_of(n)
    return (np.rint(v) - v) / count_of(n)


def surrogate(x, lo, width, frozen):
    return lo + width * (np.clip((x - lo) / width, 0.0, 1.0) + frozen)


def derivative(f, at, h=1e-6):
    return (f(at + h) - f(at - h)) / (2 * h)


X = np.array([-1.9, -0.83, -0.21, 0.17, 0.4, 1.12, 2.7])
LO, WIDTH = -1.3, 2.9


@pytest.mark.parametrize("bits", [1.0, 2.0, 3.0, 6.0])
def test_gradients_to_x_and_range_are_those_of_the_frozen_surrogate(bits):
    frozen = residual(X, LO, WIDTH, bits)
    with jax.enable_x64(True):
        grid = Grid(jnp.float64(LO), jnp.float64(WIDTH))

        @jax.jit
        def value_and_pull(g):
            def quantize(x, grid):
                return fake_quant(x, grid, jnp.float64(bits), ENDS)

            x_hat, pull = jax.vjp(quantize, jnp.array(X), grid)
            return x_hat, pull(g)

        x_hat, (d_x, _) = value_and_pull(np.ones_like(X))
        np.testing.assert_allclose(x_hat, surrogate(X, LO, WIDTH, frozen), rtol=1e-12)
        each = [value_and_pull(row)[1][1] for row in np.eye(len(X))]
    expected = derivative(lambda x: surrogate(x, LO, WIDTH, frozen), X)
    np.testing.assert_allclose(d_x, expected, atol=1e-8)
    expected = derivative(lambda lo: surrogate(X, lo, WIDTH, frozen), LO)
    np.testing.assert_allclose([g.lo for g in each], expected, atol=1e-8)
    expected = derivative(lambda width: surrogate(X, LO, width, frozen), WIDTH)
    np.testing.assert_allclose([g.width for g in each], expected, atol=1e-8)


@pytest.mark.parametrize("bits", [1.0, 2.0, 3.0, 6.0])
def test_the_gradient_to_bits_is_that_of_a_step_that_halves_with_each_bit(bits):
    """The residual is frozen in steps, so that the error shrinks with the step."""
    v = np.clip((X - LO) / WIDTH, 0.0, 1.0) * count_of(bits)
    frozen = np.rint(v) - v
    inside = (X >= LO) & (X <= LO + WIDTH)

    def of_bits(n):
        return np.clip(X, LO, LO + WIDTH) + frozen * WIDTH / count_of(n)

    weights = np.arange(1.0, 8.0)
    with jax.enable_x64(True):
        grid = Grid(jnp.float64(LO), jnp.float64(WIDTH))
        d_bits = jax.grad(lambda n: jnp.sum(weights * fake_quant(jnp.array(X), grid, n, ENDS)))(
            jnp.float64(bits)
        )
    expected = np.sum(weights * np.where(inside, derivative(of_bits, bits), 0.0))
    np.testing.assert_allclose(d_bits, expected, rtol=1e-6)


@pytest.mark.parametrize("form", [ENDS, ZERO])
def test_the_blend_is_linear_in_bits_within_a_cell(form):
    with jax.enable_x64(True):
        grid = Grid(jnp.float64(LO), jnp.float64(WIDTH))

        @jax.jit
        def total(n):
            weights = jnp.arange(1.0, 8.0)
            return jnp.sum(weights * blend_quant(jnp.array(X), grid, n, jnp.float64(1.0), form))

        slope = jax.jit(jax.grad(total))
        for bits in (0.3, 1.0, 1.4, 3.7, 8.0):
            low, high = np.floor(bits), np.floor(bits) + 1 - 1e-9
            rise = (total(high) - total(low)) / (high - low)
            np.testing.assert_allclose(slope(bits), rise, rtol=1e-7)


@pytest.mark.parametrize("n", [8.0, 15.0, 16.0])
def test_whole_bits_up_to_the_largest_still_have_a_slope(n):
    q = bitlength(n)
    x = jnp.linspace(-1.0, 1.7, 23)
    params, stats = q.init(x, Axes())
    weights = jnp.arange(23.0)
    slope = jax.jit(jax.grad(lambda p: jnp.sum(weights * q.apply(p, stats, x))))(params)["bits"]
    assert abs(float(slope)) > 0


def naive_level(x, lo, width, bits):
    count = 2.0**bits - 1.0
    unit = clip((x - lo) / width, 0.0, 1.0)
    return lo + width * round_ste(unit * count) / count


def naive_blend(x, lo, width, n):
    """The formula of the paper, left to autodiff with straight-through rounding."""
    floor = jax.lax.stop_gradient(jnp.floor(n))
    mix = n - floor
    low, high = naive_level(x, lo, width, floor), naive_level(x, lo, width, floor + 1)
    return (1 - mix) * low + mix * high


def fused_blend(x, lo, width, n):
    return blend_quant(x, Grid(lo, width), n, jnp.float32(1.0), ENDS)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((), "float32"), ((1, 8), "float32"), ((1, 8), "bfloat16")],
    ids=["scalar", "per_channel", "bfloat16"],
)
def test_the_fused_blend_equals_naive_autodiff(shape, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(500, 8)), dtype)
    g = jnp.asarray(rng.normal(size=(500, 8)), dtype)
    lo = jnp.asarray(rng.uniform(-2.0, -1.5, shape), jnp.float32)
    width = jnp.asarray(rng.uniform(2.5, 4.0, shape), jnp.float32)
    n = jnp.asarray(rng.uniform(1.2, 5.8, shape), jnp.float32)
    wide = x.astype(jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def both(function, g, *args):
        value, pull = jax.vjp(function, *args)
        return value, pull(g)

    value, fast = both(fused_blend, g, x, lo, width, n)
    slow, reference = both(naive_blend, g.astype(jnp.float32), wide, lo, width, n)
    # In bfloat16 only the result is rounded: 8 bits of mantissa, 2^-9 of the value.
    tolerance = 1e-6 if dtype == "float32" else 2.0**-8
    np.testing.assert_allclose(value.astype("float32"), slow, rtol=tolerance, atol=1e-6)
    tolerances = (tolerance, 1e-4, 1e-4, 4e-4)
    for ours, theirs, rtol in zip(fast, reference, tolerances, strict=True):
        scale = float(jnp.max(jnp.abs(theirs)))
        np.testing.assert_allclose(ours.astype("float32"), theirs, rtol=0, atol=rtol * scale)


def kept_bytes(function, *args):
    """Bytes that the backward pass of a function needs, its small arguments aside."""

    def residuals(*args):
        return jax.tree.leaves(jax.vjp(function, *args)[1])

    kept = jax.eval_shape(residuals, *args)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in kept)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_backward_pass_keeps_one_tensor_and_the_naive_one_ten(dtype):
    x = jnp.zeros((64, 1024), dtype)
    scalars = jnp.float32(-1.0), jnp.float32(2.0), jnp.float32(3.5)
    assert kept_bytes(fused_blend, x, *scalars) <= 1.05 * x.nbytes
    assert kept_bytes(naive_blend, x, *scalars) >= 7 * x.nbytes


@pytest.mark.parametrize(
    "make",
    [
        *(functools.partial(bitlength, mode=m, range=r, min_bits=0.0)
          for m in ("blend", "sharpen", "sample", "ste") for r in ("minmax", "learned")),
        functools.partial(uniform, 4),
        functools.partial(lsq, 4, granularity="per_channel"),
        functools.partial(pact, 4),
        functools.partial(bitplane, 4),
        functools.partial(bitplane, 4, signed=True, coefficients="free"),
        functools.partial(bitplane, 4, scale="observed", coefficients="free"),
        functools.partial(bitplane, 4, mode="faithful", dither=True),
        functools.partial(halfwave, 4),
        functools.partial(halfwave, 4, fit="measured", learn_step=True),
        functools.partial(ternary, "twn"),
        functools.partial(binary, "stored"),
        functools.partial(low_bit, 4, fit="stored"),
    ],
)  # fmt: skip
def test_every_quantizer_keeps_one_tensor(make):
    q = make()
    x = jnp.zeros((512, 64), jnp.bfloat16)
    params, stats = jax.eval_shape(lambda x: q.init(x, Axes()), x)
    params, stats = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), (params, stats))
    key = jax.random.key(0)
    kept = kept_bytes(lambda p, x: q.apply(p, stats, x, train=True, key=key), params, x)
    assert kept <= 1.05 * x.nbytes


def gradients(q, g, params, stats, x):
    """To the parameters and x, compiled."""

    def loss(params, x):
        return jnp.sum(g * q.apply(params, stats, x))

    return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)


def test_lsq_gradients_are_those_of_the_paper():
    """Esser et al., arXiv 1902.08153, eq. 3 and 5, and the gradient scale of section 2.2."""
    q, scale = lsq(3), 0.37
    x = np.array([-3.0, -1.4, -0.6, -0.1, 0.05, 0.5, 1.0, 1.2, 4.0], np.float32)
    g = np.arange(1.0, 10.0, dtype=np.float32)
    params = {"bits": jnp.float32(3.0), "scale": jnp.float32(scale)}
    d_params, d_x = gradients(q, g, params, {}, x)
    qmin, qmax, v = -4, 3, x / scale
    inside = (v >= qmin) & (v <= qmax)
    to_scale = np.where(inside, np.rint(v) - v, np.where(v < qmin, qmin, qmax))
    np.testing.assert_array_equal(d_x, g * inside)
    np.testing.assert_allclose(
        d_params["scale"], np.sum(g * to_scale) / np.sqrt(x.size * qmax), rtol=1e-5
    )


def test_pact_gradients_are_those_of_the_paper():
    """Choi et al., arXiv 1805.06085, eq. 3: 1 to the clip for each element at or above it."""
    q = pact(2)
    x = np.array([-0.5, 0.1, 0.7, 1.9, 2.5, 7.0], np.float32)
    g = np.arange(1.0, 7.0, dtype=np.float32)
    params = {"bits": jnp.float32(2.0), "clip_max": jnp.float32(2.0)}
    d_params, d_x = gradients(q, g, params, {}, x)
    np.testing.assert_array_equal(d_x, [0, 2, 3, 4, 0, 0])
    assert float(d_params["clip_max"]) == pytest.approx(5 + 6)


@pytest.mark.parametrize("q", [uniform(4, zero_on_grid=False), bitlength(4.0)])
def test_a_range_that_is_observed_receives_nothing_and_passes_all_of_x_on(q):
    x = jnp.array([-1.0, 0.2, 0.4, 2.0])  # the ends of the range are inside
    params, stats = q.init(x, Axes())
    swapped = q._replace(apply=lambda stats, params, x: q.apply(params, stats, x))
    d_stats, d_x = gradients(swapped, 1.0, stats, params, x)
    np.testing.assert_array_equal(d_x, jnp.ones(4))
    assert all(not leaf.any() for leaf in jax.tree.leaves(d_stats))


def test_the_ends_of_a_range_are_inside_at_every_number_of_bits():
    for bits in range(1, 18):
        x = jnp.array([-0.3, 2.9])
        grid = Grid(x[0], x[1] - x[0])
        to = levels(grid, jnp.float32(bits), ENDS, x.shape)
        assert is_inside(position(x, to), to).all()


@pytest.mark.parametrize("form", [ENDS, ZERO])
def test_below_one_bit_x_keeps_the_share_of_its_gradient_within_the_whole_range(form):
    x = jnp.array([-0.4, 0.1, 0.9, 1.7])
    grid = Grid(jnp.float32(0.0), jnp.float32(1.0))
    d_x = jax.grad(lambda x: jnp.sum(blend_quant(x, grid, 0.25 * jnp.ones(()), jnp.ones(()), form)))
    np.testing.assert_array_equal(d_x(x), [0.0, 0.25, 0.25, 0.0])


@pytest.mark.parametrize("quantizer, grids", [(uniform(bits=4), 1), (bitlength(4.5), 2)])
def test_a_quantized_input_is_worked_out_once_for_its_product_and_the_gradient(quantizer, grids):
    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
    params, stats = quantizer.init(x, Axes())

    def loss(kernel, x, scale):
        x_hat = quantizer.apply(params, stats, jax.nn.relu(x * scale), train=True)
        axes = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x_hat, kernel, (1, 1), "SAME", dimension_numbers=axes)
        return jnp.sum(y**2)

    program = jax.jit(jax.grad(loss)).lower(kernel, x, jnp.ones(4)).compile().as_text()
    # Of two loops that read it, XLA's CPU library once worked it out in each.
    assert len(re.findall(r"\[2,8,8,4\]\S* round-nearest-even\(", program)) == grids
