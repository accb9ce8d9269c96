"""Fisher weights: an exact value, finite differences of the loss, and what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.bottleneck.sensitivity import fisher

X = jax.random.normal(jax.random.key(0), (64, 5))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="last")(nn.relu(nn.Dense(8, name="first")(x)))


VARIABLES = Net().init(jax.random.key(1), X)


def test_of_a_linear_classifier_it_is_the_mean_over_classes_of_squared_gradients():
    model, variables = nn.Dense(3), nn.Dense(3).init(jax.random.key(2), X)
    kernel = np.asarray(variables["params"]["kernel"], np.float64)
    p = np.asarray(jax.nn.softmax(model.apply(variables, X)), np.float64)
    # E over labels of ((p - onehot) @ kernel.T)^2, for each example and input.
    gradients = (p[:, None, :] - np.eye(3)) @ kernel.T
    expected = np.mean(np.sum(p[..., None] * gradients**2, axis=1))
    batches = [X] * 200  # labels are drawn anew for each
    assert fisher(model, variables, batches, sites="input")["input"] == pytest.approx(
        expected, rel=0.03
    )


def test_it_predicts_what_noise_at_a_site_adds_to_the_divergence():
    weights = fisher(Net(), VARIABLES, [X] * 100)
    logits = Net().apply(VARIABLES, X)
    hidden = nn.relu(X @ VARIABLES["params"]["first"]["kernel"])
    last = VARIABLES["params"]["last"]
    noise = 0.03 * jax.random.normal(jax.random.key(3), (4000, *hidden.shape))
    noisy = (hidden + noise) @ last["kernel"] + last["bias"]
    p = jax.nn.softmax(logits)
    divergence = jnp.sum(p * (jax.nn.log_softmax(logits) - jax.nn.log_softmax(noisy)), -1)
    predicted = 0.5 * weights["last/input"] * hidden.shape[1] * 0.03**2
    assert predicted == pytest.approx(float(jnp.mean(divergence)), rel=0.1)


def test_a_quantized_model_is_taken_float():
    model = bj.Quantized(Net(), [bj.rule(".*", bj.uniform(bits=2))])
    variables = bj.attach(model, VARIABLES, X)
    assert fisher(model, variables, [X]) == fisher(Net(), VARIABLES, [X])


def test_no_batches_are_an_error():
    with pytest.raises(ValueError, match="at least one batch, got none"):
        fisher(Net(), VARIABLES, [])
