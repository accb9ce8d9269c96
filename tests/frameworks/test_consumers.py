"""What a layer's output reaches is read off the traced program."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.frameworks.linen import Quantized
from bitjax.frameworks.shapes import program_of
from bitjax.frameworks.tap import tap
from bitjax.models import CifarResNet, SmallCNN, resnet20
from bitjax.program.consumers import Consumer, consumers
from bitjax.two_step.data import addend


def of(model, *shape):
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    return consumers(program_of(model, (x,), {})[0])


def test_in_a_residual_block_the_first_layer_has_one_reader_and_the_second_is_added():
    found = of(resnet20(), 32, 32, 3)
    for stage in (1, 2, 3):
        for block in (1, 2, 3):
            path = f"stage{stage}/block{block}"
            assert found[f"{path}/conv1"] == Consumer(
                f"{path}/bn1", f"{path}/conv2/input", rectified=True
            )
            assert found[f"{path}/conv2"] == Consumer(f"{path}/bn2", None, added=True)
    assert found["stem"] == Consumer("stem_bn", None)  # read by a layer and by a shortcut
    assert found["head"] == Consumer(None, None)


def test_a_chain_is_followed_through_pooling_and_reshaping():
    found = of(SmallCNN(), 8, 8, 1)
    chain = [name for name in found]
    for layer, reader in zip(chain, chain[1:-1], strict=False):
        assert found[layer].site == f"{reader}/input"


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(name="norm"), nn.RMSNorm(name="norm"), nn.GroupNorm(2, name="norm")]
)
def test_a_normalisation_by_the_data_is_named_and_no_map(norm):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = norm.clone(parent=self)(nn.Dense(4, name="first")(x))
            return nn.Dense(2, name="a")(nn.relu(y))

    assert of(Net(), 3)["first"] == Consumer("norm", None, affine=False)


def test_a_gate_or_a_softmax_is_no_normalisation():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.Dense(4, name="first")(x)
            y = y * nn.sigmoid(nn.Dense(4, name="gate")(y.mean(1, keepdims=True)))
            return nn.softmax(nn.Dense(2, name="a")(y))

    found = of(Net(), 5, 3)
    assert found["first"] == found["a"] == Consumer(None, None)


def test_addends_that_are_sites_leave_a_sum_a_sum():
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    model = Quantized(CifarResNet(depth=8, width=4), sums=True)
    assert consumers(program_of(model, (x,), {})[0]) == of(model.model, 32, 32, 3)


class Branches(nn.Module):
    """One layer whose output is used in the way that `kind` says."""

    kind: str

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(4, name="first")(x)
        if self.kind == "two layers":
            return nn.Dense(2, name="a")(y) + nn.Dense(2, name="b")(y)
        if self.kind == "also returned":
            return nn.Dense(2, name="a")(nn.relu(y)), y
        if self.kind == "gelu":
            return nn.Dense(2, name="a")(nn.gelu(y))
        if self.kind == "average":
            return nn.Dense(2, name="a")(nn.relu(y).reshape(len(y), 2, 2).mean(1))
        if self.kind == "straight":
            return nn.Dense(2, name="a")(y.reshape(len(y), 2, 2).reshape(len(y), 4))
        if self.kind == "sum":
            return nn.Dense(2, name="a")(nn.relu(y + jnp.arange(1.0 * y.size).reshape(y.shape)))
        if self.kind == "scaled before":
            return nn.Dense(2, name="a")(nn.relu(3.0 - y * jnp.arange(4.0)))
        if self.kind == "scaled":
            return nn.Dense(2, name="a")(2.0 * nn.relu(y))
        return nn.Dense(2, name="a")(jnp.maximum(y, 0.0).astype(jnp.bfloat16))


@pytest.mark.parametrize("kind", ["two layers", "also returned", "gelu", "average", "scaled"])
def test_what_is_not_exactly_one_reader_behind_a_relu_is_none(kind):
    assert of(Branches(kind), 3)["first"] == Consumer(None, None)


def test_a_layer_without_normalisation_has_its_reader_too():
    assert of(Branches("cast"), 3)["first"] == Consumer(None, "a/input", rectified=True)
    assert not of(Branches("straight"), 3)["first"].rectified


@pytest.mark.slow
def test_what_a_layer_is_added_to_is_read_off_the_program_too():
    model, x = resnet20(width=4), jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    variables = model.init(jax.random.key(0), x)
    found = jax.jit(lambda v, x: addend(model, v, (x,), {}, "stage1/block1/conv2"))(variables, x)
    stem = tap(model, variables, x)["stage1/block1/conv1"].input
    np.testing.assert_allclose(found, stem, atol=1e-5)
    with pytest.raises(ValueError, match="layer 'stem' is not read by one sum alone"):
        addend(model, variables, (x,), {}, "stem")


def test_a_sum_with_a_constant_is_a_sum():
    found = of(Branches("sum"), 3)["first"]
    assert found == Consumer(None, None, added=True)


def test_factors_and_addends_of_each_channel_are_no_reader_of_their_own():
    found = of(Branches("scaled before"), 3)["first"]
    assert found == Consumer(None, "a/input", rectified=True)
