"""Histograms, Fisher weights and planes of a decoder: tokens, several inputs, a mask."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj

KEY = jax.random.key(0)
TOKENS = jax.random.randint(KEY, (6, 5), 0, 11)
POSITIONS = jnp.broadcast_to(jnp.arange(5), TOKENS.shape)
SEEN = jnp.ones((6, 5)).at[:, 3:].set(0)


class Decoder(nn.Module):
    """Mean of the tokens so far that a mask leaves, a layer with a ReLU, logits of every token."""

    @nn.compact
    def __call__(self, tokens, positions, *, mask):
        x = nn.Embed(11, 8, name="embed")(tokens) + nn.Embed(5, 8, name="place")(positions)
        so_far = jnp.tril(jnp.ones((tokens.shape[1],) * 2)) * mask[:, None]
        x = so_far @ x / jnp.maximum(so_far.sum(-1, keepdims=True), 1.0)
        x = nn.relu(nn.Dense(12, name="up")(x))
        return nn.Dense(11, name="head")(nn.relu(nn.Dense(8, name="down")(x)))


BATCH = bj.Inputs((TOKENS, POSITIONS), {"mask": SEEN})
VARIABLES = Decoder().init(KEY, TOKENS, POSITIONS, mask=SEEN)
SITES = "(down|head)/input"


def test_a_prediction_for_every_token_gives_the_weights_of_a_prediction_for_every_example():
    x = jax.random.normal(KEY, (6, 5, 4))
    variables = nn.Dense(3).init(KEY, x)
    many = bj.fisher(nn.Dense(3), variables, [x], sites="input")["input"]
    one = bj.fisher(nn.Dense(3), variables, [x.reshape(30, 4)], sites="input")["input"]
    assert many == pytest.approx(one, rel=1e-5)


def test_predictions_count_their_weights():
    def of(weights):
        return bj.fisher(Decoder(), VARIABLES, [BATCH], sites="head/input", weights=[weights])

    all_of_them, seen, unseen = (of(w)["head/input"] for w in (jnp.ones((6, 5)), SEEN, 1 - SEEN))
    assert seen + unseen == pytest.approx(all_of_them, rel=1e-5)
    assert of(4 * SEEN)["head/input"] == pytest.approx(4 * seen, rel=1e-5)


def test_planes_follow_weights_of_the_predictions_and_keywords_of_all_batches():
    model = bj.Quantized(Decoder(), [bj.rule(SITES, bj.bitplane(bits=8))])
    variables = bj.attach(model, VARIABLES, *BATCH.args, **BATCH.kwargs)
    own = bj.allocate(model, variables, lambda: [BATCH], rate=3.0, weights=lambda: [SEEN])
    shared = bj.allocate(
        model, variables, lambda: [BATCH.args], rate=3.0, weights=lambda: [SEEN],
        kwargs=BATCH.kwargs,
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, own["quant"], shared["quant"])
    assert sum(float(bits) for bits in bj.bits_of(own).values()) == 6.0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([SEEN[0]], r"one number a prediction, \(6, 5\), got \(5,\)"),
        ([], "an array for every batch, got 0 of them"),
    ],
    ids=["another shape", "too few"],
)
def test_weights_that_do_not_go_with_the_predictions_are_one_line(weights, message):
    with pytest.raises(ValueError, match=message):
        bj.fisher(Decoder(), VARIABLES, [BATCH], weights=weights)


def test_a_model_with_several_outputs_is_one_line():
    def two(params, x):
        return x @ params["w"], x

    with pytest.raises(ValueError, match=r"must return logits \[..., classes\], got a tuple"):
        bj.fisher(two, {"params": {"w": jnp.ones((4, 3))}}, [jnp.ones((2, 4))], sites="input")
