"""SqueezeNet has its paper's sizes; the published weights give the published accuracy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.data import imagenet_sample, normalize
from bitjax.models import SQUEEZENET_MEAN, SQUEEZENET_STD, SqueezeNet, load_squeezenet

# Squeezed and expanded channels of the fire modules: table 1 of the paper.
FIRES = [(16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256)]
# Names in the published file, of what is in a fire module.
LAYERS = {"squeeze": "conv1x1_1", "expand1": "conv1x1_2", "expand3": "conv3x3_2"}


def test_it_has_the_papers_parameters_and_the_multiply_adds_counted_by_hand():
    images = jax.ShapeDtypeStruct((1, 227, 227, 3), jnp.float32)
    shapes = jax.eval_shape(SqueezeNet().init, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 1_248_424
    sides = [55] * 3 + [27] * 4 + [13]
    macs, read = 111**2 * 7 * 7 * 3 * 96, 96
    for side, (narrow, wide) in zip(sides, FIRES, strict=True):
        macs += side**2 * (read * narrow + narrow * wide * 10)
        read = 2 * wide
    assert bj.macs(bj.site_costs(SqueezeNet(), images)) == macs + 15**2 * 512 * 1000


def file_of(params):
    """The arrays of a file that holds such parameters, by the names of the published one."""
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [LAYERS.get(p.key, p.key) for p in path]
        arrays[".".join(names).replace("head", "conv_final")] = np.asarray(leaf)
    arrays["conv1.kernel"] = arrays["conv1.kernel"][:, :, ::-1]
    return arrays


@pytest.fixture(scope="module")
def small():
    model = SqueezeNet(num_classes=7, width=2)
    images = jax.ShapeDtypeStruct((1, 35, 35, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def test_a_file_whose_first_kernel_reads_blue_first_becomes_its_parameters(tmp_path, small):
    np.savez(tmp_path / "weights.npz", **file_of(small["params"]))
    jax.tree.map(np.testing.assert_array_equal, load_squeezenet(tmp_path / "weights.npz"), small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_final.kernel": None}, "lacks 'conv_final.kernel'"),
        ({"fire5.conv3x3_2.bias": None}, "lacks 'fire5.conv3x3_2.bias'"),
        ({"fire2.conv1x1_1.kernel": np.zeros((3, 3))}, "expected four axes"),
        ({"fire3.conv1x1_2.bias": np.zeros(3)}, r"of shape \(3,\), expected \(8,\)"),
        ({"conv1.kernel": np.array([{}], object)}, "Python objects, which are never loaded"),
        ({"fire10.bias": np.zeros(3)}, "'fire10.bias', which no SqueezeNet has"),
    ],
)
def test_a_file_that_is_none_is_refused_by_the_array_at_fault(tmp_path, small, change, message):
    arrays = {k: v for k, v in {**file_of(small["params"]), **change}.items() if v is not None}
    np.savez(tmp_path / "weights.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_squeezenet(tmp_path / "weights.npz")


@pytest.mark.slow
def test_of_the_first_100_odd_labels_67_are_right_and_two_thirds_of_the_weights_zero(data_root):
    variables = load_squeezenet(data_root / "imagenet_sample" / "squeezenet.npz")
    kernels = [x for x in jax.tree.leaves(variables) if x.ndim == 4]
    assert sum(int((x != 0).sum()) for x in kernels) / sum(x.size for x in kernels) < 0.34
    data = imagenet_sample(data_root, splits=["test"]).first(0, 100)

    @jax.jit
    def logits(images):
        images = normalize(images, SQUEEZENET_MEAN, SQUEEZENET_STD, data.max_value)
        return SqueezeNet().apply(variables, images)

    found = [np.argmax(logits(part), axis=1) for part in np.split(data.eval_images, 2)]
    assert int((np.concatenate(found) == data.eval_labels).sum()) == 67
