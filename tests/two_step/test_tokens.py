"""Layers of language models: inputs that several layers read, padding, GPTQ by the same way."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.frameworks.targets import plan_layers
from bitjax.models import Llama
from bitjax.solvers import adaround_codes, gptq_codes
from bitjax.two_step.solve import solve_each
from bitjax.two_step.together import groups_of

KEY = jax.random.key(0)
LOW = bj.low_bit(bits=3, fit="stored", narrow=False)
NET = Llama(vocab_size=16, width=8, layers=1, heads=2, kv_heads=1, hidden=12)
MODEL = bj.Quantized(NET, [bj.rule("embed/.*", None), bj.rule(".*/kernel", LOW)])
TOKENS = jax.random.randint(KEY, (12, 10), 0, 16)
# Documents of 4 to 10 tokens; what lies behind them is padding.
COUNTS = (jnp.arange(10) < jnp.arange(12)[:, None] % 7 + 4).astype(jnp.float32)
SETTINGS = {"positions": 10, "target": "sum"}


@functools.cache
def made():
    return MODEL.init(KEY, TOKENS)


def padded(filling):
    return jnp.where(COUNTS > 0, TOKENS, filling)


def solve(tokens, **settings):
    return bj.solve_layers(
        MODEL, made(), [tokens[:6], tokens[6:]], weights=weights_of, **SETTINGS, **settings
    )


def weights_of(batch):
    return (
        COUNTS[:6] if jnp.array_equal(COUNTS[:6] * batch, COUNTS[:6] * TOKENS[:6]) else COUNTS[6:]
    )


@pytest.mark.slow
def test_layers_that_read_one_array_are_solved_together():
    inputs = bj.Inputs((TOKENS,))
    plans = plan_layers(MODEL, made(), *inputs, target="sum")
    found = groups_of(MODEL, made(), inputs, plans)
    names = [[plan.layer.rpartition("/")[2] for plan in group] for _, group in found]
    assert names == [["wq", "wk", "wv"], ["wo"], ["w1", "w3"], ["w2"]]
    assert [first for first, _ in found] == [0, 3, 4, 6]
    assert [group[0].target for _, group in found] == ["output", "sum", "output", "sum"]


@pytest.mark.slow
def test_what_fills_documents_up_changes_nothing():
    one, other = (solve(padded(filling))["params"] for filling in (3, 9))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    whole = bj.solve_layers(MODEL, made(), [padded(3)], **SETTINGS)["params"]
    wq = "layers_0", "attention", "wq", "kernel"
    same = (functools.reduce(lambda tree, name: tree[name], wq, tree) for tree in (one, whole))
    assert not np.array_equal(*same)  # which counts the filling


@pytest.mark.slow
def test_a_solve_that_stops_inside_a_group_is_taken_up_again():
    batches = lambda: [TOKENS]  # noqa: E731  a list at every call
    whole = [v for v, _ in solve_each(MODEL, made(), batches)]
    (left, *_) = solve_each(MODEL, whole[0], batches, start=1, teacher=made())
    jax.tree.map(np.testing.assert_array_equal, dict(left[0]), dict(whole[1]))


def dense(bias):
    x = jax.random.normal(KEY, (200, 6)) @ jax.random.normal(jax.random.key(1), (6, 6))
    layer = nn.Dense(5, use_bias=bias)
    model = bj.Quantized(layer, [bj.rule("kernel", LOW)])
    return x, model, model.init(jax.random.key(2), x)


@pytest.mark.slow
def test_gptq_is_a_setting():
    x, model, variables = dense(bias=False)
    gptq = {"start": "gptq", "correction": 0.0, "ridge": 0.0, "max_sweeps": 0}
    found = bj.solve_layers(model, variables, [x], **gptq)
    w = np.asarray(variables["params"]["kernel"]).T
    _, scale = bj.rounded_codes(w, 3, bj.Axes((0,), -1), narrow=False)
    gram = np.asarray(x, np.float64).T @ np.asarray(x, np.float64) / 200
    codes = gptq_codes(gram, w, np.arange(-4, 4), scale[:, 0]).value
    np.testing.assert_allclose(found["params"]["kernel"].T, scale * codes, rtol=1e-4)
    np.testing.assert_allclose(found["quant"]["kernel"]["scale"][0], scale[:, 0], rtol=1e-5)


@pytest.mark.parametrize("patches", [200, 4])
def test_adaround_is_a_setting_whatever_the_number_of_patches(patches):
    x, model, variables = dense(bias=False)
    x = x[:patches]
    adaround = {"start": "adaround", "max_sweeps": 0, "target": "output"}
    found = bj.solve_layers(model, variables, [x], **adaround)
    w = np.asarray(variables["params"]["kernel"]).T
    _, scale = bj.rounded_codes(w, 3, bj.Axes((0,), -1), narrow=False)
    gram = np.asarray(x, np.float64).T @ np.asarray(x, np.float64) / patches
    codes = adaround_codes(gram, w, np.arange(-4, 4), scale[:, 0]).value
    np.testing.assert_allclose(found["params"]["kernel"].T, scale * codes, rtol=1e-4)


@pytest.mark.parametrize("start", ["adaround", pytest.param("gptq", marks=pytest.mark.slow)])
def test_one_filter_of_zeros_and_a_constant_input_give_zeros_and_not_nan(start):
    x = jnp.ones((3, 6))  # fewer patches than inputs, and a Gram matrix of rank 1
    model = bj.Quantized(nn.Dense(1, use_bias=False), [bj.rule("kernel", LOW)])
    variables = model.init(jax.random.key(2), x)
    zeros = bj.attach(model, {"params": {"kernel": jnp.zeros((6, 1))}}, x)
    for given in (variables, zeros):
        found = bj.solve_layers(model, given, [x], start=start, max_sweeps=0, target="output")
        assert bool(jnp.isfinite(model.apply(found, x)).all())
    assert not found["params"]["kernel"].any()


@pytest.mark.slow
@pytest.mark.parametrize("bias", [True, False])
def test_the_best_start_is_hardly_worse_than_either(bias):
    x, model, variables = dense(bias)
    wanted = model.with_rules(()).apply({"params": variables["params"]}, x)

    def error(start):
        found = bj.solve_layers(model, variables, [x], start=start, ridge=0.0)
        return float(jnp.mean((model.apply(found, x) - wanted) ** 2))

    assert error("best") < 1.05 * min(error("rounded"), error("gptq"))


@pytest.mark.slow
def test_a_correction_of_0_asks_for_what_the_float_kernel_gives():
    # The first layer's error is then none of the second one's business.
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4, name="b")(nn.tanh(nn.Dense(6, name="a")(x)))

    x = jax.random.normal(KEY, (300, 5))
    rules = [
        bj.rule("a/kernel", bj.ternary(fit="stored")),
        bj.rule("b/kernel", bj.low_bit(4, fit="stored")),
    ]
    model = bj.Quantized(Two(), rules)
    variables = model.init(KEY, x)
    moved, stays = (
        bj.solve_layers(model, variables, [x], correction=c, ridge=0.0)["params"]["b"]
        for c in (1.0, 0.0)
    )
    own = variables["params"]["b"]["kernel"]
    assert jnp.abs(stays["kernel"] - own).mean() < 0.7 * jnp.abs(moved["kernel"] - own).mean()
    assert jnp.abs(stays["bias"]).max() < 0.05  # the float kernel's is 0


def test_weights_that_cannot_be_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"layer 'layers_0/.*`weights` must give one number"):
        bj.solve_layers(MODEL, made(), [TOKENS], weights=lambda batch: batch[:1], layers=".*wq")
    with pytest.raises(ValueError, match="`weights` leave no patch"):
        bj.solve_layers(MODEL, made(), [TOKENS], weights=jnp.zeros_like, layers=".*wq")
    with pytest.raises(ValueError, match="`start` must be one of"):
        bj.solve_layers(MODEL, made(), [TOKENS], start="otwn")
