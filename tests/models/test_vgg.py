"""The VGG networks have the counts one gets by hand, and the order of layers their sources have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.models import VGG16, VGGSmall

# Side of the picture, filters that come in, filters that leave: HWGQ's network, layer by layer.
SMALL = {
    "conv1": (32, 3, 128),
    "conv2": (32, 128, 128),
    "conv3": (16, 128, 256),
    "conv4": (16, 256, 256),
    "conv5": (8, 256, 512),
    "conv6": (8, 512, 512),
}
# Simonyan & Zisserman 2015, table 1, column D.
LARGE = {
    "conv1_1": (224, 3, 64),
    "conv1_2": (224, 64, 64),
    "conv2_1": (112, 64, 128),
    "conv2_2": (112, 128, 128),
    "conv3_1": (56, 128, 256),
    "conv3_2": (56, 256, 256),
    "conv3_3": (56, 256, 256),
    "conv4_1": (28, 256, 512),
    "conv4_2": (28, 512, 512),
    "conv4_3": (28, 512, 512),
    "conv5_1": (14, 512, 512),
    "conv5_2": (14, 512, 512),
    "conv5_3": (14, 512, 512),
}


def image(side, count=1):
    return jax.ShapeDtypeStruct((count, side, side, 3), jnp.float32)


def shapes_of(model, side):
    return jax.eval_shape(model.init, jax.random.key(0), image(side))


def parameters(model, side):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes_of(model, side)["params"]))


@pytest.mark.parametrize(
    ("model", "convs", "dense"),
    [
        (VGGSmall(), SMALL, {"head": 8192 * 10}),
        (VGG16(), LARGE, {"fc1": 25088 * 4096, "fc2": 4096 * 4096, "head": 4096 * 1000}),
    ],
    ids=["small", "16"],
)
def test_every_layer_has_the_multiply_adds_counted_by_hand(model, convs, dense):
    costs = bj.site_costs(model, image(32 if convs is SMALL else 224))
    found = {cost.layer: cost.macs for cost in costs.values() if cost.layer + "/kernel" in costs}
    by_hand = {name: side**2 * 9 * come * leave for name, (side, come, leave) in convs.items()}
    assert found == by_hand | dense
    assert list(found) == [*convs, *dense], "in the order of the forward pass"


def test_vgg_small_has_the_parameters_and_multiply_adds_counted_by_hand():
    # Kernels 3456 + 147456 + 294912 + 589824 + 1179648 + 2359296, bn6 2 * 512, head 8192 * 10 + 10.
    assert parameters(VGGSmall(), 32) == 4_657_546
    assert bj.macs(bj.site_costs(VGGSmall(), image(32))) == 607_600_640


def test_vgg_16_has_the_published_parameters_and_multiply_adds():
    # torchvision's documentation of vgg16_bn (weights IMAGENET1K_V1): num_params, GFLOPS.
    assert parameters(VGG16(), 224) == 138_365_992
    assert bj.macs(bj.site_costs(VGG16(), image(224))) / 1e9 == pytest.approx(15.47, abs=0.005)


def test_only_the_last_batch_norm_of_vgg_small_has_a_scale_and_a_shift():
    variables = shapes_of(VGGSmall(width=4), 32)
    assert sorted(variables["batch_stats"]) == [f"bn{i}" for i in range(1, 7)]
    assert {n for n in variables["params"] if n.startswith("bn")} == {"bn6"}
    assert [n for n, layer in variables["params"].items() if "bias" in layer] == ["bn6", "head"]


@pytest.mark.parametrize(("model", "least"), [(VGGSmall(width=4), 8), (VGG16(width=4), 32)])
def test_the_dense_layers_follow_the_picture_and_too_small_ones_are_refused(model, least):
    logits = jax.eval_shape(model.apply, shapes_of(model, least), image(least, 3))
    assert (logits.shape, logits.dtype) == ((3, model.num_classes), jnp.float32)
    with pytest.raises(ValueError, match=f"images of {least}x{least} or more, got 7x7"):
        shapes_of(model, 7)


@pytest.mark.parametrize(
    "model", [VGGSmall(width=4, dtype=jnp.bfloat16), VGG16(4, 4, jnp.bfloat16)]
)
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(model):
    variables = shapes_of(model, 32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert jax.eval_shape(model.apply, variables, image(32)).dtype == jnp.bfloat16


# While training, where a batch norm stands changes its statistics; in evaluation a batch norm with
# a positive scale and a pool commute, and nothing could be seen.


def conv(x, kernel):
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    return np.einsum("nhwcij,ijcf->nhwf", windows, kernel, optimize=True)


def pool(x):
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def normalized(x):
    axes = tuple(range(x.ndim - 1))
    return (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-5)


def relu(x):
    return np.maximum(x, 0.0)


def trained(model, side, count=8):
    """Logits of a training pass, and the image and float64 parameters that gave them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, side, side, 3))
    # Drawn here, as scales, shifts and biases must do something.
    shapes = shapes_of(model, side)
    params = jax.tree.map(lambda a: rng.normal(size=a.shape), shapes["params"])
    stats = jax.tree.map(lambda a: np.zeros(a.shape), shapes["batch_stats"])
    run = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])[0])
    return run({"params": params, "batch_stats": stats}, x), x, params


def test_vgg_small_is_conv_pool_norm_relu_and_in_the_end_conv_norm_relu_pool():
    logits, x, p = trained(VGGSmall(width=2, num_classes=5), 16)
    x = relu(normalized(conv(x, p["conv1"]["kernel"])))
    x = relu(normalized(pool(conv(x, p["conv2"]["kernel"]))))
    x = relu(normalized(conv(x, p["conv3"]["kernel"])))
    x = relu(normalized(pool(conv(x, p["conv4"]["kernel"]))))
    x = relu(normalized(conv(x, p["conv5"]["kernel"])))
    x = normalized(conv(x, p["conv6"]["kernel"]))
    x = pool(relu(x * p["bn6"]["scale"] + p["bn6"]["bias"]))
    expected = x.reshape(len(x), -1) @ p["head"]["kernel"] + p["head"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


def test_vgg_16_is_stages_of_conv_norm_relu_with_a_pool_after_each():
    logits, x, p = trained(VGG16(width=2, num_classes=5), 32)
    for stage, convs in enumerate((2, 2, 3, 3, 3), 1):
        for i in range(1, convs + 1):
            layer, norm = p[f"conv{stage}_{i}"], p[f"bn{stage}_{i}"]
            x = normalized(conv(x, layer["kernel"]) + layer["bias"])
            x = relu(x * norm["scale"] + norm["bias"])
        x = pool(x)
    x = x.reshape(len(x), -1)
    for name in ("fc1", "fc2"):
        x = relu(x @ p[name]["kernel"] + p[name]["bias"])
    expected = x @ p["head"]["kernel"] + p["head"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
