"""Parameters in Linen's boxes, which name axes for partitioning, pass through every tool."""

import functools
import io

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj

X = jax.random.normal(jax.random.key(0), (32, 8))
RULES = [bj.rule(".*/kernel", bj.ternary(fit="stored")), bj.rule(".*/input", bj.uniform(bits=8))]


def net(init):
    return nn.Sequential([nn.Dense(3, kernel_init=init), nn.relu, nn.Dense(2)])


PLAIN = net(nn.initializers.lecun_normal())
BOXED = net(nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model")))
FLOATS = PLAIN.init(jax.random.key(1), X), BOXED.init(jax.random.key(1), X)


@functools.cache
def attached(boxed):
    return bj.attach(bj.Quantized((PLAIN, BOXED)[boxed], RULES), FLOATS[boxed], X)


def report(model, variables):
    file = io.StringIO()
    bj.summary(model, variables, X, file=file)
    return file.getvalue()


def tools():
    """Each tool on a model and its quantized variables."""
    yield "site_costs", lambda net, v: bj.site_costs(net, X)
    yield "summary", report
    yield "doctor", lambda net, v: bj.doctor(net, v, X)
    yield "calibrate", lambda net, v: bj.calibrate(net, v, [X])
    yield "tap", lambda net, v: bj.tap(net, v, X)
    yield "codes_of", lambda net, v: [c.levels for c in bj.codes_of(net, v, X).values()]
    yield "model_bytes", lambda net, v: bj.model_bytes(v, bj.site_costs(net, X))
    yield "site_histograms", lambda net, v: bj.site_histograms(net, v, [X])["layers_2/input"].total
    yield "fisher", lambda net, v: bj.fisher(net, v, [X])
    yield (
        "solve_layers",
        lambda net, v: bj.solve_layers(net, v, [X], layers="layers_0", target="output"),
    )
    yield "float summary", lambda net, v: report(net.model, {"params": v["params"]})


FAST = ("site_costs", "model_bytes", "float summary")


@pytest.mark.parametrize(
    "tool",
    [pytest.param(t, id=n, marks=() if n in FAST else pytest.mark.slow) for n, t in tools()],
)
def test_boxes_change_nothing_for_a_tool(tool):
    found = []
    for boxed, module in enumerate((PLAIN, BOXED)):
        found.append(nn.meta.unbox(tool(bj.Quantized(module, RULES), attached(bool(boxed)))))
    assert jax.tree.structure(found[0]) == jax.tree.structure(found[1])
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_boxes_stay_where_they_are():
    found = attached(True)
    assert isinstance(found["params"]["layers_0"]["kernel"], nn.Partitioned)
    assert isinstance(found["params"]["layers_2"]["kernel"], jnp.ndarray)
