"""A patch times the kernel's matrix is the layer's output there, whatever the layer's settings."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.frameworks.probe import probe
from bitjax.program.patches import draw_places, patch_view

LAYERS = {
    "conv": (nn.Conv(6, (3, 3)), (2, 7, 6, 4)),
    "stride": (nn.Conv(6, (3, 2), strides=(2, 3), padding="VALID"), (2, 7, 9, 4)),
    "same, stride 2": (nn.Conv(6, (3, 3), strides=2), (2, 8, 7, 4)),
    "padding": (nn.Conv(6, (5, 3), padding=((2, 1), (0, 3))), (2, 7, 6, 4)),
    "padding 1": (nn.Conv(6, (3, 3), strides=2, padding=1), (2, 8, 8, 4)),
    "dilation": (nn.Conv(6, (3, 3), kernel_dilation=(2, 1)), (2, 9, 6, 4)),
    "groups": (nn.Conv(6, (3, 3), feature_group_count=2), (2, 7, 6, 4)),
    "depthwise": (nn.Conv(4, (3, 3), feature_group_count=4), (2, 7, 6, 4)),
    "one axis": (nn.Conv(6, (3,)), (2, 7, 4)),
    "more batch axes": (nn.Conv(6, (3, 3)), (2, 3, 5, 5, 4)),
    "dense": (nn.Dense(5), (4, 3)),
    "dense of a sequence": (nn.Dense(5), (2, 7, 3)),
    "projection to heads": (nn.DenseGeneral((2, 5)), (2, 7, 3)),
    "projection from heads": (nn.DenseGeneral(6, axis=(-2, -1)), (2, 7, 2, 5)),
}


def seen_of(model, shape, function):
    """What a function of a layer's call gives, and the kernel."""
    x = jax.random.normal(jax.random.key(0), shape)
    variables = model.init(jax.random.key(1), x)
    found = probe(model, variables, (x,), {}, function)
    return [record for _, record in found.records], variables["params"]


FAST = ("conv", "groups", "dense", "projection to heads")


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in LAYERS]
)
def test_patches_times_the_matrix_are_the_outputs(name):
    model, shape = LAYERS[name]

    def at_all_places(seen):
        view = patch_view(seen.layer, seen.tensors["kernel"].shape)
        x, kernel = seen.tensors["input"], seen.tensors["kernel"]
        positions = view.positions(x, seen.out)
        places = jnp.arange(positions * len(x))
        patches, outputs = view.patches(x, places), view.outputs(seen.out, places)
        product = jnp.einsum("gtn,gmn->gtm", patches, view.matrix(kernel))
        return product, outputs, view.kernel(view.matrix(kernel))

    ((product, outputs, kernel),), params = seen_of(model, shape, at_all_places)
    assert product.size == outputs.size and outputs.shape[1] > shape[0] - 1
    np.testing.assert_allclose(product, outputs, atol=1e-5)
    np.testing.assert_array_equal(kernel, params["kernel"])


def test_places_are_drawn_without_repetition_and_evenly_over_examples():
    places = np.asarray(draw_places(jax.random.key(0), 10, 50, 7))
    assert len(set(places.tolist())) == 70
    assert np.bincount(places // 50).tolist() == [7] * 10
    again = np.asarray(draw_places(jax.random.key(1), 10, 50, 7))
    assert (again != places).any()


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.ConvTranspose(3, (3, 3)), (1, 4, 4, 2)),
        (nn.Conv(3, (3, 3), padding="CIRCULAR"), (1, 4, 4, 2)),
        (nn.Conv(3, (3, 3), padding=1, input_dilation=2), (1, 4, 4, 2)),
        (nn.ConvLocal(3, (3, 3)), (1, 4, 4, 2)),
    ],
)
def test_a_layer_without_patches_is_refused_by_name(model, shape):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return model.clone(name="odd", parent=self)(x)

    def view(seen):
        made = patch_view(seen.layer, seen.tensors["kernel"].shape)
        return made.patches(seen.tensors["input"], jnp.arange(1))

    with pytest.raises(ValueError, match=r"layer 'odd' .*leave it out of `layers`"):
        seen_of(Net(), shape, view)
