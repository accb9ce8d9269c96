"""The CIFAR ResNet is the published one, name by name and number by number."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from bitjax.models import CifarResNet, option_a_shortcut, resnet20, resnet32, resnet44, resnet56
from bitjax.models.resnet import ResidualBlock

IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0), IMAGES)


def parameter_count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes_of(model)["params"]))


def test_resnet20_has_the_published_number_of_parameters():
    assert parameter_count(resnet20()) == 269_722


@pytest.mark.parametrize(
    ("constructor", "thousands"),
    [(resnet20, 270), (resnet32, 464), (resnet44, 659), (resnet56, 853)],
)
def test_sizes_are_those_of_table_6_of_the_paper(constructor, thousands):
    # The table rounds to 0.27 M, 0.46 M, 0.66 M and 0.85 M.
    assert round(parameter_count(constructor()) / 1000) == thousands


def test_layers_have_the_names_the_rules_are_written_for():
    params = shapes_of(resnet20())["params"]
    kernels = [
        "/".join(path[:-1]) for path in traverse_util.flatten_dict(params) if path[-1] == "kernel"
    ]
    blocks = [f"stage{i}/block{j}/conv{k}" for i in (1, 2, 3) for j in (1, 2, 3) for k in (1, 2)]
    assert sorted(kernels) == sorted(["stem", "head", *blocks])
    assert set(params["stage1"]["block1"]) == {"conv1", "bn1", "conv2", "bn2"}
    assert set(params["stem"]) == {"kernel"}
    assert set(params["stem_bn"]) == {"scale", "bias"}


def test_projections_stand_only_where_the_shape_changes():
    params = shapes_of(CifarResNet(depth=14, width=2, shortcut="project"))["params"]
    blocks = {
        f"{stage}/{block}": layers
        for stage, held in params.items()
        if stage in ("stage1", "stage2", "stage3")
        for block, layers in held.items()
    }
    projected = sorted(name for name, layers in blocks.items() if "shortcut" in layers)
    assert projected == ["stage2/block1", "stage3/block1"]


def test_the_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides():
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 4)).astype(np.float32)
    expected = np.zeros((2, 3, 3, 8), np.float32)
    for row in range(3):
        for column in range(3):
            for channel in range(4):
                expected[:, row, column, channel + 2] = x[:, 2 * row, 2 * column, channel]
    np.testing.assert_array_equal(option_a_shortcut(jnp.asarray(x), 8, 2), expected)


def test_a_shortcut_with_nothing_to_do_returns_the_very_same_array():
    x = jnp.ones((1, 4, 4, 2))
    assert option_a_shortcut(x, 2, 1) is x


@pytest.mark.parametrize("filters", [3, 7])
def test_a_shortcut_that_cannot_pad_equally_is_refused(filters):
    with pytest.raises(ValueError, match="plus an even number"):
        option_a_shortcut(jnp.ones((1, 4, 4, 4)), filters, 2)


def conv3x3(x, kernel, stride):
    """A convolution with padding 1 on every side, pixel by pixel."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = (range(0, size - 2, stride) for size in x.shape[1:3])
    pixels = [
        [np.einsum("nijc,ijcf->nf", x[:, r : r + 3, c : c + 3], kernel) for c in columns]
        for r in rows
    ]
    return np.moveaxis(np.asarray(pixels), 2, 0)


@pytest.mark.parametrize("how", ["pad", "project"])
def test_a_block_with_stride_2_computes_what_numpy_computes(how):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 6, 2))
    block = ResidualBlock(filters=4, stride=2, shortcut=how)
    variables = jax.eval_shape(block.init, jax.random.key(0), jnp.asarray(x, jnp.float32))
    params, stats = (
        jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape), variables[collection])
        for collection in ("params", "batch_stats")
    )

    def norm(y, name):
        scale, bias = params[name]["scale"], params[name]["bias"]
        mean, var = stats[name]["mean"], stats[name]["var"]
        return (y - mean) / np.sqrt(var + 1e-5) * scale + bias

    y = np.maximum(norm(conv3x3(x, params["conv1"]["kernel"], 2), "bn1"), 0)
    y = norm(conv3x3(y, params["conv2"]["kernel"], 1), "bn2")
    if how == "pad":
        shortcut = np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (1, 1)))
    else:
        shortcut = norm(x[:, ::2, ::2] @ params["shortcut"]["kernel"][0, 0], "shortcut_bn")
    expected = np.maximum(y + shortcut, 0)

    to_float32 = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (params, stats, x))
    found = jax.jit(block.apply)(
        {"params": to_float32[0], "batch_stats": to_float32[1]}, to_float32[2]
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_both_branches_of_a_block_read_one_array_object():
    # What a quantized tensor's readers are is found by the identity of arrays.
    model = CifarResNet(depth=8, width=2)
    seen = {}

    def record(next_function, args, kwargs, context):
        y = next_function(*args, **kwargs)
        if context.method_name == "__call__":
            seen["/".join(context.module.path)] = (args[0], y)
        return y

    with nn.intercept_methods(record):
        jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    for stage in ("stage1", "stage2", "stage3"):
        block = f"{stage}/block1"
        assert seen[f"{block}/conv1"][0] is seen[block][0]
        assert seen[f"{block}/bn1"][0] is seen[f"{block}/conv1"][1]
        assert seen[f"{block}/bn2"][0] is seen[f"{block}/conv2"][1]
    assert seen["stage2/block1"][0] is seen["stage1/block1"][1]


def test_training_mode_updates_the_statistics_and_evaluation_does_not():
    block = ResidualBlock(filters=2)
    x = jax.random.normal(jax.random.key(1), (4, 5, 5, 2))
    variables = jax.jit(block.init)(jax.random.key(0), x)
    apply = jax.jit(partial(block.apply, mutable=["batch_stats"]), static_argnames="train")
    trained, evaluated = (apply(variables, x, train=train)[1] for train in (True, False))
    y = conv3x3(np.asarray(x), np.asarray(variables["params"]["conv1"]["kernel"]), 1)
    # Momentum 0.9: a tenth of the way, from 0 to the batch's mean and from 1 to its variance.
    found = trained["batch_stats"]["bn1"]
    np.testing.assert_allclose(found["mean"], 0.1 * y.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["var"], 0.9 + 0.1 * y.var((0, 1, 2)), rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, evaluated["batch_stats"], variables["batch_stats"])


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    model = CifarResNet(depth=8, width=2, dtype=jnp.bfloat16)
    variables = shapes_of(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    logits = jax.eval_shape(model.apply, variables, IMAGES)
    assert (logits.shape, logits.dtype) == ((2, 10), jnp.bfloat16)


@pytest.mark.parametrize("depth", [2, 16, 21])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth):
    with pytest.raises(ValueError, match=f"`depth` must be 6 n . 2.*got {depth}"):
        shapes_of(CifarResNet(depth=depth))
