"""What every reader of a model shares: one kind of model, one compilation, one run."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import bitjax as bj
from bitjax.frameworks.compiled import jit_arrays
from bitjax.frameworks.models import as_model, float_model, rules_of
from bitjax.frameworks.probe import probe


def test_any_model_is_taken_with_its_rules_and_a_float_one_has_none():
    rules = [bj.rule(".*", None)]
    wrapped = bj.Quantized(nn.Dense(2), rules)
    assert as_model(wrapped) is wrapped and list(rules_of(wrapped)) == rules
    assert rules_of(nn.Dense(3)) == () and rules_of(lambda params, x: x) == ()
    assert float_model(wrapped).model.features == 2 and float_model(wrapped).rules == ()


@pytest.mark.parametrize("model", [nn.Dense, {"params": 1}, "resnet"])
def test_what_is_no_model_is_one_clear_line(model):
    with pytest.raises(TypeError, match=r"^`model` is [^\n]*: (give|call) [^\n]*$"):
        as_model(model)


def test_leaves_that_are_no_arrays_stay_python_values_in_a_compiled_call():
    found = jit_arrays(lambda x, flag: x + 1 if flag else x, jnp.float32(1.0), True)
    assert float(found) == 2.0


def test_records_come_in_forward_order_and_loops_and_branches_hand_out_none():
    def net(params, x):
        x = x @ params["first"]
        x = jax.lax.cond(jnp.sum(x) > 0, lambda x: x @ params["branch"], lambda x: x, x)
        x, _ = jax.lax.scan(lambda x, w: (x @ w, None), x, params["steps"])
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 9.0, lambda x: x @ params["loop"], x)

    params = {name: jnp.ones((3, 3)) for name in ("first", "branch", "loop")}
    params["steps"] = jnp.ones((4, 3, 3))
    found = probe(net, {"params": params}, (jnp.ones((2, 3)),), {}, lambda seen: seen.out)
    assert [(name, out.shape) for name, out in found.records] == [
        ("first", (2, 3)),
        ("steps", (4, 2, 3)),
    ]
    assert found.unseen == ("branch", "loop")
