"""Surrogate gradients are the stated ones, values are the plain functions'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.quantizers.ste import clip_ste, round_ste, scale_gradient

X = jnp.array([-1.5, 0.2, 0.7, 3.0])
ONES = jnp.ones(4)


@pytest.mark.parametrize(
    ("function", "plain"),
    [
        (round_ste, jnp.rint),
        (lambda x: clip_ste(x, 0.0, 1.0), lambda x: jnp.clip(x, 0.0, 1.0)),
    ],
    ids=["round", "clip"],
)
def test_the_value_is_the_plain_function_and_the_gradient_is_one(function, plain):
    value, pull = jax.vjp(function, X)
    np.testing.assert_array_equal(value, plain(X))
    np.testing.assert_array_equal(pull(ONES)[0], ONES)


def test_scaling_a_gradient_leaves_the_value_alone():
    value, pull = jax.vjp(lambda x: scale_gradient(x, 0.5), X)
    np.testing.assert_array_equal(value, X)
    np.testing.assert_array_equal(pull(ONES)[0], ONES / 2)
