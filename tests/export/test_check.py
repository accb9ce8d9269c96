"""A file that is checked is compared with evaluation site by site, and judged image by image."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.export import law
from bitjax.export.margins import margins
from bitjax.export.nodes import LOOKUP, QUANTIZE, Node
from bitjax.files.reading import FileError
from bitjax.models import MLP

X = jax.random.normal(jax.random.key(0), (8, 8, 8, 1))
ROUNDED = {"rate": np.float32(4), "first": np.float32(-8), "last": np.float32(7), "edges": None}


class Net(nn.Module):
    """A strided convolution, batch normalisation, a branch that is added, a head."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2, use_bias=False, name="stem")(x))
        x = x + nn.BatchNorm(use_running_average=True, name="bn")(
            nn.Conv(4, (3, 3), name="conv")(x)
        )
        return nn.Dense(5, name="head")(nn.relu(x).mean((1, 2)))


def deployed(model, quantizer, key=1):
    net = bj.Quantized(model, [bj.rule(".*", quantizer)])
    return bj.deploy(net, bj.calibrate(net, net.init(jax.random.key(key), X), [X]), X)


def images(**given):
    """The differences of 100 images, none unless they are given for the first ones."""
    found = {name: np.zeros(100) for name in law.ImageDifferences._fields[:4]}
    found |= {name: np.zeros((100, 1)) for name in ("own", "other")}
    for name, values in given.items():
        found[name][: len(values)] = np.reshape(values, (len(values), *found[name].shape[1:]))
    return law.ImageDifferences(**found)


@pytest.mark.parametrize(
    ("given", "counts", "holds"),
    [
        ({}, (100, 0, 0), True),
        ({"outputs": [9e-6]}, (100, 0, 0), True),
        ({"outputs": [1.1e-5]}, (99, 0, 1), False),
        ({"codes": [3] * 5, "margin": [9e-7] * 5, "outputs": [0.5] * 5}, (95, 5, 0), True),
        ({"codes": [3] * 6, "margin": [9e-7] * 6}, (94, 6, 0), False),
        ({"codes": [1], "margin": [2e-6]}, (99, 0, 1), False),
        ({"sums": [1]}, (99, 0, 1), False),
        ({"codes": [1], "own": [4]}, (99, 1, 0), False),  # its top-1 is another one
    ],
)
def test_an_image_is_the_same_or_parts_on_a_boundary_or_breaks_the_law(given, counts, holds):
    verdict = law.judge(images(**given))
    assert (verdict.same, verdict.border, verdict.broken) == counts
    assert verdict.holds == holds


@pytest.mark.parametrize(
    ("op", "params", "x", "own", "other", "margin"),
    [
        # 0.375 * 4 is the boundary of 1 and 2; 0.625 * 4 that of 2 and 3.
        (QUANTIZE, {**ROUNDED, "coding": "offset"}, 0.375, 2, 1, 0.0),
        (QUANTIZE, {**ROUNDED, "coding": "offset"}, 0.38, 2, 1, 0.02 / 1.5),
        (QUANTIZE, {**ROUNDED, "coding": "offset"}, 0.375, 1, 3, 1.0 / 2.5),
        (QUANTIZE, {**ROUNDED, "coding": "offset"}, -0.375, -2, -1, 0.0),
        (QUANTIZE, {**ROUNDED, "coding": "signs"}, 0.25, 1, -1, 0.25 / 2.0),
        (QUANTIZE, {**ROUNDED, "edges": np.array([1.0, 3.0]), "first": 0.0}, 1.5, 1, 2, 0.5),
        (QUANTIZE, {**ROUNDED, "edges": np.array([1.0, 3.0]), "first": 0.0}, 1.5, 1, 0, 0.5),
        (LOOKUP, {"edges": np.array([1.0, 3.0]), "levels": np.array([0.5, 2.0, 4.0])},
         3.3, 4.0, 2.0, 0.1),
    ],
)  # fmt: skip
def test_how_far_a_value_lies_from_the_boundary_of_its_code(op, params, x, own, other, margin):
    node = Node(op, (), (), params, "site")
    given = [np.array([2.0, value]) for value in (x, own, other)]  # the first one does not differ
    given[1][0] = given[2][0] = 0
    np.testing.assert_allclose(margins(node, *given), [margin], atol=1e-7)


def test_numbers_of_blocks_are_those_of_the_element():
    params = {**ROUNDED, "rate": np.array([[1.0, 10.0]]), "coding": "offset"}
    x = np.array([[0.5, 0.05], [0.6, 0.06]])
    found = margins(Node(QUANTIZE, (), (), params, ""), x, np.ones((2, 2)), np.zeros((2, 2)))
    np.testing.assert_allclose(found, [0, 0, 0.2, 0.2], atol=1e-6)


@pytest.mark.slow
def test_a_file_of_another_model_is_found_out_at_its_first_site(tmp_path):
    model, path = MLP((6,)), tmp_path / "model.safetensors"
    fixed, other = (deployed(model, bj.lsq(bits=4), key) for key in (1, 2))
    bj.save_packed(path, fixed, X)
    check = bj.check_export(path, other, X)
    assert check.first == "head/input" and check.sites[0].differ == 0  # both read the same images
    differ = {(row.name, row.kind): row.differ for row in check.sites}
    assert differ["dense1", "sums"] and differ["head", "sums"]
    assert not check.verdict.holds and check.margin > 1e-3
    said = str(check)
    assert "codes differ first at head/input" in said and "the law is broken" in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.tflite", "is named like no file of a model"),
        ("model.safetensors", "is no safetensors file"),
        ("model.onnx", "is no ONNX file|is not of bitjax.to_onnx"),
        ("model.stablehlo", "is no program of jax.export"),
    ],
)
def test_a_foreign_file_is_one_line(tmp_path, name, said):
    if name.endswith(".onnx"):
        pytest.importorskip("onnx")  # an extra has it, not the core
    (tmp_path / name).write_bytes(b"nothing of this kind")
    net = bj.Quantized(nn.Dense(2), [])
    x = jnp.ones((1, 3))
    fixed = bj.deploy(net, net.init(jax.random.key(0), x), x)
    with pytest.raises(FileError, match=said) as error:
        bj.check_export(tmp_path / name, fixed, x)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_every_format_has_the_codes_of_evaluation(tmp_path):
    for package in ("onnxruntime", "qonnx", "flatbuffers"):
        pytest.importorskip(package)  # an extra has it, not the core
    fixed = deployed(Net(), bj.lsq(bits=4))
    sites = ["stem/input", "conv/input", "head/input"]
    bj.save_packed(tmp_path / "m.safetensors", fixed, X)
    bj.to_stablehlo(fixed, X, path=tmp_path / "m.stablehlo")
    for profile in ("qdq", "integers", "qonnx"):
        bj.to_onnx(fixed, X, path=tmp_path / f"{profile}.onnx", profile=profile)
    shown = {
        ("m.safetensors", ""): (*sites, "stem", "conv", "head"),
        ("m.safetensors", "jax"): (*sites, "stem", "conv", "head"),
        ("integers.onnx", ""): (*sites, "stem", "conv", "head"),
        ("qdq.onnx", ""): tuple(sites),
        ("qonnx.onnx", ""): tuple(sites),
        ("m.stablehlo", ""): (),
    }
    for (name, runtime), wanted in shown.items():
        check = bj.check_export(tmp_path / name, fixed, X, runtime=runtime)
        assert tuple(row.name for row in check.sites) == wanted, name
        assert not any(row.differ for row in check.sites), check
        assert check.verdict.holds and check.verdict.same == 8, check
        assert check.versions and check.outputs < 1e-6
        if runtime == "jax" or name == "m.stablehlo":
            assert check.outputs == 0
