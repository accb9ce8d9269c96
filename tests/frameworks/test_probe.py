"""What every reader of a model shares: the model inside, one compilation, finite or not."""

import flax.linen as nn
import jax.numpy as jnp

import bitjax as bj
from bitjax.frameworks.finite import first_bad, is_finite
from bitjax.frameworks.probe import inner_model, jit_arrays, rules_of


def test_a_wrapped_model_gives_its_model_and_its_rules_and_a_float_one_has_none():
    rules = [bj.rule(".*", None)]
    assert inner_model(bj.Quantized(nn.Dense(2), rules)).features == 2
    assert list(rules_of(bj.Quantized(nn.Dense(2), rules))) == rules
    assert inner_model(nn.Dense(3)).features == 3 and rules_of(nn.Dense(3)) == ()


def test_leaves_that_are_no_arrays_stay_python_values_in_a_compiled_call():
    found = jit_arrays(lambda x, flag: x + 1 if flag else x, jnp.float32(1.0), True)
    assert float(found) == 2.0


def test_integers_are_finite_and_one_nan_is_enough():
    assert is_finite({"a": jnp.ones(2), "b": jnp.int32(1)}) and is_finite({})
    assert not is_finite({"a": jnp.ones(2), "b": jnp.array(jnp.nan)})


def test_a_variable_is_blamed_before_the_output_that_it_spoils():
    flags = {"input": jnp.array(True), "output": jnp.array(False)}
    assert first_bad([("conv", flags)], [("params", "conv", "bias")]) == "conv/bias"
    assert first_bad([("conv", flags)], []) == "conv/output"
