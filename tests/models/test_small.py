"""The two small models: shapes, names, dtypes, and that they learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bitjax.data import load, normalize, shift, train_batch
from bitjax.models import MLP, SmallCNN


@pytest.mark.parametrize("model", [MLP(num_classes=7), SmallCNN(num_classes=7, width=4)])
@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (3, 28, 28, 1), (1, 32, 32, 3), (0, 8, 8, 1)])
def test_logits_have_one_row_per_image_and_one_column_per_class(model, shape):
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape[1:])))
    logits = jax.eval_shape(model.apply, variables, jnp.zeros(shape))
    assert (logits.shape, logits.dtype) == ((shape[0], 7), jnp.float32)


def test_mlp_layers_are_numbered_from_1_and_have_the_given_widths():
    params = jax.eval_shape(MLP((5, 3)).init, jax.random.key(0), jnp.zeros((1, 2, 2, 1)))["params"]
    shapes = {name: layer["kernel"].shape for name, layer in params.items()}
    assert shapes == {"dense1": (4, 5), "dense2": (5, 3), "head": (3, 10)}


def test_mlp_is_dense_relu_dense():
    x = jax.random.normal(jax.random.key(1), (3, 2, 2, 1))
    variables = jax.jit(MLP((5,)).init)(jax.random.key(0), x)
    params = jax.tree.map(np.asarray, variables["params"])
    hidden = np.maximum(np.asarray(x).reshape(3, 4) @ params["dense1"]["kernel"], 0)
    np.testing.assert_allclose(
        MLP((5,)).apply(variables, x), hidden @ params["head"]["kernel"], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("model", [MLP(dtype=jnp.bfloat16), SmallCNN(dtype=jnp.bfloat16)])
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(model):
    x = jnp.zeros((2, 8, 8, 1))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert jax.eval_shape(model.apply, variables, x).dtype == jnp.bfloat16


@pytest.mark.slow
def test_the_cnn_gets_98_per_cent_of_digits_in_150_steps():
    steps = 150
    data, model = load("digits"), SmallCNN()
    x = normalize(jnp.asarray(data.eval_images), data.mean, data.std, data.max_value)
    variables = jax.jit(model.init)(jax.random.key(0), x[:1])
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    def loss_of(params, batch_stats, image, label):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updates = model.apply(variables, image, train=True, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
        return loss, updates["batch_stats"]

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state, batch, key):
        params, batch_stats, moments = state
        image = normalize(shift(key, batch["image"]), data.mean, data.std, data.max_value)
        gradients, batch_stats = jax.grad(loss_of, has_aux=True)(
            params, batch_stats, image, batch["label"]
        )
        updates, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(params, updates), batch_stats, moments

    state = variables["params"], variables["batch_stats"], optimizer.init(variables["params"])
    for step in range(steps):
        key = jax.random.fold_in(jax.random.key(1), step)
        state = train_step(state, train_batch(data, 128, step, seed=0), key)
    logits = jax.jit(model.apply)({"params": state[0], "batch_stats": state[1]}, x)
    assert np.mean(np.argmax(logits, axis=-1) == data.eval_labels) >= 0.98
