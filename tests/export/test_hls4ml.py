"""What hls4ml compiles is what evaluates: every code, every sum, every class."""

import contextlib
import io
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest

import bitjax as bj
from bitjax.data import load
from bitjax.methods import full_precision
from bitjax.models import MLP, SmallCNN
from bitjax.training.runner import run
from bitjax.training.settings import Settings
from bitjax.training.work import make_work

pytestmark = [
    pytest.mark.slow,
    # Of hls4ml, qonnx and what they import: nothing here can repair them.
    pytest.mark.filterwarnings("ignore"),
]
needs_a_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="needs g++, which compiles the network"
)

RULES = [
    bj.rule(".*/kernel", bj.lsq(bits=4, scale="power_of_two")),
    bj.rule(".*/input", bj.lsq(bits=4, signed=False, scale="power_of_two")),
]
NETS = {"mlp": MLP(features=(16,)), "cnn": SmallCNN(width=4)}


@pytest.fixture(autouse=True, scope="module")
def hls4ml():
    """A second to import, which a run without these tests should not pay."""
    return pytest.importorskip("hls4ml")  # an extra has it, not the core


def traced(hls4ml, ready, folder, x):
    """What the compiled C++ gives for a batch, and what each of its layers does."""
    for layer in ready.config["LayerName"].values():
        layer["Trace"] = True
    with contextlib.redirect_stdout(io.StringIO()):
        model = hls4ml.converters.convert_from_onnx_model(
            ready.model, output_dir=str(folder), hls_config=ready.config, backend="Vitis"
        )
        return model.trace(np.ascontiguousarray(x))


@needs_a_compiler
@pytest.mark.parametrize("name", NETS)
def test_every_code_and_sum_in_cpp_is_that_of_evaluation_and_every_image_gets_its_class(
    name, hls4ml, tmp_path
):
    # Pixels as a camera gives them: whole numbers over 16.
    digits = load("digits")._replace(mean=(0.0,), std=(1.0,))
    work = make_work(
        full_precision(steps=100, learning_rate=0.1), NETS[name], digits, settings=Settings(64)
    )
    x, labels = np.float32(digits.eval_images) / 16, digits.eval_labels
    model = bj.Quantized(NETS[name], RULES)
    variables = bj.attach(model, run(work, show=False).variables, np.float32(digits.images) / 16)
    fixed = bj.deploy(model, variables, x)
    ran = bj.integer_model(fixed, x).sites(x)
    assert np.mean(np.argmax(ran.out, -1) == labels) > 0.7

    logits, trace = traced(hls4ml, bj.to_hls4ml(fixed, x), tmp_path, x)
    np.testing.assert_array_equal(logits.argmax(-1), np.argmax(ran.out, -1))
    np.testing.assert_allclose(logits, ran.out, atol=1e-5 * np.std(ran.out))

    def levels(name, counted, scale):
        """A traced tensor in units of a scale, and what it should be."""
        key = next(key for key in reversed(trace) if name in (key, *_stems(key)))
        return trace[key] / scale, np.reshape(counted, trace[key].shape)

    scales = {
        (layer, role): float(leaves["scale"])
        for layer, sites in fixed.variables["quant"].items()
        for role, leaves in sites.items()
    }
    for site, whole in ran.integers.items():
        layer = site.removesuffix("/input")
        got, want = levels(f"{layer}_input", whole, scales[layer, "input"])
        assert len(np.unique(want)) > 8, "codes that are all alike would tell nothing"
        np.testing.assert_array_equal(got, want, err_msg=site)
    for layer, sums in ran.sums.items():
        scale = scales[layer, "input"] * scales[layer, "kernel"]
        np.testing.assert_array_equal(*levels(layer, sums, scale), err_msg=layer)
    assert len(ran.sums) == len(ran.integers) == {"mlp": 2, "cnn": 4}[name]


def _stems(key):
    """What a layer of hls4ml was called before it was made of others."""
    return key.removesuffix("_act"), key.removesuffix("_relu"), key.partition("_")[2]


class Net(nn.Module):
    """A convolution, something, and a head."""

    between: str

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="stem")(x))
        if self.between == "a residual sum":
            x = x + nn.Conv(4, (3, 3), name="conv")(x)
        if self.between == "a mean":
            return nn.Dense(3, name="head")(x.mean((1, 2)))
        if self.between == "averages":
            x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(3, name="head")(x.reshape(len(x), -1))


def fixed(net, kernels, inputs):
    x = jax.random.uniform(jax.random.key(0), (8, 4, 4, 1))
    model = bj.Quantized(net, [bj.rule(".*/kernel", kernels), bj.rule(".*/input", inputs)])
    return bj.deploy(model, model.init(jax.random.key(1), x), x), x


@pytest.mark.parametrize(
    ("between", "says"),
    [
        ("a residual sum", "Add and Quant read one tensor of floats"),
        ("a mean", "computes GlobalAveragePool"),
        ("averages", "computes AveragePool"),
    ],
)
def test_what_hls4ml_would_compute_otherwise_is_refused(between, says):
    kernels, inputs = (quantizer for _, quantizer in RULES)
    with pytest.raises(ValueError, match=says):
        bj.to_hls4ml(*fixed(Net(between), kernels, inputs))


@pytest.mark.parametrize(
    ("kernels", "says"),
    [
        (bj.lsq(bits=4), "'stem/kernel': .* powers of two, got 0"),
        (
            bj.lsq(bits=4, granularity="per_channel"),
            "'stem/kernel' has 4 scales and 1 numbers of bits",
        ),
        (bj.binary(), "'stem/kernel': hls4ml takes the nearest of equally spaced levels"),
    ],
)
def test_levels_that_are_no_fixed_point_are_refused(kernels, says):
    inputs = bj.lsq(bits=4, signed=False, scale="power_of_two")
    with pytest.raises(ValueError, match=says):
        bj.to_hls4ml(*fixed(Net(""), kernels, inputs))
