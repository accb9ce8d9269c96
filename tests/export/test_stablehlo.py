"""A program of StableHLO is the integer program, for other platforms and any batch."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import bitjax as bj
from tests.export.by_hand import RNG, Form, by_hand, zoo

pytest.importorskip("flatbuffers")  # an extra has it, not the core
X = RNG(1).normal(size=(2, 6)).astype(np.float32)


class Two(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(4, name="a")(x))
        return {"out": nn.Dense(3, name="b")(x)}


@pytest.fixture(scope="module")
def fixed():
    return by_hand(Two(), dict.fromkeys("ab", (Form(4, block="channel"), Form(4))), X)


def test_what_is_read_back_is_the_integer_program_for_any_batch(fixed, tmp_path):
    path = tmp_path / "two.stablehlo"
    content = bj.to_stablehlo(fixed, X, path=path)
    assert path.read_bytes() == content
    exported = jax.export.deserialize(bytearray(content))
    assert exported.platforms == ("cpu", "cuda", "tpu") and "xi8>" in exported.mlir_module()
    run, net, many = bj.read_stablehlo(path), bj.integer_model(fixed, X), np.concatenate([X, X, X])
    np.testing.assert_array_equal(run(X)["out"], net(X)["out"])
    np.testing.assert_array_equal(run(many)["out"], net(many)["out"])


@pytest.mark.slow
def test_every_form_of_a_site_is_read_back(tmp_path):
    path, case = tmp_path / "zoo.stablehlo", zoo()
    bj.to_stablehlo(case.deployed, case.x, path=path)
    np.testing.assert_array_equal(bj.read_stablehlo(path)(case.x), case.evaluate(case.x))


def test_a_batch_that_cannot_be_free_is_refused_and_can_be_fixed():
    net = bj.Function(lambda params, x: x / x.shape[0])
    fixed = bj.Deployed(net, {"params": {}})
    with pytest.raises(ValueError, match="free_batch=False"):
        bj.to_stablehlo(fixed, X)
    content = bj.to_stablehlo(fixed, X, platforms=("cpu",), free_batch=False)
    exported = jax.export.deserialize(bytearray(content))
    assert exported.platforms == ("cpu",) and exported.in_avals[0].shape == X.shape


@pytest.mark.parametrize(
    "damage",
    [lambda c: b"", lambda c: c[:200], lambda c: b"PK" + c],
    ids=("empty", "cut short", "of another kind"),
)
def test_a_file_that_is_no_program_is_refused_in_one_line(fixed, tmp_path, damage):
    path = tmp_path / "bad.stablehlo"
    path.write_bytes(damage(bj.to_stablehlo(fixed, X, platforms=("cpu",))))
    with pytest.raises(ValueError, match=r"bad\.stablehlo") as caught:
        bj.read_stablehlo(path)
    assert "\n" not in str(caught.value)
