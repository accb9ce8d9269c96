"""Attaching quantizers to a float checkpoint, observing ranges, re-estimating statistics."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.costs.bits import bits_of, with_bits
from bitjax.frameworks.attach import attach
from bitjax.frameworks.calibrate import calibrate, reestimate_batch_stats
from bitjax.frameworks.codes import codes_of
from bitjax.frameworks.linen import Quantized
from bitjax.quantizers.bitlength import bitlength
from bitjax.quantizers.bitplane import bitplane
from bitjax.quantizers.learned_ranges import lsq
from bitjax.quantizers.uniform import uniform
from bitjax.rules import rule


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(6, name="first")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(3, name="last")(x)


X = jax.random.normal(jax.random.key(1), (8, 4))
FLOAT = Net().init(jax.random.key(0), X)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)


def quantized(kernel=None, inputs=None):
    return Quantized(Net(), [rule(".*/kernel", kernel), rule(".*/input", inputs)])


def test_attach_keeps_float_leaves_and_adds_what_init_makes():
    model = quantized(bitlength(init=3.0), uniform(bits=4))
    variables = attach(model, FLOAT, X)
    same({name: variables[name] for name in FLOAT}, FLOAT)
    made = model.init(jax.random.key(0), X)
    variables["params"]["first"]["bias"] = jnp.ones(6)
    assert float(FLOAT["params"]["first"]["bias"][0]) == 0.0
    variables["params"] = FLOAT["params"]
    shapes = jax.tree.map(jnp.shape, made)
    assert jax.tree.map(jnp.shape, variables) == shapes
    same(variables["quant"], made["quant"])
    assert float(variables["quant_stats"]["first"]["input"]["count"]) == 1
    assert np.all(np.isfinite(model.apply(variables, X)))


@pytest.mark.parametrize("signed", [False, True])
def test_attach_takes_planes_on_the_models_own_input(signed):
    model = quantized(None, bitplane(bits=4, signed=signed))
    variables = attach(model, FLOAT, jnp.abs(X))
    assert float(variables["quant"]["first"]["input"]["bits"]) == 4.0


def test_a_layers_name_may_hold_a_slash():
    class Slash(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="block/dense")(x)

    model = Quantized(Slash(), [rule(".*", uniform(8))])
    variables = calibrate(model, attach(model, model.model.init(jax.random.key(0), X), X), [X])
    sites = bits_of(variables)
    assert set(sites) == {"block/dense/kernel", "block/dense/input"}
    changed = with_bits(variables, dict.fromkeys(sites, 4))
    assert set(codes_of(model, changed, X)) == {"block/dense/kernel"}


def test_attach_fits_a_range_on_what_reaches_the_layer():
    variables = attach(quantized(None, uniform(bits=8)), FLOAT, X)
    reaches = Net().apply(
        FLOAT, X, capture_intermediates=lambda module, _: isinstance(module, nn.Dropout)
    )[1]["intermediates"]["Dropout_0"]["__call__"][0]
    high = variables["quant_stats"]["last"]["input"]["clip_max"]
    np.testing.assert_allclose(high, jnp.max(reaches), rtol=0.05)


def test_attach_keeps_sites_drops_sites_and_makes_sites():
    before = attach(quantized(bitlength(init=3.0)), FLOAT, X)
    before["quant"]["first"]["kernel"]["bits"] = jnp.float32(2.5)
    rules = [
        rule("first/.*", bitlength(init=8.0)),
        rule("last/input", lsq(bits=4, init_range="lsq")),
    ]
    after = attach(Quantized(Net(), rules), before, X)
    assert float(after["quant"]["first"]["kernel"]["bits"]) == 2.5
    same(after["quant_stats"]["first"]["kernel"], before["quant_stats"]["first"]["kernel"])
    assert float(after["quant"]["first"]["input"]["bits"]) == 8.0
    assert set(after["quant"]["last"]) == {"input"}
    assert set(after["quant"]["last"]["input"]) == {"bits", "scale"}
    assert attach(Quantized(Net()), after, X).keys() == FLOAT.keys()


def test_attach_keeps_leaves_of_the_same_name_and_shape_only():
    before = attach(quantized(bitlength(init=3.0)), FLOAT, X)
    after = attach(quantized(lsq(bits=8, init_range="lsq")), before, X)
    kernel = after["quant"]["first"]["kernel"]
    assert set(kernel) == {"bits", "scale"}
    assert float(kernel["bits"]) == 3.0
    wider = attach(quantized(bitlength(init=5.0, granularity="per_channel")), before, X)
    np.testing.assert_array_equal(wider["quant"]["first"]["kernel"]["bits"], np.full((1, 6), 5.0))


def test_ranges_behind_a_site_that_keeps_a_part_see_that_part():
    """The second layer's range is fitted behind 1 bit, which is kept, not 8, which is made."""
    before = attach(Quantized(Net(), [rule("first/kernel", bitlength(init=1.0))]), FLOAT, X)
    rules = [rule("first/kernel", bitlength(8.0, mode="sharpen")), rule("last/input", uniform())]
    model = Quantized(Net(), rules)
    after = attach(model, before, X)
    _, seen = model.apply(after, X, mutable=["quant_stats"])
    highest = seen["quant_stats"]["last"]["input"]["batch_max"]
    np.testing.assert_allclose(after["quant_stats"]["last"]["input"]["clip_max"], highest)


def test_a_site_fitted_at_once_is_what_init_would_make_under_scan():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.relu(nn.Dense(4, name="dense")(x)), None

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"params": 0, "quant": 0, "quant_stats": 0}
            stack = nn.scan(
                nn.remat(Block), variable_axes=axes, split_rngs={"params": True}, length=2
            )
            return stack(name="blocks")(x, None)[0]

    model = Quantized(Deep(), [rule(".*", bitlength(init=4.0))])
    made = model.init(jax.random.key(0), X)
    variables = attach(model, {"params": made["params"]}, X)
    assert variables["quant"]["blocks"]["dense"]["kernel"]["bits"].shape == (2,)
    kept = {**variables, "quant": jax.tree.map(lambda bits: bits - 1.0, variables["quant"])}
    same(attach(model, kept, X), kept)


def test_attach_wants_a_quantized_model_and_rules_that_do_something():
    with pytest.raises(TypeError, match=r"the Linen module Net: call bitjax\.Quantized\(model"):
        attach(Net(), FLOAT, X)
    with pytest.raises(ValueError, match="rule 'middle/.*' does nothing"):
        attach(Quantized(Net(), [rule("middle/.*", lsq(init_range="lsq"))]), FLOAT, X)


def test_nan_in_the_batch_is_reported_with_its_site():
    broken = X.at[3, 1].set(jnp.nan)
    for quantizer in (lsq(bits=4, init_range="lsq"), uniform()):
        with pytest.raises(ValueError, match="NaN or inf first at first/input"):
            attach(quantized(None, quantizer), FLOAT, broken)
        model = quantized(None, quantizer)
        variables = attach(model, FLOAT, X)
        with pytest.raises(ValueError, match="batch 1 gives NaN or inf first at first/input"):
            calibrate(model, variables, [X, broken])


def test_calibrate_averages_over_batches_and_starts_anew():
    model = quantized(lsq(bits=4, init_range="lsq"), uniform(bits=8, decay=0.5))
    variables = attach(model, FLOAT, 100.0 * X)
    after = calibrate(model, variables, [X, 2.0 * X, 6.0 * X])
    stats = after["quant_stats"]["first"]["input"]
    np.testing.assert_allclose(stats["clip_max"], 3.0 * jnp.max(X), rtol=1e-6)
    np.testing.assert_allclose(stats["clip_min"], 3.0 * jnp.min(X), rtol=1e-6)
    np.testing.assert_allclose(stats["batch_max"], 6.0 * jnp.max(X), rtol=1e-6)
    assert float(stats["count"]) == 3.0
    same({n: t for n, t in after.items() if n != "quant_stats"},
         {n: t for n, t in variables.items() if n != "quant_stats"})  # fmt: skip
    tuples = calibrate(model, variables, iter([(X,), (2.0 * X,), (6.0 * X,)]))
    same(tuples, after)


def test_calibrate_compiles_once():
    calls = []

    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x):
            calls.append(1)
            return nn.Dense(2)(x)

    model = Quantized(Counting(), [rule(".*", uniform())])
    variables = model.init(jax.random.key(0), X)
    calls.clear()
    calibrate(model, variables, [X] * 4)
    assert len(calls) == 1


@pytest.mark.parametrize("function", [calibrate, reestimate_batch_stats])
def test_no_batches_is_an_error(function):
    with pytest.raises(ValueError, match=f"{function.__name__} needs at least one batch"):
        function(
            quantized(lsq(init_range="lsq")),
            attach(quantized(lsq(init_range="lsq")), FLOAT, X),
            iter(()),
        )


@pytest.mark.parametrize("wrapped", [False, True])
def test_reestimated_statistics_are_plain_averages(wrapped):
    model = quantized(uniform(bits=3), uniform(bits=3)) if wrapped else Net()
    variables = attach(model, FLOAT, X) if wrapped else FLOAT
    poisoned = {
        **variables,
        "batch_stats": jax.tree.map(lambda s: s * jnp.nan, FLOAT["batch_stats"]),
    }
    batches = [X, 2.0 * X + 1.0, X - 3.0]
    after = reestimate_batch_stats(model, poisoned, batches)
    inputs = [
        model.apply(variables, x, capture_intermediates=lambda m, _: m.name == "first")[1][
            "intermediates"
        ]["first"]["__call__"][0]
        for x in batches
    ]
    stats = after["batch_stats"]["norm"]
    np.testing.assert_allclose(stats["mean"], np.mean([h.mean(0) for h in inputs], 0), atol=1e-5)
    np.testing.assert_allclose(stats["var"], np.mean([h.var(0) for h in inputs], 0), rtol=1e-4)
    rest = {name: tree for name, tree in after.items() if name != "batch_stats"}
    same(rest, {name: tree for name, tree in variables.items() if name != "batch_stats"})


def test_a_model_without_batch_norm_has_nothing_to_reestimate():
    variables = nn.Dense(2).init(jax.random.key(0), X)
    same(reestimate_batch_stats(nn.Dense(2), variables, [X]), variables)


class Shortened(nn.Module):
    """A residual sum whose shortcut takes every second feature and pads one of zeros."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(6, name="first")(x))
        y = nn.Dense(4, name="second")(x)
        x = nn.relu(y + jnp.pad(x[:, ::2], ((0, 0), (0, 1))))
        return nn.Dense(3, name="last")(x)


def test_a_tensor_that_a_layer_and_a_sum_read_has_the_same_range_for_both():
    rules = [rule(".*/kernel", None), rule(".*", uniform(bits=4, signed=False, range="mse"))]
    model = Quantized(Shortened(), rules, sums=True)
    variables = attach(model, Shortened().init(jax.random.key(0), X), X)
    stats = calibrate(model, variables, [X, 2.0 * X])["quant_stats"]
    same(stats["second"]["input"], stats["sum0"]["right"])
    assert float(stats["sum0"]["right"]["clip_max"]) > 0
