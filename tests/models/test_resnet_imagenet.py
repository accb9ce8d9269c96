"""The ImageNet ResNets have the published sizes."""

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

import bitjax as bj
from bitjax.models import ImageNetResNet, resnet18, resnet50

IMAGES = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)


# Parameters: torchvision's documentation of resnet18 and resnet50 (weights IMAGENET1K_V1).
@pytest.mark.parametrize(
    ("make", "parameters", "gmacs"),
    [(resnet18, 11_689_512, 1.814), (resnet50, 25_557_032, 4.09)],
)
def test_parameters_and_multiply_adds_are_the_published_ones(make, parameters, gmacs):
    shapes = jax.eval_shape(make().init, jax.random.key(0), IMAGES)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == parameters
    assert bj.macs(bj.site_costs(make(), IMAGES)) / 1e9 == pytest.approx(gmacs, rel=0.01)


@pytest.mark.slow
def test_a_block_starts_as_its_shortcut():
    model = ImageNetResNet((1, 1), width=4, num_classes=3)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    flat = traverse_util.flatten_dict(variables["params"])
    zero = {path[-2] for path, leaf in flat.items() if path[-1] == "scale" and not leaf.any()}
    assert zero == {"bn2"}


def test_a_stride_halves_the_image_at_the_3x3_convolution_and_the_shortcut():
    costs = bj.site_costs(resnet50(), IMAGES)
    elements = {s: costs[f"stage2/block1/{s}/input"].elements for s in ("conv2", "conv3")}
    assert elements == {"conv2": 56 * 56 * 128, "conv3": 28 * 28 * 128}
