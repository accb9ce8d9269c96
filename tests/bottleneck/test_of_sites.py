"""Histograms of a model's sites: of the tensors themselves, batch by batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.bottleneck.histogram import empty, observe
from bitjax.bottleneck.of_sites import site_histograms

X = jax.random.normal(jax.random.key(0), (64, 5))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="last")(nn.relu(nn.Dense(8, name="first")(x)))


VARIABLES = Net().init(jax.random.key(1), X)


def hidden(x):
    first = VARIABLES["params"]["first"]
    return nn.relu(x @ first["kernel"] + first["bias"])


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one._asdict(), other._asdict())


def test_batches_add_up_to_the_histogram_of_all_of_them():
    found = site_histograms(Net(), VARIABLES, [X[:16], X[16:]], sites=".*/input")
    assert list(found) == ["first/input", "last/input"]
    same(found["first/input"], observe(empty(), X))
    assert found["last/input"].negatives == 0
    assert found["last/input"].total == hidden(X).size


def test_a_quantized_model_is_counted_behind_its_quantizers_and_before_the_sites_own():
    model = bj.Quantized(Net(), [bj.rule("first/kernel", bj.uniform(bits=2)),
                                 bj.rule("last/input", bj.uniform(bits=2))])  # fmt: skip
    variables = bj.attach(model, VARIABLES, X)
    found = site_histograms(model, variables, [X])
    kernel = bj.tap(model, variables, X)["first"].kernel
    seen = nn.relu(X @ kernel + VARIABLES["params"]["first"]["bias"])
    assert found["last/input"].high == pytest.approx(float(seen.max()), rel=1e-6)
    assert np.count_nonzero(found["last/input"].counts) > 4


def test_a_scanned_layer_counts_all_its_repetitions():
    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x):
            body = nn.scan(
                lambda module, x, _: (nn.relu(module(x)), None),
                variable_axes={"params": 0, "quant": 0, "quant_stats": 0},
                split_rngs={"params": True},
                length=3,
            )
            return body(nn.Dense(5, name="layer"), x, None)[0]

    variables = Scanned().init(jax.random.key(2), X)
    found = site_histograms(Scanned(), variables, [X])
    assert found["layer/input"].total == 3 * X.size


def test_a_plain_functions_products_of_two_tensors_are_counted():
    def attend(params, x):
        return jax.nn.softmax((x @ params["q"]) @ (x @ params["k"]).T) @ x

    params = {"q": jnp.ones((5, 4)), "k": jnp.ones((5, 4))}
    found = site_histograms(attend, {"params": params}, [X], sites="product.*|k/input")
    sides = [f"product{i}/{role}" for i in range(2) for role in ("left", "right")]
    assert sorted(found) == sorted(["k/input", *sides])
    assert found["product0/left"].total == X.shape[0] * 4
    assert found["product1/left"].negatives == 0


def test_sites_in_a_loop_are_said_to_be_there():
    def loop(params, x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 9.0, lambda x: x @ params["w"] + 1.0, x)

    with pytest.raises(ValueError, match="matches only sites in loops and branches"):
        site_histograms(loop, {"params": {"w": jnp.ones((5, 5))}}, [X], sites="w/input|input")


@pytest.mark.parametrize(
    ("batches", "sites", "message"),
    [
        ([], ".*", "at least one batch, got none"),
        ([X], "nowhere/input", "matches no site in full. Sites: first/kernel, first/input"),
        ([X, X.at[3, 2].set(jnp.nan)], ".*/input", "batch 1 gives NaN or inf first at first/input"),
    ],
)
def test_what_cannot_be_counted_is_one_clear_line(batches, sites, message):
    with pytest.raises(ValueError, match=message):
        site_histograms(Net(), VARIABLES, batches, sites=sites)
