"""AlexNet with batch norms has the counts one gets by hand, and its source's order of layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.models import AlexNetBN

IMAGES = jax.ShapeDtypeStruct((1, 227, 227, 3), jnp.float32)
# Side of the picture, kernel, filters that come in, filters that leave.
CONVS = {
    "conv1": (55, 11, 3, 96),
    "conv2": (27, 5, 96, 256),
    "conv3": (13, 3, 256, 384),
    "conv4": (13, 3, 384, 384),
    "conv5": (13, 3, 384, 256),
}
DENSE = {"fc1": 256 * 6 * 6 * 4096, "fc2": 4096 * 4096, "head": 4096 * 1000}


def shapes_of(model, side):
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def test_every_layer_has_the_multiply_adds_counted_by_hand():
    costs = bj.site_costs(AlexNetBN(), IMAGES)
    found = {cost.layer: cost.macs for cost in costs.values() if cost.layer + "/kernel" in costs}
    by_hand = {name: side**2 * k**2 * come * go for name, (side, k, come, go) in CONVS.items()}
    assert found == by_hand | DENSE
    assert list(found) == [*CONVS, *DENSE], "in the order of the forward pass"
    assert bj.macs(costs) == 1_135_256_096


def test_its_parameters_are_those_of_the_ungrouped_alexnet_without_biases():
    params = shapes_of(AlexNetBN(), 227)["params"]
    biases = 96 + 256 + 384 + 384 + 256 + 4096 + 4096 + 1000
    # 62,378,344 with biases: the ungrouped AlexNet, as model zoos print it (osmr/imgclsmob).
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 62_378_344 - biases == 62_367_776
    assert {tuple(layer) for layer in params.values()} == {("kernel",)}


def test_every_non_linearity_has_a_batch_norm_without_parameters():
    stats = shapes_of(AlexNetBN(width=1), 67)["batch_stats"]
    assert [stats[f"bn{i}"]["mean"].size for i in range(1, 8)] == [3, 8, 12, 12, 8, 128, 128]
    assert len(stats) == 7


def test_the_dense_layers_follow_the_picture_and_too_small_ones_are_refused():
    model = AlexNetBN(width=2, num_classes=7)
    variables = shapes_of(model, 67)
    assert variables["params"]["fc1"]["kernel"].shape == (16, 256)
    logits = jax.eval_shape(model.apply, variables, jnp.zeros((3, 67, 67, 3)))
    assert (logits.shape, logits.dtype) == ((3, 7), jnp.float32)
    with pytest.raises(ValueError, match="images of 67x67 or more, got 66x66"):
        shapes_of(model, 66)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    model = AlexNetBN(width=1, dtype=jnp.bfloat16)
    variables = shapes_of(model, 67)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert jax.eval_shape(model.apply, variables, jnp.zeros((1, 67, 67, 3))).dtype == jnp.bfloat16


def conv(x, kernel, stride, padding):
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))
    return np.einsum("nhwcij,ijcf->nhwf", windows[:, ::stride, ::stride], kernel, optimize=True)


def pool(x):
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    return windows[:, ::2, ::2].max(axis=(-2, -1))


def normalized(x):
    axes = tuple(range(x.ndim - 1))
    return (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-5)


def relu(x):
    return np.maximum(x, 0.0)


def test_it_is_conv_norm_pool_relu():
    # While training: in evaluation a batch norm without scale and a pool commute.
    model = AlexNetBN(width=1, num_classes=5)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 67, 67, 3))
    shapes = shapes_of(model, 67)
    params = jax.tree.map(lambda a: rng.normal(size=a.shape), shapes["params"])
    stats = jax.tree.map(lambda a: np.zeros(a.shape), shapes["batch_stats"])
    run = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])[0])
    logits = run({"params": params, "batch_stats": stats}, x)
    p = {name: layer["kernel"] for name, layer in params.items()}
    x = relu(pool(normalized(conv(x, p["conv1"], 4, 0))))
    x = relu(pool(normalized(conv(x, p["conv2"], 1, 2))))
    x = relu(normalized(conv(x, p["conv3"], 1, 1)))
    x = relu(normalized(conv(x, p["conv4"], 1, 1)))
    x = relu(pool(normalized(conv(x, p["conv5"], 1, 1))))
    x = x.reshape(len(x), -1)
    x = relu(normalized(x @ p["fc1"]))
    x = relu(normalized(x @ p["fc2"]))
    np.testing.assert_allclose(logits, x @ p["head"], rtol=1e-3, atol=1e-3)
