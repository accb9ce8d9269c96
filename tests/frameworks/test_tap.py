"""Reading layers' tensors: eagerly, under jit, in scanned and rematerialised layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.costs.bits import bits_of
from bitjax.frameworks.attach import attach
from bitjax.frameworks.costs import site_costs
from bitjax.frameworks.finite import first_nonfinite
from bitjax.frameworks.linen import Quantized
from bitjax.frameworks.probe import probe
from bitjax.frameworks.tap import tap
from bitjax.quantizers.learned_ranges import lsq
from bitjax.quantizers.uniform import uniform
from bitjax.rules import rule

AXES = {"params": 0, "quant": 0, "quant_stats": 0}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        y = nn.Dense(4, name="dense")(x)
        return x + nn.relu(nn.LayerNorm(name="norm")(y)), None


class Net(nn.Module):
    lists: bool = True  # whether the scan lists the quantizers' collections

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), name="conv")(x)
        x = nn.BatchNorm(use_running_average=not train, name="bn")(x)
        x = jnp.mean(nn.relu(x), axis=(1, 2))
        axes = AXES if self.lists else {"params": 0}
        stack = nn.scan(nn.remat(Block), variable_axes=axes, split_rngs={"params": True}, length=3)
        x, _ = stack(name="blocks")(x, None)
        return nn.remat(nn.Dense)(2, name="head")(x)


X = jax.random.normal(jax.random.key(1), (5, 6, 6, 3))
FLOAT = Net().init(jax.random.key(0), X)
RULES = [rule(".*/kernel", uniform(bits=3)), rule(".*/input", lsq(bits=4, init_range="lsq"))]
QUANTIZED = Quantized(Net(), RULES)
VARIABLES = attach(QUANTIZED, FLOAT, X)


def test_a_float_model_shows_its_inputs_kernels_outputs_and_norms():
    found = tap(Net(), FLOAT, X)
    assert list(found) == ["conv", "blocks/dense", "head"]
    np.testing.assert_array_equal(found["conv"].input, X)
    np.testing.assert_array_equal(found["conv"].kernel, FLOAT["params"]["conv"]["kernel"])
    np.testing.assert_allclose(found["head"].output, Net().apply(FLOAT, X), rtol=1e-5)
    assert found["blocks/dense"].input.shape == (3, 5, 4)
    assert {name: t.norm for name, t in found.items()} == {
        "conv": "bn", "blocks/dense": "blocks/norm", "head": None
    }  # fmt: skip


def test_a_quantized_model_shows_what_its_layers_computed_with():
    found = tap(QUANTIZED, VARIABLES, X, layers="conv|head")
    assert list(found) == ["conv", "head"]
    assert len(np.unique(found["conv"].kernel)) <= 8
    assert len(np.unique(found["head"].input)) <= 16
    np.testing.assert_allclose(found["head"].output, QUANTIZED.apply(VARIABLES, X), rtol=1e-5)


def test_tapping_does_not_move_the_ranges_that_it_shows():
    model = Quantized(Net(), [rule(".*/input", uniform(bits=2))])
    variables = attach(model, FLOAT, X)
    wide = 50.0 * X  # would widen the range if this batch were observed
    np.testing.assert_allclose(
        tap(model, variables, wide)["head"].output, model.apply(variables, wide), rtol=1e-5
    )
    highest = float(jnp.max(tap(model, variables, wide, layers="conv")["conv"].input))
    assert highest < 1.3 * float(jnp.max(X))


def test_it_works_under_jit_and_in_training():
    @jax.jit
    def outputs(variables, x):
        return {name: t.output for name, t in tap(QUANTIZED, variables, x).items()}

    eager = tap(QUANTIZED, VARIABLES, X)
    for name, out in outputs(VARIABLES, X).items():
        np.testing.assert_allclose(out, eager[name].output, rtol=1e-4, atol=1e-5)
    trained = tap(QUANTIZED, VARIABLES, X, train=True)
    expected, _ = QUANTIZED.apply(VARIABLES, X, train=True, mutable=["batch_stats", "quant_stats"])
    np.testing.assert_allclose(trained["head"].output, expected, rtol=1e-5, atol=1e-6)


def test_nothing_is_left_behind():
    def out(seen):
        return seen.out

    assert "quant_stats" not in probe(QUANTIZED, VARIABLES, (X,), {}, out).updates
    updated = probe(QUANTIZED, VARIABLES, (X,), {}, out, observing=True).updates["quant_stats"]
    assert jax.tree.structure(updated) == jax.tree.structure(VARIABLES["quant_stats"])


def test_a_transform_need_not_list_the_collections():
    assert list(tap(Net(lists=False), FLOAT, X)) == ["conv", "blocks/dense", "head"]


def test_without_scopes_a_normalisation_has_the_path_of_its_parameters():
    def net(params, x):
        x = x @ params["dense"]["w"]
        x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
        x = (x * params["norm"]["gamma"]) @ params["second"]["w"]
        return (x - params["bn"]["mean"]) / jnp.sqrt(params["bn"]["var"] + 1e-5)

    params = {
        "dense": {"w": jnp.ones((3, 4))}, "norm": {"gamma": jnp.ones(4)},
        "second": {"w": jnp.ones((4, 2))}, "bn": {"mean": jnp.ones(2), "var": jnp.ones(2)},
    }  # fmt: skip
    found = tap(net, {"params": params}, X[:, 0, 0])
    assert {name: t.norm for name, t in found.items()} == {"dense": "norm", "second": "bn"}


def test_a_layer_in_a_loop_is_named():
    def net(params, x):
        x = jax.lax.while_loop(lambda x: jnp.max(x) < 9.0, lambda x: x @ params["inner"]["w"], x)
        return x @ params["head"]["w"]

    params = {"inner": {"w": 2.0 * jnp.eye(3)}, "head": {"w": jnp.ones((3, 2))}}
    x = jnp.ones((1, 3))
    with pytest.raises(ValueError, match="layer 'inner' is computed in a loop or a branch"):
        tap(net, {"params": params}, x)
    assert tap(net, {"params": params}, x, layers="head")["head"].input.max() == 16.0


def test_a_pattern_that_matches_nothing_lists_the_layers():
    with pytest.raises(ValueError, match="'convs' matches no layer.*conv, blocks/dense, head"):
        tap(Net(), FLOAT, X, layers="convs")
    with pytest.raises(ValueError, match="must be a regular expression"):
        tap(Net(), FLOAT, X, layers="(")


def test_modules_given_as_fields_have_the_names_of_their_variables():
    """`nn.Sequential` names its layers before it is wrapped."""
    model = Quantized(
        nn.Sequential([nn.Dense(4), nn.LayerNorm()]), [rule(".*", lsq(init_range="lsq"))]
    )
    variables = model.init(jax.random.key(0), X[:, 0, 0])
    sites = ["layers_0/input", "layers_0/kernel"]
    assert sorted(site_costs(model, X[:, 0, 0])) == sorted(bits_of(variables)) == sites
    tapped = tap(model, variables, X[:, 0, 0])
    assert list(tapped) == ["layers_0"] and tapped["layers_0"].norm == "layers_1"


@pytest.mark.parametrize("pattern", ["(?i)CONV/.*|head/.*", "(?x) conv/.*  # the stem", "conv/.*"])
def test_patterns_keep_their_meaning_when_they_are_watched(pattern):
    model = Quantized(Net(), [rule(pattern, lsq(bits=4, init_range="lsq"))])
    variables = attach(model, FLOAT, X)
    found = probe(model, variables, (X,), {}, lambda s: {r: u.x for r, u in s.uses.items()})
    seen = {name: sorted(uses) for name, uses in found.records}
    assert seen["conv"] == ["input", "kernel"] and seen["blocks/dense"] == []
    assert seen["head"] == (["input", "kernel"] if "head" in pattern else [])


def poison(variables, *path):
    *rest, last = path
    copy = node = jax.tree.map(lambda x: x, variables)
    for name in rest:
        node = node[name]
    node[last] = node[last].at[(0,) * node[last].ndim].set(jnp.inf)
    return copy


@pytest.mark.parametrize(
    "path",
    [
        ("params", "conv", "kernel"),
        ("params", "conv", "bias"),
        ("batch_stats", "bn", "mean"),
        ("params", "blocks", "dense", "kernel"),
        ("params", "blocks", "norm", "scale"),
    ],
    ids="/".join,
)
def test_the_first_variable_with_nan_is_named(path):
    assert first_nonfinite(Net(), poison(FLOAT, *path), X) == "/".join(path[1:])


def test_quantization_does_not_hide_nan():
    assert first_nonfinite(QUANTIZED, VARIABLES, X) is None
    assert first_nonfinite(QUANTIZED, VARIABLES, X.at[0].set(jnp.nan)) == "conv/input"
    broken = poison(VARIABLES, "quant", "head", "input", "scale")
    assert first_nonfinite(QUANTIZED, broken, X) == "head/input/scale"


def test_an_output_is_named_where_nothing_that_goes_in_is_at_fault():
    class Overflow(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1, use_bias=False, kernel_init=nn.initializers.ones, name="dense")(x)

    x = jnp.full((1, 2), 3e38)
    variables = Overflow().init(jax.random.key(0), x)
    assert first_nonfinite(Overflow(), variables, x) == "dense/output"


def test_what_cannot_be_seen_does_not_pass_the_blame_on():
    model = Net(lists=False)
    broken = poison(FLOAT, "params", "blocks", "norm", "scale")
    assert first_nonfinite(model, broken, X) == "blocks/norm/scale"
