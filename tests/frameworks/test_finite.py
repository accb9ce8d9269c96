"""Where NaN and inf begin, by name: sites, variables, modules without sites, plain functions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import bitjax as bj
from bitjax.frameworks.finite import first_bad, first_nonfinite, is_finite

X = jax.random.normal(jax.random.key(1), (5, 4))


class Log(nn.Module):
    """A module without parameters that gives NaN below 0, and -inf at 0."""

    @nn.compact
    def __call__(self, x):
        return nn.relu(jnp.log(x))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.Dense(4, name="dense")(Log(name="log")(x)), None


def first(model, *args, **kwargs):
    variables = model.init(jax.random.key(0), *args, **kwargs)
    return first_nonfinite(model, variables, *args, **kwargs)


def test_integers_are_finite_and_one_nan_is_enough():
    assert is_finite({"a": jnp.ones(2), "b": jnp.int32(1)}) and is_finite({})
    assert not is_finite({"a": jnp.ones(2), "b": jnp.array(jnp.nan)})


def test_a_variable_is_blamed_before_the_output_that_it_spoils():
    flags = {"input": jnp.array(True), "output": jnp.array(False)}
    assert first_bad([("conv", flags)], [("params", "conv", "bias")]) == "conv/bias"
    assert first_bad([("conv", flags)], []) == "conv/output"


def test_an_input_is_blamed_before_the_kernel_of_its_layer():
    flags = {role: jnp.array(False) for role in ("kernel", "input", "output")}
    assert first_bad([("conv", flags)], []) == "conv/input"


def test_a_module_without_sites_is_named_by_its_output():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = Log(name="log")(nn.Dense(4, name="first")(x))
            return nn.Dense(3, name="last")(x)

    assert first(Net(), X) == "log/output"
    assert first(bj.Quantized(Net(), [bj.rule(".*", bj.lsq(bits=4))]), X) == "log/output"


@pytest.mark.parametrize("wrap", [nn.remat, lambda module: module], ids=["remat", "plain"])
def test_a_module_in_a_scan_is_named_by_its_output(wrap):
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            stack = nn.scan(
                wrap(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            return stack(name="blocks")(x, None)[0]

    assert first(Deep(), X) == "blocks/log/output"
    # The first step is sound; the second one takes the logarithm of a negative number.
    variables = Deep().init(jax.random.key(0), X)
    variables["params"]["blocks"]["dense"]["bias"] -= 100.0
    assert first_nonfinite(Deep(), variables, jnp.abs(X) + 1.0) == "blocks/log/output"


def test_attention_is_named_by_the_side_where_it_begins():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            keys = Log(name="log")(x)
            return nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(x, keys)

    x = jnp.abs(jax.random.normal(jax.random.key(2), (2, 3, 4))) + 0.1
    assert first(Net(), x) is None
    variables = Net().init(jax.random.key(0), x)
    huge = jax.tree.map(lambda leaf: leaf, variables)
    huge["params"]["attention"]["query"]["bias"] += 3e38
    huge["params"]["attention"]["key"]["bias"] += 3e38
    assert first_nonfinite(Net(), huge, x) == "attention/product0/output"


def test_what_follows_the_last_layer_is_the_output_behind_it():
    def mlp(params, x):
        return jnp.log(jax.nn.relu(x @ params["first"]["w"]) @ params["last"]["w"] - 1e3)

    params = {"first": {"w": jnp.ones((4, 6))}, "last": {"w": jnp.ones((6, 2))}}
    assert first_nonfinite(mlp, {"params": params}, X) == "output, behind last"


def test_a_plain_functions_tensors_and_parameters_are_named():
    def mlp(params, x):
        x = x @ params["w1"] + params["b1"]
        return jnp.log(x) @ params["w2"] * params["gain"]

    params = {"w1": jnp.ones((4, 6)), "b1": jnp.ones(6), "w2": jnp.ones((6, 2)), "gain": 1.0}
    assert first_nonfinite(mlp, {"params": params}, X) == "w2/input"
    x = jnp.abs(X)
    assert first_nonfinite(mlp, {"params": params}, x) is None
    for name, said in (("w1", "w1/kernel"), ("b1", "b1"), ("w2", "w2/kernel"), ("gain", "gain")):
        broken = {**params, name: params[name] * jnp.nan}
        assert first_nonfinite(mlp, {"params": broken}, x) == said


def test_boxed_parameters_have_their_own_names():
    dense = nn.Dense(3, kernel_init=nn.with_partitioning(nn.initializers.ones, (None, "model")))
    variables = jax.tree.map(lambda x: x * jnp.nan, dense.init(jax.random.key(0), X))
    assert first_nonfinite(dense, variables, X) == "kernel"


def test_keyword_arguments_with_arrays_are_looked_at():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, *, tokens, scale):
            return nn.Dense(3, name="dense")(nn.Embed(7, 4, name="embed")(tokens) * scale)

    given = {"tokens": jnp.arange(5), "scale": jnp.ones(4)}
    variables = Net().init(jax.random.key(0), **given)
    assert first_nonfinite(Net(), variables, **given) is None
    given["scale"] = given["scale"] * jnp.nan
    assert first_nonfinite(Net(), variables, **given) == "dense/input"
