"""Residual sums whose other addend has kernels of its own to be solved."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.frameworks.targets import float_at, plan_layers
from bitjax.two_step.data import addend
from bitjax.two_step.together import twice

X = jax.random.normal(jax.random.key(0), (400, 16))
RULES = [bj.rule(".*/kernel", bj.ternary(fit="stored"))]


class Projected(nn.Module):
    """A branch of two layers and a projection that are added, in one of two orders."""

    first: str = "branch"

    @nn.compact
    def __call__(self, x):
        if self.first == "projection":
            shortcut = nn.Dense(16, name="projection")(x)
        y = nn.Dense(16, name="last")(nn.relu(nn.Dense(16, name="inner")(x)))
        if self.first == "branch":
            shortcut = nn.Dense(16, name="projection")(x)
        return y + shortcut


def made(first="branch"):
    model = bj.Quantized(Projected(first), RULES)
    return model, model.init(jax.random.key(1), X)


def test_a_layer_is_solved_once_more_when_its_sums_other_addend_is():
    orders = {
        "branch": ["inner", "last", "projection", "last"],
        "projection": ["projection", "inner", "last", "projection"],
    }
    for first, order in orders.items():
        model, variables = made(first)
        plans = plan_layers(model, variables, (X,), target="sum")
        again = twice(model, variables, ((X,), {}), plans)
        assert [plan.layer for plan in again] == order


def test_what_is_not_solved_yet_is_float_in_the_other_addend():
    model, variables = made()
    beside = model.with_rules(float_at(model.rules, ["last", "projection"]))
    found, rounded = (addend(m, variables, (X,), {}, "last") for m in (beside, model))
    kernel, bias = (variables["params"]["projection"][name] for name in ("kernel", "bias"))
    np.testing.assert_allclose(found, X @ kernel + bias, atol=1e-5)
    assert float(jnp.mean((rounded - found) ** 2)) > 0.05 * float(jnp.var(found))


@pytest.mark.slow
@pytest.mark.parametrize("first", ["branch", "projection"])
def test_layers_of_a_sum_repair_each_other(first):
    model, variables = made(first)
    wanted = Projected(first).apply({"params": variables["params"]}, X)
    reports = []

    def error(target):
        found = bj.solve_layers(
            model, variables, [X], target=target, ridge=0.0, log=reports.append
        )  # fmt: skip
        return float(jnp.mean((model.apply(found, X) - wanted) ** 2))

    assert error("sum") < 0.75 * error("output")
    assert len(reports) == 4 + 3
