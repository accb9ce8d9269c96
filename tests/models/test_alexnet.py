"""Both AlexNets have the counts one gets by hand, and their sources' order of layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.models import AlexNet, AlexNetBN

# Side of the picture, kernel, filters that come in, filters that leave.
CONVS = {
    "conv1": (55, 11, 3, 96),
    "conv2": (27, 5, 96, 256),
    "conv3": (13, 3, 256, 384),
    "conv4": (13, 3, 384, 384),
    "conv5": (13, 3, 384, 256),
}
# torchvision's, at 224x224.
TORCH_CONVS = {
    "conv1": (55, 11, 3, 64),
    "conv2": (27, 5, 64, 192),
    "conv3": (13, 3, 192, 384),
    "conv4": (13, 3, 384, 256),
    "conv5": (13, 3, 256, 256),
}
DENSE = {"fc1": 256 * 6 * 6 * 4096, "fc2": 4096 * 4096, "head": 4096 * 1000}


def shapes_of(model, side):
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


@pytest.mark.parametrize(
    ("model", "side", "convs", "total"),
    [(AlexNetBN(), 227, CONVS, 1_135_256_096), (AlexNet(), 224, TORCH_CONVS, 714_188_480)],
    ids=["bn", "torchvision"],
)
def test_every_layer_has_the_multiply_adds_counted_by_hand(model, side, convs, total):
    costs = bj.site_costs(model, jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))
    found = {cost.layer: cost.macs for cost in costs.values() if cost.layer + "/kernel" in costs}
    by_hand = {name: side**2 * k**2 * come * go for name, (side, k, come, go) in convs.items()}
    assert found == by_hand | DENSE
    assert list(found) == [*convs, *DENSE], "in the order of the forward pass"
    assert bj.macs(costs) == total


def test_torchvisions_has_the_published_parameters_and_multiply_adds():
    # torchvision's documentation of alexnet (weights IMAGENET1K_V1): num_params, GFLOPS.
    params = shapes_of(AlexNet(), 224)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 61_100_840
    assert 714_188_480 / 1e9 == pytest.approx(0.714, rel=0.01)


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


@pytest.mark.parametrize(
    ("model", "least", "fc1"),
    [(AlexNetBN(7, width=2), 67, (16, 256)), (AlexNet(7, width=2), 63, (8, 128))],
    ids=["bn", "torchvision"],
)
def test_the_dense_layers_follow_the_picture_and_too_small_ones_are_refused(model, least, fc1):
    variables = shapes_of(model, least)
    assert variables["params"]["fc1"]["kernel"].shape == fc1
    logits = jax.eval_shape(model.apply, variables, jnp.zeros((3, least, least, 3)))
    assert (logits.shape, logits.dtype) == ((3, 7), jnp.float32)
    small = least - 1
    with pytest.raises(ValueError, match=f"of {least}x{least} or more, got {small}x{small}"):
        shapes_of(model, small)


@pytest.mark.parametrize("make", [AlexNetBN, AlexNet])
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(make):
    model = make(width=1, dtype=jnp.bfloat16)
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


def test_torchvisions_is_conv_relu_pool_and_drops_inputs_of_its_hidden_dense_layers():
    model = AlexNet(width=2, num_classes=5, dropout=0.25)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 63, 63, 3))
    p = jax.tree.map(lambda a: rng.normal(size=a.shape), shapes_of(model, 63)["params"])
    kept = []

    def keep(next_fun, args, kwargs, context):
        out = next_fun(*args, **kwargs)
        if isinstance(context.module, nn.Dropout):
            kept.append(out != 0)
        return out

    @jax.jit
    def run(params, x, key):
        kept.clear()
        with nn.intercept_methods(keep):
            logits = model.apply({"params": params}, x, train=True, rngs={"dropout": key})
        return logits, list(kept)

    logits, masks = run(p, x, jax.random.key(0))

    def layer(x, name, product):
        return relu(product(x, p[name]["kernel"]) + p[name]["bias"])

    x = pool(layer(x, "conv1", lambda x, k: conv(x, k, 4, 2)))
    x = pool(layer(x, "conv2", lambda x, k: conv(x, k, 1, 2)))
    for name in ("conv3", "conv4", "conv5"):
        x = layer(x, name, lambda x, k: conv(x, k, 1, 1))
    x = pool(x).reshape(len(x), -1)
    for name, mask in zip(("fc1", "fc2"), masks, strict=True):
        dropped = np.mean(~mask[x > 0])
        assert 0.05 < dropped < 0.5, "about a quarter"
        x = layer(x * mask / 0.75, name, np.matmul)
    np.testing.assert_allclose(
        logits, x @ p["head"]["kernel"] + p["head"]["bias"], rtol=1e-3, atol=1e-3 * np.std(logits)
    )
