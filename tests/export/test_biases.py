"""Biases become whole multiples of the scale of the product that they are added to."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj

RULES = [
    bj.rule("(conv|steps|head|layer)/kernel", bj.lsq(8, granularity="per_channel")),
    bj.rule("(conv|steps|head|layer)/input", bj.lsq(8, signed=False)),
]


class Net(nn.Module):
    """A convolution, steps of a scan, a layer that stays float, and a head that is transposed."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x)).mean((1, 2))

        def step(layer, x, _):
            return nn.relu(layer(x)), None

        many = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 2}
        x, _ = nn.scan(step, **many)(nn.Dense(4, name="steps"), x, None)
        return nn.Dense(3, name="head")(nn.Dense(4, name="float")(x)).T


def deployed(model, x, **options):
    """A deployed model with biases that are not 0."""
    net = bj.Quantized(model, RULES, **options)
    variables = net.init(jax.random.key(0), x)
    biased = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf + 0.1 * jax.random.normal(jax.random.key(len(path)), leaf.shape)
            if path[-1].key == "bias"
            else leaf
        ),
        variables["params"],
    )
    return bj.deploy(net, {**variables, "params": biased}, x)


@pytest.mark.slow
def test_every_bias_is_a_whole_multiple_of_its_filters_scale_and_moves_by_half_of_it():
    x = jax.random.uniform(jax.random.key(1), (2, 4, 4, 3))
    fixed = deployed(Net(), x)
    found = bj.integer_biases(fixed, x).variables
    for layer in ("conv", "steps", "head"):
        sites, before = found["quant"][layer], fixed.variables["params"][layer]
        after = found["params"][layer]["bias"]
        steps = np.asarray(sites["input"]["scale"], np.float64)
        steps = steps.reshape(steps.shape + (1,) * (after.ndim - steps.ndim))
        steps = steps * np.asarray(sites["kernel"]["scale"]).reshape(after.shape)
        whole = np.rint(np.asarray(before["bias"]) / steps)
        np.testing.assert_array_equal(after, np.float32(whole * steps.astype(np.float32)))
        assert np.abs(whole).min() > 0 and len(np.unique(steps)) > 1
        np.testing.assert_array_equal(found["params"][layer]["kernel"], before["kernel"])
    same = found["params"]["float"]["bias"], fixed.variables["params"]["float"]["bias"]
    np.testing.assert_array_equal(*same)


def test_a_bias_of_two_scales_is_refused_and_one_of_a_dead_filter_stays():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(3, name="layer")
            return layer(3.0 * nn.relu(layer(x)))

    x = jnp.array([[0.2, 0.5, 0.9]])
    fixed = deployed(Twice(), x, calls="each")
    with pytest.raises(ValueError, match="the bias 'layer/bias' is added to products of different"):
        bj.integer_biases(fixed, x)
    fixed = deployed(Twice(), x)
    leaves = fixed.variables["quant"]["layer"]["kernel"]
    leaves["scale"] = leaves["scale"].at[0, 1].set(0.0)
    found, before = (
        d.variables["params"]["layer"]["bias"] for d in (bj.integer_biases(fixed, x), fixed)
    )
    assert [*(found == before)] == [False, True, False]
