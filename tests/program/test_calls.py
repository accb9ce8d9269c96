"""A layer that is called several times has one range, which covers all calls of a batch."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bitjax as bj

QUANTIZERS = {
    "lsq": bj.lsq(8),
    "uniform": bj.uniform(8),
    "mse": bj.uniform(8, range="mse"),
    "channels": bj.uniform(8, granularity="per_channel"),
    "bitlength": bj.bitlength(8.0),
    "learned": bj.bitlength(8.0, range="learned"),
    "pact": bj.pact(8, signed=True),
}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 4)).astype(np.float32)
SEQUENCE = RNG.normal(size=(3, 6, 4)).astype(np.float32)
W = {"w": RNG.normal(size=(4, 4)).astype(np.float32)}
STACK = {"w": RNG.normal(size=(3, 4, 4)).astype(np.float32)}


def twice(params, x):
    return jnp.stack([x @ params["w"], 100.0 * x @ params["w"]])


def remat(params, x):
    return jax.checkpoint(twice)(params, x)


def mostly_large(params, x):
    small = lax.cond(x[0, 0] > 1e9, lambda x: x, lambda x: 100.0 * x @ params["w"], x)
    return jnp.stack([small, x @ params["w"]])


def loop(params, x):
    """Each step's input is ten times as large."""
    return lax.fori_loop(0, 3, lambda i, y: y + 10.0**i * x @ params["w"], jnp.zeros_like(x))


def loop_until(params, x):
    def step(carry):
        i, y = carry
        return i + 1, y + 10.0**i * x @ params["w"]

    return lax.while_loop(lambda carry: carry[0] < 3, step, (0, jnp.zeros_like(x)))[1]


def layers(params, x):
    """Layers of a scan, each of which calls its kernel twice."""

    def body(x, w):
        return jnp.tanh(x @ w) + 10.0 * jnp.tanh(x) @ w, None

    return lax.scan(body, x, params["w"])[0]


def time(params, x):
    """A kernel that the steps of a scan share; they grow from 0."""

    def body(h, x):
        h = jnp.tanh(h @ params["w"] + x)
        return h, 10.0 * h

    return lax.scan(body, jnp.zeros_like(x[:, 0]), jnp.moveaxis(x, 1, 0))[1]


FUNCTIONS = {
    twice: (W, X), remat: (W, X), mostly_large: (W, X), loop: (W, X), loop_until: (W, X),
    layers: (STACK, X), time: (W, SEQUENCE),
}  # fmt: skip
OF_ALL = ("lsq", "uniform")  # quantizers of each kind, one that learns and one that observes


def cases():
    for name in QUANTIZERS:
        yield pytest.param(twice, name, id=f"twice-{name}")
    for function in FUNCTIONS:
        for name in OF_ALL:
            if function is not twice:
                yield pytest.param(function, name, id=f"{function.__name__}-{name}")


def error(out, exact):
    return float(np.abs(np.asarray(out) - exact).max() / np.abs(exact).max())


def runs(net, params, x):
    """The float output; then of new quantizers, in training, and with what that observed."""

    @jax.jit
    def run(params, x):
        state = net.init(params, x)
        out, _ = net.apply(params, state, x)
        trained, moved = net.apply(params, state, x, train=True, update=True)
        after, _ = net.apply(params, moved, x)
        return net.fn(params, x), (out, trained, after), moved

    return run(params, x)


def inputs(function, quantizer):
    return bj.Function(function, (bj.rule("input", quantizer),))


@pytest.mark.parametrize(("function", "name"), list(cases()))
def test_the_range_of_a_layer_covers_all_of_its_calls(function, name):
    exact, outs, moved = runs(inputs(function, QUANTIZERS[name]), *FUNCTIONS[function])
    limit = 0.04 if function is layers else 0.02  # six products in a row add up their errors
    for out, when in zip(outs, ("at first", "in training", "after a batch"), strict=True):
        assert error(out, np.asarray(exact)) < limit, when
    stats = moved.get("quant_stats", {}).get("input", {})
    assert np.all(stats.get("count", 1.0) == 1.0), "the batch counts once"


def test_each_step_of_a_scan_has_a_range_of_its_own_that_covers_both_calls():
    *_, moved = runs(inputs(layers, QUANTIZERS["uniform"]), STACK, X)
    stats, x = moved["quant_stats"]["input"], X
    largest = []
    for w in STACK["w"]:
        largest.append(max(np.abs(x).max(), 10.0 * np.abs(np.tanh(x)).max()))
        x = np.tanh(x @ w) + 10.0 * np.tanh(x) @ w
    assert stats["clip_max"].shape == (3,)
    found = np.maximum(stats["clip_max"], -stats["clip_min"])
    np.testing.assert_allclose(found, largest, rtol=0.02)


def test_two_batches_are_two_counts_and_the_average_is_of_whole_batches():
    net = inputs(twice, bj.uniform(8, decay=0.5))
    state = net.init(W, X)
    for x in (X, 3.0 * X):
        _, state = net.apply(W, state, x, train=True, update=True)
    stats = state["quant_stats"]["input"]
    assert float(stats["count"]) == 2.0
    np.testing.assert_allclose(stats["batch_max"], 300.0 * X.max(), rtol=1e-6)
    np.testing.assert_allclose(stats["clip_max"], 200.0 * X.max(), rtol=1e-6)


@pytest.mark.parametrize("name", ["uniform", "mse", "channels"])
def test_calibrating_covers_all_calls_too(name):
    net = inputs(twice, QUANTIZERS[name])
    variables = bj.attach(net, {"params": W}, 0.1 * X)
    variables = bj.calibrate(net, variables, [X, X])
    out, _ = net.apply(W, {k: variables[k] for k in ("quant", "quant_stats")}, X)
    assert error(out, np.asarray(twice(W, X))) < 0.02
    assert float(variables["quant_stats"]["input"]["count"]) == 2.0


def test_a_branch_that_was_not_taken_leaves_the_range_as_it_is():
    net = inputs(mostly_large, bj.uniform(8))
    state = net.init(W, X)
    _, moved = net.apply(W, state, X, train=True, update=True)
    np.testing.assert_allclose(moved["quant_stats"]["input"]["clip_max"], 100.0 * X.max())
    taken = X.copy()
    taken[0, 0] = 2e9  # the branch without the layer
    _, moved = net.apply(W, state, taken, train=True, update=True)
    np.testing.assert_allclose(moved["quant_stats"]["input"]["clip_max"], 2e9)


def test_devices_merge_the_calls_of_all_of_them():
    alone = inputs(twice, bj.uniform(8))
    net = alone.with_rules(alone.rules, axis_name="devices")
    state = alone.init(W, X)

    def step(net, x):
        return net.apply(W, state, x, train=True, update=True)[1]["quant_stats"]["input"]

    parts = X.reshape(2, 8, 4) * np.array([1.0, 5.0], np.float32)[:, None, None]
    both = jax.jit(jax.vmap(partial(step, net), axis_name="devices"))(parts)
    one = jax.jit(partial(step, alone))(parts.reshape(16, 4))
    for name, value in one.items():
        np.testing.assert_allclose(both[name], [value, value], rtol=1e-6, err_msg=name)


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.RNN(nn.LSTMCell(4, name="cell"))(x)


@pytest.mark.parametrize("name", OF_ALL)
def test_a_recurrent_cell_starts_from_all_steps_and_takes_any_length(name):
    model, rules = Recurrent(), [bj.rule(".*/h[ifgo]/input", QUANTIZERS[name])]
    net = bj.Quantized(model, rules)
    params = jax.jit(model.init)(jax.random.key(0), SEQUENCE)
    made = jax.jit(lambda v, x: net.apply(v, x, mutable=["quant", "quant_stats"])[1])
    variables = {**params, **made(params, SEQUENCE)}
    assert sorted(variables["quant"]["cell"]) == ["hf", "hg", "hi", "ho"]
    run = jax.jit(net.apply)
    exact = model.apply(params, SEQUENCE)
    assert error(run(variables, SEQUENCE), np.asarray(exact)) < 0.02
    site = variables[{"lsq": "quant", "uniform": "quant_stats"}[name]]["cell"]["hi"]["input"]
    largest = float(jnp.abs(exact[:, :-1]).max())  # the last step's output is read by none
    if name == "uniform":
        found = max(site["clip_max"], -site["clip_min"])
        np.testing.assert_allclose(found, largest, rtol=0.01)
    else:  # from h = 0 alone the scale would be 1
        assert 0.5 * largest < 127 * site["scale"] < 1.5 * largest
    for length in (1, 3):
        assert run(variables, SEQUENCE[:, :length]).shape == (3, length, 4)


class Norms(nn.Module):
    """One normalisation, called twice on different data."""

    @nn.compact
    def __call__(self, x):
        norm = nn.BatchNorm(use_running_average=True, name="norm")
        return norm(x) + norm(3.0 * x + 1.0)


def test_batch_statistics_are_the_mean_of_both_calls():
    variables = Norms().init(jax.random.key(0), X)
    batches = [X, 2.0 * X, X[:2]]  # the last one is smaller: another trace
    stats = bj.reestimate_batch_stats(Norms(), variables, batches)["batch_stats"]["norm"]
    calls = [c for x in batches for c in (x, 3.0 * x + 1.0)]
    np.testing.assert_allclose(stats["mean"], np.mean([c.mean(0) for c in calls], 0), atol=1e-5)
    np.testing.assert_allclose(stats["var"], np.mean([c.var(0) for c in calls], 0), rtol=1e-4)


def test_layers_scanned_within_a_scan_over_time_are_as_layers_called_in_turn():
    def scanned(params, x):
        def step(h, _):
            return lax.scan(lambda h, w: (2.0 * jnp.tanh(h @ w), None), h, params["w"])

        return lax.scan(step, x, None, length=3)[0]

    def unrolled(params, x):
        for _ in range(3):
            for layer in params.values():
                x = 2.0 * jnp.tanh(x @ layer["w"])
        return x

    # Small enough that no tanh saturates: values at the end of a range would round either way.
    w = 0.3 * jax.random.normal(jax.random.key(1), (2, X.shape[1], X.shape[1]))
    each = {f"layer{i}": {"w": w[i]} for i in range(2)}
    rules = [bj.rule(".*", bj.uniform(4))]
    found = []
    for fn, params in ((scanned, {"w": w}), (unrolled, each)):
        net = bj.Function(fn, rules)
        state = jax.jit(net.init)(params, X)
        found.append(jax.jit(partial(net.apply, train=True, update=True))(params, state, 2.0 * X))
    (out, state), (expected, states) = found
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for i in range(2):
        stats = jax.tree.map(lambda leaf, i=i: leaf[i], state["quant_stats"])
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-5),
            stats,
            states["quant_stats"][f"layer{i}"],
        )
        assert stats["input"]["count"] == 1.0  # the range moved once


class NormStep(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return 2.0 * nn.BatchNorm(use_running_average=True, name="norm")(x) + 1.0, None


def test_batch_statistics_of_a_scan_count_its_steps_and_not_its_traces():
    axes = {"params": 0, "batch_stats": 0}
    deep = nn.scan(NormStep, axes, split_rngs={"params": True}, length=2)()
    variables = deep.init(jax.random.key(0), X, None)
    stats = bj.reestimate_batch_stats(deep, variables, [(X, None)])["batch_stats"]["norm"]
    np.testing.assert_allclose(stats["mean"], [X.mean(0), jnp.ones(X.shape[1])], atol=1e-5)


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(4, name="dense")
        return jnp.stack([dense(x), dense(100.0 * x)])


@pytest.mark.parametrize("name", OF_ALL)
def test_by_request_each_call_has_a_range_of_its_own(name):
    net = bj.Quantized(Twice(), [bj.rule(".*/input", QUANTIZERS[name])], calls="each")
    variables = jax.jit(net.init)(jax.random.key(0), X)
    exact = Twice().apply({"params": variables["params"]}, X)
    out = jax.jit(net.apply)(variables, X)
    for one, other in zip(out, np.asarray(exact), strict=True):  # the small call by itself
        assert error(one, other) < 0.02
    collection, leaf = {"lsq": ("quant", "scale"), "uniform": ("quant_stats", "clip_max")}[name]
    found = variables[collection]["dense"]
    assert sorted(found) == ["input", "input@2"]
    np.testing.assert_allclose(found["input@2"][leaf], 100.0 * found["input"][leaf], rtol=0.03)


def test_rules_name_each_call_or_all_of_them():
    rules = [bj.rule("dense/input@2", bj.lsq(2)), bj.rule("dense/(kernel|input)", bj.lsq(4))]
    net = bj.Quantized(Twice(), rules, calls="each")
    quant = jax.eval_shape(net.init, jax.random.key(0), X)["quant"]["dense"]
    assert sorted(quant) == ["input", "input@2", "kernel"]
    costs = bj.site_costs(net, X)
    assert {site: (c.macs, c.role) for site, c in costs.items()} == {
        "dense/kernel": (32, "kernel"),
        "dense/input": (16, "input"),
        "dense/input@2": (16, "input"),
    }
    bits = {"dense/kernel": 4.0, "dense/input": 4.0, "dense/input@2": 2.0}
    assert float(bj.bops(bits, costs)) == 16 * 4 * 4 + 16 * 4 * 2
    shared = bj.Quantized(Twice(), rules)
    with pytest.raises(ValueError, match="rule 'dense/input@2' does nothing"):
        jax.eval_shape(shared.init, jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"`calls` must be one of \['shared', 'each'\]"):
        jax.eval_shape(net.clone(calls="own").init, jax.random.key(0), X)
