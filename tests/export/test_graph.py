"""A deployed model's program as nodes: what is folded, shared, replayed and bounded."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.export.graph import graph_of
from tests.export.by_hand import RNG, Form, by_hand, zoo

X = RNG(0).normal(size=(2, 6)).astype(np.float32)


def ops(graph):
    return [node.op for node in graph.nodes]


def dense(name, **options):
    return nn.Dense(4, name=name, **options)


def graph(model, *layers, bits=4):
    return graph_of(by_hand(model, dict.fromkeys(layers, (Form(bits), Form(bits))), X), X)


class Two(nn.Module):
    @nn.compact
    def __call__(self, x):
        return dense("a")(x) + dense("b")(x)


class Cast(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="a", dtype=jnp.bfloat16)(x)


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(6, name="a")
        return layer(jnp.tanh(layer(x)))


class Idle(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense("idle")(x)
        shift = self.param("shift", nn.initializers.ones, (4,))
        return nn.relu(dense("a")(x)) / 3.0 + jnp.exp(shift) * 2.0


class Patches(nn.Module):
    @nn.compact
    def __call__(self, x):
        tokens = x.reshape(x.shape[0] * 2, 3)
        return dense("a")(tokens).reshape(x.shape[0], 8) + jnp.arange(x.shape[0])[:, None]


def test_sites_with_equal_numbers_on_one_tensor_are_quantized_once():
    fixed = by_hand(Two(), {"a": (Form(4), Form(4)), "b": (Form(2), Form(3))}, X)
    assert ops(graph_of(fixed, X)).count("quantize") == 2
    quant = fixed.variables["quant"]
    quant["b"]["input"] = quant["a"]["input"]
    found = graph_of(fixed, X)
    assert ops(found).count("quantize") == 1
    assert found.sites["a/input"].results == found.sites["b/input"].results


def test_what_variables_alone_give_is_computed_and_what_no_output_needs_is_gone():
    found = graph(Idle(), "a", "idle")
    assert ops(found) == ["quantize", "dot_general", "mul", "add", "max", "mul", "add"]
    inverse = next(found.constants[n.ins[1]] for n in found.nodes[5:6])
    # As XLA divides by a literal.
    assert inverse == np.float32(1) / np.float32(3)
    shift = found.constants[found.nodes[-1].ins[1]]
    assert shift.shape in ((4,), (1, 4)) and "idle/kernel" in found.kernels


def test_integers_pass_the_casts_of_their_layer():
    found = graph(Cast(), "a")
    assert ops(found)[:3] == ["quantize", "dot_general", "mul"]
    assert found.values[found.nodes[1].outs[0]].dtype == np.float32
    assert found.values[found.outputs[0]].dtype == jnp.bfloat16


def test_calls_of_one_layer_share_its_kernel():
    found = graph(Twice(), "a")
    assert len(found.sites["a/input"].results) == 2
    reads = [node.ins[1] for node in found.nodes if node.op == "dot_general"]
    assert reads == [found.kernels["a/kernel"].number] * 2


def test_kernels_are_the_integers_of_the_parameters():
    found, case = graph_of(zoo().deployed, zoo().x), zoo()
    for site, kernel in found.kernels.items():
        held = case.deployed.variables["params"][site.split("/")[0]]["kernel"]
        np.testing.assert_array_equal(kernel.levels, held)
        if kernel.whole:
            assert found.constants[kernel.number].dtype in (np.int8, np.int16)
            np.testing.assert_array_equal(found.constants[kernel.number], kernel.integers)
            assert kernel.first.min() <= kernel.integers.min()
            assert kernel.integers.max() <= kernel.last.max()
    # Scales of groups stand inside of a sum, and a table has no integers.
    floats = {site for site, kernel in found.kernels.items() if not kernel.whole}
    assert floats == {f"{name}/kernel" for name in ("group", "narrow", "table", "table_input")}


@pytest.mark.parametrize(
    ("bits", "kind"), [(8, "float32"), (13, "int32"), (16, "rounded")], ids=str
)
def test_sums_have_a_type_that_holds_them(bits, kind):
    found = graph(Two(), "a", "b", bits=bits)
    sums = [node for node in found.nodes if "accumulator" in node.params]
    assert [node.params["accumulator"] for node in sums] == [kind] * 2
    dtype = np.int32 if kind == "int32" else np.float32
    assert {found.values[node.outs[0]].dtype for node in sums} == {np.dtype(dtype)}


def test_sizes_that_follow_the_batch_are_marked():
    found = graph(Patches(), "a")
    assert found.batch == 2
    assert [v.growth for v in (found.values[i] for i in (*found.inputs, *found.outputs))] == [
        (1, 0), (1, 0)
    ]  # fmt: skip
    grown = [node.growth for node in found.nodes if node.growth]
    assert {"new_sizes": (2, 0)} in grown and any("shape" in growth for growth in grown)
    # What grows with the batch is no constant.
    assert not any(any(found.values[i].growth) for i in found.constants)


def test_a_model_for_one_batch_alone_says_so():
    def fn(params, x):
        return (x @ params["a"]["kernel"]) / x.shape[0]

    found = graph_of(function(fn), X)
    assert found.batch is None


def function(fn):
    """The layer `a` of a deployed model as a plain function."""
    fixed = by_hand(Two(), {"a": (Form(4), Form(4))}, X)
    rules = [bj.rule(rule.pattern, rule.quantizer) for rule in fixed.model.rules]
    return bj.Deployed(bj.Function(fn, rules), fixed.variables)


def scanned():
    def fn(params, x):
        return jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), None), x, params["a"]["kernel"])[0]

    fixed = function(fn)
    leaves = {"bits": np.full(2, 4.0), "scale": np.full(2, 0.5)}
    variables = {
        "params": {"a": {"kernel": np.zeros((2, 6, 6), np.float32)}},
        "quant": {"a": {"kernel": leaves, "input": leaves}},
    }
    return graph_of(bj.Deployed(fixed.model, variables), X)


def as_trained():
    fixed = by_hand(Two(), {"a": (Form(4), Form(4))}, X)
    return graph_of(fixed._replace(model=bj.Quantized(Two(), [bj.rule("a/.*", bj.lsq(4))])), X)


BAD = {
    "training": (lambda: graph_of(zoo().deployed, zoo().x, train=True), "pass train=False"),
    "not deployed": (as_trained, "'a/kernel' is quantized by 'lsq', whose numbers are not fixed"),
    "control flow": (scanned, "'a/kernel' is quantized inside a 'scan'"),
    "no pair": (lambda: graph_of(Two(), X), "`deployed`"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_deployed_evaluation_is_refused_in_one_line(case):
    call, said = BAD[case]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert said in str(caught.value) and "\n" not in str(caught.value)
