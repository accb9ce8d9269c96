"""Leaves of variables are read and replaced by path, whatever tree holds them."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.frameworks.leaves import read_leaf, write_leaf

TERNARY = bj.ternary(fit="stored")


@jax.tree_util.register_dataclass
@dataclass
class Linear:
    weight: jax.Array
    bias: jax.Array

    def __call__(self, x):
        return x @ self.weight.T + self.bias


def test_attributes_lists_and_keys_are_parts_of_a_path():
    variables = {"params": {"layers": [Linear(jnp.ones((2, 3)), jnp.zeros(2))], "b": (1.0, 2.0)}}
    assert read_leaf(variables, "params/layers/0/weight").shape == (2, 3)
    found = write_leaf(variables, "params/layers/0/bias", jnp.ones(2))
    assert isinstance(found["params"]["layers"][0], Linear)
    assert found["params"]["layers"][0].bias.sum() == 2.0
    assert found["params"]["layers"][0].weight is variables["params"]["layers"][0].weight
    assert variables["params"]["layers"][0].bias.sum() == 0.0
    with pytest.raises(KeyError, match="no leaf 'params/layers/1/bias'"):
        read_leaf(variables, "params/layers/1/bias")


@pytest.mark.slow
def test_modules_that_are_pytrees_are_solved():
    x, key = jax.random.normal(jax.random.key(0), (200, 6)), jax.random.key(1)
    codes = jax.random.choice(key, jnp.array([-1.0, 0.0, 1.0]), (4, 6))
    params = {"layer": Linear(0.5 * codes, jnp.arange(4.0))}
    model = bj.Function(lambda p, x: p["layer"](x), [bj.rule("layer/kernel", TERNARY)])
    variables = {"params": params, **model.init(params, x)}
    found = bj.solve_layers(model, variables, [x], ridge=0.0, starts=4)["params"]["layer"]
    np.testing.assert_allclose(found.weight, params["layer"].weight, atol=1e-4)
    np.testing.assert_allclose(found.bias, params["layer"].bias, atol=1e-3)


@pytest.mark.slow
def test_boxes_around_leaves_stay():
    init = nn.with_partitioning(nn.initializers.normal(), (None, "model"))
    x = jax.random.normal(jax.random.key(0), (64, 5))
    model = bj.Quantized(nn.Dense(3, kernel_init=init), [bj.rule("kernel", TERNARY)])
    variables = model.init(jax.random.key(1), x)
    found = bj.solve_layers(model, variables, [x])
    box = found["params"]["kernel"]
    assert isinstance(box, nn.Partitioned) and box.names == (None, "model")
    assert (box.value != variables["params"]["kernel"].value).any()
