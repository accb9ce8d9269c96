"""Dampening: its gradient is that of the squared distance to the levels; all else stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.quantizers import Axes, lsq, uniform
from bitjax.quantizers.dampening import dampened

X = np.array([-1.9, -0.83, -0.21, 0.17, 0.4, 1.12, 2.7], np.float32)
STRENGTH = 0.7


@pytest.mark.parametrize("make", [lsq, uniform])
def test_the_gradient_is_that_of_the_squared_distance_by_finite_differences(make):
    """Nagel et al., arXiv 2203.11086: |x_hat - clip(x)|^2, in which x_hat is held."""
    plain = make(2, signed=True)
    params, stats = plain.init(jnp.array([-1.0, 1.5]), Axes())
    given = jnp.arange(7.0)

    @jax.jit
    def both(params, x):
        def total(quantizer):
            return lambda p, x: jnp.sum(given * quantizer.apply(p, stats, x, train=True))

        of = [jax.grad(total(q), (0, 1))(params, x) for q in (plain, dampened(plain, STRENGTH))]
        return of, plain.apply(params, stats, x)

    (without, found), x_hat = both(params, jnp.asarray(X))
    levels = np.asarray(plain.apply(params, stats, jnp.array([-9.0, 9.0])))
    low, high = levels.astype(np.float64)

    def distance(x):
        return STRENGTH * (np.asarray(x_hat, np.float64) - np.clip(x, low, high)) ** 2

    wide, h = X.astype(np.float64), 1e-6
    wanted = (distance(wide + h) - distance(wide - h)) / (2 * h)
    assert np.any(wanted > 0.01) and np.any(wanted < -0.01) and np.any(wanted == 0)
    np.testing.assert_allclose(found[1] - without[1], wanted, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, found[0], without[0])  # the range's own


def test_levels_and_evaluation_stay_as_they_are():
    plain = lsq(3)
    params, stats = plain.init(jnp.asarray(X), Axes())
    pulled = dampened(plain, STRENGTH)
    for train in (False, True):
        wanted = plain.apply(params, stats, X, train=train)
        np.testing.assert_array_equal(pulled.apply(params, stats, X, train=train), wanted)
    slope = jax.grad(lambda x: jnp.sum(pulled.apply(params, stats, x)))(jnp.asarray(X))
    np.testing.assert_array_equal(
        slope, jax.grad(lambda x: jnp.sum(plain.apply(params, stats, x)))(jnp.asarray(X))
    )
