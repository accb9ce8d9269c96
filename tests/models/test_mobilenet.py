"""MobileNetV2 has the published sizes, the counts one gets by hand, and its paper's structure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.models import InvertedResidual, MobileNetV2

# Sandler et al. 2018, table 2: side of the picture that comes in, channels that come in, expansion,
# filters, blocks, stride.
TABLE = (
    (112, 32, 1, 16, 1, 1),
    (112, 16, 6, 24, 2, 2),
    (56, 24, 6, 32, 3, 2),
    (28, 32, 6, 64, 4, 2),
    (14, 64, 6, 96, 3, 1),
    (14, 96, 6, 160, 3, 2),
    (7, 160, 6, 320, 1, 1),
)
SHORT = ((1, 2, 1, 1), (6, 3, 2, 2))


def by_hand():
    """Multiply-adds, kernel's and input's elements of every layer, from table 2 alone."""

    def conv(side, size, come, leave, stride=1, groups=1):
        kernel = size**2 * (come // groups) * leave
        return (side // stride) ** 2 * kernel, kernel, side**2 * come

    layers = {"stem": conv(224, 3, 3, 32, 2)}
    for i, (side, come, expansion, filters, blocks, stride) in enumerate(TABLE, 1):
        for j in range(1, blocks + 1):
            inside, step = come * expansion, stride if j == 1 else 1
            name = f"stage{i}/block{j}"
            if expansion > 1:
                layers[f"{name}/expand"] = conv(side, 1, come, inside)
            layers[f"{name}/depthwise"] = conv(side, 3, inside, inside, step, inside)
            side //= step
            layers[f"{name}/project"] = conv(side, 1, inside, filters)
            come = filters
    layers["last"] = conv(7, 1, 320, 1280)
    layers["head"] = (1280 * 1000, 1280 * 1000, 1280)
    return layers


@pytest.fixture(scope="module")
def costs():
    return bj.site_costs(MobileNetV2(), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))


def shapes_of(model, side):
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def test_every_layer_has_the_counts_made_by_hand_depthwise_ones_too(costs):
    layers = [cost.layer for cost in costs.values() if cost.role == "kernel"]
    found = {
        name: (
            costs[f"{name}/kernel"].macs,
            costs[f"{name}/kernel"].elements,
            costs[f"{name}/input"].elements,
        )
        for name in layers
    }
    assert found == by_hand()
    assert layers == list(by_hand()), "in the order of the forward pass"


def test_parameters_and_multiply_adds_are_the_published_ones(costs):
    # torchvision's documentation of mobilenet_v2 (weights IMAGENET1K_V1): num_params, GFLOPS.
    shapes = shapes_of(MobileNetV2(), 224)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 3_504_872
    assert bj.macs(costs) == 300_774_272
    assert bj.macs(costs) / 1e9 == pytest.approx(0.301, rel=0.01)


def test_a_width_that_is_no_multiple_of_4_is_refused():
    for width in (2, 6):
        with pytest.raises(ValueError, match=f"`width` must be a multiple of 4, got {width}"):
            MobileNetV2(width=width)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    model = MobileNetV2(width=4, num_classes=7, stages=SHORT, dtype=jnp.bfloat16)
    variables = shapes_of(model, 32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    logits = jax.eval_shape(model.apply, variables, jnp.zeros((3, 32, 32, 3)))
    assert (logits.shape, logits.dtype) == ((3, 7), jnp.bfloat16)


def normalized(x, layer):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(var + 1e-5) * layer["scale"] + layer["bias"]


def relu6(x):
    return np.clip(x, 0.0, 6.0)


def depthwise(x, kernel, stride):
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    return np.einsum("nhwcij,ijc->nhwc", windows[:, ::stride, ::stride], kernel[:, :, 0])


@pytest.mark.parametrize(("stride", "expansion"), [(1, 2), (2, 1)])
def test_a_block_expands_filters_each_channel_and_projects_without_rectifier(stride, expansion):
    # At stride 1 the shape stays, and the block adds its input.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 6, 4))
    model = InvertedResidual(filters=4, stride=stride, expansion=expansion)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    # Wide scales, so that some of what is rectified exceeds 6.
    p = jax.tree.map(lambda a: rng.normal(scale=4.0, size=a.shape), shapes["params"])
    stats = jax.tree.map(lambda a: np.zeros(a.shape), shapes["batch_stats"])
    run = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])[0])
    found = run({"params": p, "batch_stats": stats}, x)
    y = x
    if expansion > 1:
        y = relu6(normalized(y @ p["expand"]["kernel"][0, 0], p["expand_bn"]))
    y = relu6(normalized(depthwise(y, p["depthwise"]["kernel"], stride), p["depthwise_bn"]))
    y = normalized(y @ p["project"]["kernel"][0, 0], p["project_bn"])
    np.testing.assert_allclose(found, x + y if stride == 1 else y, rtol=1e-3, atol=1e-3)


def test_training_drops_inputs_of_the_head_at_random():
    model = MobileNetV2(width=4, num_classes=3, stages=SHORT[:1], dropout=0.5)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    shapes = shapes_of(model, 8)
    params = jax.tree.map(lambda a: jnp.ones(a.shape), shapes["params"])
    stats = jax.tree.map(lambda a: jnp.zeros(a.shape), shapes["batch_stats"])
    variables = {"params": params, "batch_stats": stats}
    run = jax.jit(
        lambda key: model.apply(
            variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )[0]
    )
    assert not np.allclose(run(jax.random.key(2)), run(jax.random.key(3)))
