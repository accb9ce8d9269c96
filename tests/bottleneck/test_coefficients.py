"""Solved coefficients: what averages of codes give, and what keeps the old ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.quantizers import Axes
from bitjax.quantizers.planes import to_planes

X = jnp.abs(jax.random.normal(jax.random.key(0), (512, 16))) ** 2


def wrapped(**settings):
    planes = bj.bitplane(**{"bits": 3, "depth": 3, "coefficients": "solved", **settings})
    model = bj.Quantized(nn.Dense(3), [bj.rule("input", planes)])
    return model, model.init(jax.random.key(1), X)


def test_coefficients_are_the_least_squares_of_the_planes_of_all_batches():
    model, variables = wrapped()
    batches = [X[:256], X[256:]]
    variables = bj.calibrate(model, variables, batches)
    found = bj.solve_coefficients(model, variables)["quant"]["input"]
    u = np.asarray(X, np.float64).ravel() / float(found["scale"])
    codes = jnp.clip(jnp.rint(jnp.asarray(u)), 0, 7).astype(jnp.int32)
    planes = np.asarray(to_planes(codes, 3), np.float64)
    expected = np.linalg.lstsq(planes.T, u, rcond=None)[0]
    np.testing.assert_allclose(found["coefficients"], expected, rtol=1e-4)


def test_they_lose_less_than_powers_of_two():
    model, variables = wrapped()
    variables = bj.calibrate(model, variables, [X])
    q = model.rules[0].quantizer
    before, after = (
        jnp.mean((q.apply(v["quant"]["input"], {}, X) - X) ** 2)
        for v in (variables, bj.solve_coefficients(model, variables))
    )
    assert after < 0.99 * before


def test_later_batches_count_more_in_training():
    q = bj.bitplane(bits=2, depth=2, coefficients="solved", decay=0.9)
    params, stats = q.init(jnp.array([0.0, 3.0]), Axes())
    params["scale"] = jnp.float32(1.0)
    for x in (jnp.array([1.0]), jnp.array([3.0])):
        stats = q.update(stats, q.measure(params, stats, x))
    np.testing.assert_allclose(stats["mass"], [0.0, 0.9, 0.0, 0.1], atol=1e-6)
    np.testing.assert_allclose(stats["first"], [0.0, 0.9, 0.0, 0.3], atol=1e-6)


def test_neither_scale_nor_coefficients_have_a_gradient():
    q = bj.bitplane(bits=3, coefficients="solved")
    params, stats = q.init(X, Axes())
    grads = jax.grad(lambda p: jnp.sum(q.apply(p, stats, X, train=True)))(params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_a_plane_that_never_occurs_and_planes_out_of_order_keep_what_they_had():
    model, variables = wrapped()
    stats = variables["quant_stats"]["input"]
    never = {**stats, "mass": jnp.eye(8)[1] * 1.0, "first": jnp.eye(8)[1] * 1.3}
    # Both planes at once are worth less than the upper one alone.
    lower = jnp.zeros(8).at[jnp.array([1, 2, 3])].set(1 / 3)
    first = lower * jnp.array([0, 3.0, 1.0, 1.0, 0, 0, 0, 0])
    for observed, expected in (
        (never, [1.3, 2.0, 4.0]),
        ({**stats, "mass": lower, "first": first}, [1.0, 2.0, 4.0]),
    ):
        given = {**variables, "quant_stats": {"input": {**observed, "count": jnp.float32(1)}}}
        found = bj.solve_coefficients(model, given)["quant"]["input"]["coefficients"]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_model_that_observed_nothing_is_refused():
    model, variables = wrapped()
    with pytest.raises(ValueError, match=r"no site has averages .* bitjax\.calibrate"):
        bj.solve_coefficients(model, variables)


def test_solved_coefficients_need_a_static_scale_and_at_most_8_planes():
    for settings in ({"scale": "observed"}, {"mode": "faithful"}, {"depth": 9}):
        with pytest.raises(ValueError, match="`coefficients` 'solved' goes with"):
            bj.bitplane(bits=3, coefficients="solved", **settings)
