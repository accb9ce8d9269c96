"""Published weights reproduce their published accuracy; files that are not them are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.data import eval_batches, load, normalize
from bitjax.models import RESNET_MEAN, RESNET_STD, CifarResNet, load_resnet, resnet20


def correct(data_root, limit):
    variables = load_resnet(data_root / "pretrained" / "cifar10_resnet20.npz")
    data = load("cifar10", root=data_root, limit=limit, train=False)

    @jax.jit
    def count(batch):
        x = normalize(batch["image"], RESNET_MEAN, RESNET_STD, data.max_value)
        hits = jnp.argmax(resnet20().apply(variables, x), axis=-1) == batch["label"]
        return jnp.sum(hits * batch["mask"])

    return sum(int(count(batch)) for batch in eval_batches(data, 250))


def test_the_first_500_test_images_get_455_right(data_root):
    assert correct(data_root, 500) == 455


@pytest.mark.slow
def test_the_whole_test_set_gets_the_published_91_73_per_cent(data_root):
    assert correct(data_root, None) == 9173


def arrays_of(depth, width, num_classes):
    """A file's arrays, spelled out by the naming in the docstring."""
    rng = np.random.default_rng(0)
    shapes = {"stem.conv.kernel": (3, 3, 3, width), "fc.kernel": (4 * width, num_classes)}
    shapes["fc.bias"] = (num_classes,)
    norms = {"stem.bn": width}
    for i in (1, 2, 3):
        filters = width * 2 ** (i - 1)
        for j in range(1, (depth - 2) // 6 + 1):
            inputs = filters // 2 if i > 1 and j == 1 else filters
            shapes[f"stage{i}.block{j}.conv1.kernel"] = (3, 3, inputs, filters)
            shapes[f"stage{i}.block{j}.conv2.kernel"] = (3, 3, filters, filters)
            norms |= {f"stage{i}.block{j}.bn1": filters, f"stage{i}.block{j}.bn2": filters}
    for name, filters in norms.items():
        shapes |= {f"{name}.{leaf}": (filters,) for leaf in ("scale", "bias", "mean", "var")}
    return {name: rng.uniform(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(("depth", "width", "num_classes"), [(8, 2, 10), (20, 4, 7)])
def test_depth_width_and_classes_follow_from_the_file(tmp_path, depth, width, num_classes):
    arrays = arrays_of(depth, width, num_classes)
    np.savez(tmp_path / "weights.npz", **arrays)
    variables = load_resnet(tmp_path / "weights.npz")
    model = CifarResNet(depth, num_classes, width)
    logits = jax.eval_shape(model.apply, variables, jnp.ones((1, 32, 32, 3)))
    assert logits.shape == (1, num_classes)
    last = variables["params"]["stage3"][f"block{(depth - 2) // 6}"]
    name = f"stage3.block{(depth - 2) // 6}"
    np.testing.assert_array_equal(last["conv2"]["kernel"], arrays[f"{name}.conv2.kernel"])
    np.testing.assert_array_equal(variables["batch_stats"]["stem_bn"]["var"], arrays["stem.bn.var"])
    np.testing.assert_array_equal(variables["params"]["head"]["bias"], arrays["fc.bias"])


def test_folded_weights_compute_the_same_without_normalisations(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **arrays_of(8, 2, 10))
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    folded = load_resnet(path, folded=True)
    plain = jax.eval_shape(CifarResNet(8, width=2, norm="none").init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, folded) == jax.tree.map(jnp.shape, plain)
    expected = jax.jit(CifarResNet(8, width=2).apply)(load_resnet(path), x)
    found = jax.jit(CifarResNet(8, width=2, norm="none").apply)(folded, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.kernel": None}, "lacks 'fc.kernel'"),
        ({"stage2.block1.bn1.var": None}, "lacks 'stage2.block1.bn1.var'"),
        ({"stem.bn.mean": np.zeros(3)}, r"'stem.bn.mean' of shape \(3,\), expected \(2,\)"),
        ({"stem.conv.kernel": np.zeros((3, 3))}, "expected four axes"),
        ({"fc.bias": np.full(10, np.nan)}, "'fc.bias' with values that are not finite"),
        ({"fc.extra": np.zeros(1)}, "'fc.extra', which no CIFAR ResNet has"),
    ],
)
def test_a_file_that_is_not_a_resnet_is_refused_by_the_array_at_fault(tmp_path, change, message):
    arrays = {k: v for k, v in {**arrays_of(8, 2, 10), **change}.items() if v is not None}
    path = tmp_path / "weights.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message) as error:
        load_resnet(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="no/such.npz is missing; give a ResNet"):
        load_resnet("no/such.npz")


def test_pickled_arrays_are_never_opened(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **{"stem.conv.kernel": np.array([{}], object)})
    with pytest.raises(ValueError, match="Python objects, which are never loaded"):
        load_resnet(path)
