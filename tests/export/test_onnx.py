"""ONNX files give the codes and sums of a plain program, in every profile."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bitjax as bj
from bitjax import data as bj_data
from bitjax import models
from bitjax.export import forms
from bitjax.export.deploy import exact_rules
from bitjax.export.graph import graph_of
from bitjax.export.interpreter import interpret
from bitjax.export.onnx_qdq import stored, stored_input
from bitjax.models.mobilenet import STAGES
from bitjax.models.pretrained import RESNET_MEAN, RESNET_STD, load_resnet
from bitjax.quantizers import deployed
from bitjax.variables import nest

onnx = pytest.importorskip("onnx")  # an extra has it, not the core
ort = pytest.importorskip("onnxruntime")  # an extra has it, not the core

PROFILES = ("integers", "qdq", "qonnx")
NORMAL = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3), 255.0
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
X = ((PIXELS / np.float32(255) - np.float32(NORMAL[0])) / np.float32(NORMAL[1])).astype(np.float32)


class Net(nn.Module):
    """Every kind of layer that the models have, small."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), name="plain")(x))
        y = nn.Conv(8, (3, 3), feature_group_count=8, name="depthwise")(x)
        y = nn.BatchNorm(use_running_average=True, name="norm")(y)
        x = nn.max_pool(nn.relu(x + y), (2, 2), (2, 2))
        y = nn.Conv(8, (1, 1), name="wide")(jnp.pad(x, ((0, 0), (1, 0), (0, 1), (0, 0))))
        x = nn.relu6(nn.Conv(8, (2, 2), padding="VALID", name="table")(y))
        x = nn.avg_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(8, name="groups")(x))
        x = nn.relu(nn.Dense(8, name="signs")(x))
        return nn.Dense(5, name="head")(x)


EDGES = np.array([0.1, 0.4, 1.1], np.float32)
TABLE = np.array([-1.5, -0.7, -0.2, 0.3, 0.4, 1.0, 1.7, 2.0], np.float32)
# A quantizer of every form, its bits and its other leaves; a scale is drawn for each block.
SITES = {
    "plain/kernel": (deployed.affine("offset", "symmetric"), 3, (1, 1, 1, 8), {}),
    "plain/input": (deployed.affine("offset", "symmetric"), 8, (), {}),
    "depthwise/kernel": (deployed.affine("offset", "narrow"), 2, (), {}),
    "depthwise/input": (deployed.affine("offset", "unsigned"), 2, (), {"edges": EDGES}),
    "wide/kernel": (deployed.affine("offset", "symmetric"), 14, (), {}),  # sums pass 2^24
    "wide/input": (deployed.affine("offset", "unsigned"), 15, (), {}),
    "table/kernel": (deployed.table(), 3, None, {"levels": TABLE}),
    "table/input": (deployed.table(), 3, None, {"levels": TABLE, "edges": TABLE[1:] - 0.1}),
    "groups/kernel": (deployed.affine("offset", "stored"), 4, (2, 8), {"first": np.float32(-3)}),
    "groups/input": (deployed.affine("offset", "stored"), 5, (), {"first": np.float32(-2)}),
    "signs/kernel": (deployed.affine("signs", "symmetric"), 1, (), {}),
    "signs/input": (deployed.affine("offset", "unsigned"), 4, (), {}),
    "head/kernel": (deployed.affine("sign_magnitude", "symmetric"), 4, (1, 5), {}),
    "head/input": (deployed.affine("offset", "unsigned"), 8, (1, 8), {}),
}


def by_hand(module, x, sites):
    """A deployed model with drawn parameters; making it compiles nothing."""
    draw = np.random.default_rng(3)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda s: draw.uniform(0.5, 1.5, s.shape).astype(np.float32), shapes)
    flat, quant, chosen = {}, {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        flat["/".join(key.key for key in path)] = path, leaf
    for name, (quantizer, bits, block, more) in sites.items():
        leaves = {"bits": np.float32(bits), **more}
        step = 4.0 / 2**bits  # ranges are about as wide as what is drawn
        if block is not None:
            leaves["scale"] = (step * draw.uniform(0.8, 1.2, block)).astype(np.float32)
        quant[name], chosen[name] = leaves, quantizer
        if name in flat:
            path, kernel = flat[name]
            kernel = draw.normal(0, kernel[..., 0].size ** -0.5, kernel.shape).astype(np.float32)
            if block is not None:
                leaves["scale"] = (leaves["scale"] / 2).astype(np.float32)
            holder = variables["params"]
            for key in path[:-1]:
                holder = holder[key.key]
            form = forms.form_of(quantizer)
            codes = forms.codes_of(form, leaves, kernel)
            holder[path[-1].key] = forms.levels_of(form, leaves, codes)
    return bj.Deployed(
        bj.Quantized(module, exact_rules(chosen)), {**variables, "quant": nest(quant)}
    )


def run(model, feeds, *, optimize=True):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def executed(model, feeds):
    """What the executor of QONNX gives."""
    pytest.importorskip("qonnx")  # an extra has it, not the core
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    return execute_onnx(ModelWrapper(model).transform(InferShapes()), feeds)


@pytest.fixture(scope="module")
def net():
    fixed = by_hand(Net(), X, SITES)
    return fixed, interpret(graph_of(fixed, X), X)


def test_codes_and_sums_in_onnx_runtime_are_those_of_a_plain_program(net):
    fixed, plain = net
    model = bj.to_onnx(fixed, X[:2], profile="integers", sites=True)
    onnx.checker.check_model(model, full_check=True)
    for optimize in (True, False):
        found = run(model, {"x": X}, optimize=optimize)
        for site, integers in plain.integers.items():
            if integers.dtype == np.int32:  # else levels of a table
                np.testing.assert_array_equal(found[f"{site}/codes"], integers, site)
        # Those of a table, of groups and of inputs with many scales are sums of levels.
        assert set(plain.sums) == {"plain", "depthwise", "wide", "signs"}
        assert np.abs(plain.sums["wide"]).max() > 2**24  # which float32 does not add exactly
        for layer, sums in plain.sums.items():
            np.testing.assert_array_equal(found[f"{layer}/accumulator"], sums, layer)
        np.testing.assert_allclose(found["output"], plain.out, atol=1e-5 * plain.out.std())


@pytest.mark.parametrize("profile", PROFILES[1:])
def test_outputs_of_levels_are_those_of_integers(net, profile):
    fixed, plain = net
    if profile == "qdq":
        model = bj.to_onnx(fixed, X[:2], profile=profile)
        onnx.checker.check_model(model, full_check=True)
        assert model.opset_import[0].version == 25  # a ternary kernel is stored in 2 bits
        kinds = {t.name: t.data_type for t in model.graph.initializer if "kernel/codes" in t.name}
        kind = onnx.TensorProto.DataType
        assert kinds["depthwise/kernel/codes"] == kind.INT2
        assert kinds["plain/kernel/codes"] == kind.INT4
        outputs = [run(model, {"x": X}, optimize=way)["output"] for way in (True, False)]
    else:
        model = bj.to_onnx(fixed, X, profile=profile, free_batch=False)
        assert {"Quant", "BipolarQuant"} <= {node.op_type for node in model.graph.node}
        outputs = [executed(model, {"x": X})["output"]]
    for output in outputs:
        np.testing.assert_allclose(output, plain.out, atol=1e-5 * plain.out.std())


def test_raw_pixels_and_channels_first_go_in_at_any_batch_size(net):
    fixed, plain = net
    model = bj.to_onnx(fixed, X[:2], profile="integers", normalization=NORMAL)
    assert [d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim][0] == "batch"
    for count in (1, 6):
        found = run(model, {"x": PIXELS[:count]})["output"]
        np.testing.assert_allclose(found, plain.out[:count], atol=1e-5 * plain.out.std())
    model = bj.to_onnx(fixed, X[:2], profile="integers", channels_first=True)
    found = run(model, {"x": X.transpose(0, 3, 1, 2)})["output"]
    np.testing.assert_allclose(found, plain.out, atol=1e-5 * plain.out.std())
    with pytest.raises(ValueError, match="must have 3 numbers as its mean, one a channel"):
        bj.to_onnx(fixed, X[:2], normalization=((0.5,), (0.25,), 255.0))


@pytest.mark.parametrize("profile", PROFILES)
def test_what_a_profile_cannot_write_is_one_line_and_no_file(profile, tmp_path):
    class Sorted(nn.Module):
        @nn.compact
        def __call__(self, x):
            return lax.sort(nn.Dense(2, name="layer")(x))

    model, x = bj.Quantized(Sorted(), []), np.ones((1, 3), np.float32)
    variables = {"params": {"layer": {"kernel": np.ones((3, 2)), "bias": np.ones(2)}}}
    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match=rf"computes 'sort'.* profile '{profile}'") as caught:
        bj.to_onnx(bj.Deployed(model, variables), x, path=path, profile=profile)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def primitives(x, t):
    """One of each of what a model computes between its products."""
    y = jnp.stack([
        jnp.exp(x), jnp.log(jnp.abs(x) + 1), jnp.tanh(x), jax.nn.sigmoid(x), lax.erf(x),
        lax.erfc(x), jnp.sqrt(x * x), lax.rsqrt(x * x + 1), x**3, x**-2, jnp.expm1(x),
        jnp.log1p(x * x), jnp.exp2(x), jnp.floor(x), jnp.ceil(x), jnp.round(x), jnp.sign(x), -x,
        jnp.minimum(x, 0.5), jnp.maximum(x, -0.5), jnp.clip(x, -1, 1), jnp.where(x > 0, x, x / 3),
        jnp.where((x >= 0.1) & ~(x < 1) | (x != x), 1.0, x), jnp.sin(x), jnp.cos(x),
        (x > 0).astype(jnp.float32), jax.nn.softmax(x), jax.nn.gelu(x), jax.nn.softplus(x),
        jnp.broadcast_to(x.sum(1, keepdims=True), x.shape),
        jnp.broadcast_to(x.max(1, keepdims=True), x.shape), jnp.flip(x, 1), jnp.cumsum(x, 1),
        jnp.concatenate([x[:, 2:], x[:, :2]], 1), jnp.pad(x[:, 1:3], ((0, 0), (1, 1))),
        jnp.take(x, jnp.array([3, 1, 0, 2]), axis=1), jnp.tile(x[:, ::2], 2),
        jnp.concatenate([jnp.ones((x.shape[0], 1)), x[:, 1:]], 1),
        jnp.broadcast_to(jnp.argmax(x, 1)[:, None].astype(jnp.float32), x.shape),
    ])  # fmt: skip
    attend = jnp.einsum("bij,bkj->bik", t, jax.nn.softmax(t, -1))
    heads = t.reshape(t.shape[0], 3, 2, 2).transpose(0, 2, 1, 3)
    parts = jnp.split(t, 2, axis=2)
    return y, attend, heads @ heads.swapaxes(2, 3), parts[0] * parts[1], t.reshape(-1, 4).mean(1)


def test_primitives_mean_what_they_mean_in_jax():
    draw = np.random.default_rng(1)
    x, t = (draw.normal(size=s).astype(np.float32) for s in ((5, 4), (5, 3, 4)))
    model = bj.Function(lambda params, x, t: primitives(x, t), [])
    expected = jax.jit(primitives)(x, t)
    file = bj.to_onnx(bj.Deployed(model, {"params": {}}), x[:2], t[:2])
    onnx.checker.check_model(file, full_check=True)
    names = [i.name for i in file.graph.input]
    found = run(file, dict(zip(names, (x, t), strict=True)))
    for i, own in enumerate(expected):
        np.testing.assert_allclose(found[f"output_{i}"], own, rtol=2e-5, atol=2e-6)


def test_codes_are_stored_in_the_smallest_type_that_runtimes_have():
    wide, from_four = (2, 4, 8, 16), (4, 8, 16)
    pairs = ((-8, 7), (0, 15), (-3, 12), (-9, 7))
    kinds = {ends: stored(*ends, from_four).dtype.name for ends in pairs}
    assert list(kinds.values()) == ["int4", "uint4", "uint4", "int8"]
    assert stored(-1, 1, wide).dtype.name == "int2"
    assert stored(-1, 1, from_four).dtype.name == "int4"
    assert stored_input(-8, 7) == (np.dtype("uint8"), 8, False)
    assert stored_input(0, 15)[0].name == "uint4" and stored_input(0, 3)[0] == np.uint8
    with pytest.raises(NotImplementedError, match="more than 16 bits"):
        stored(-(2**16), 2**16, wide)


def whole_model(module, x, bits=4):
    """A model of which every layer with a kernel is quantized, made by hand."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    paths = ["/".join(k.key for k in p) for p, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    symmetric = deployed.affine("offset", "symmetric")
    sites = {path: (symmetric, bits, (), {}) for path in paths if path.endswith("/kernel")}
    return by_hand(module, x, sites | {f"{p[:-7]}/input": (symmetric, 8, (), {}) for p in sites})


class Attention(nn.Module):
    """A small vision transformer."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), (4, 4), padding="VALID", name="patch")(x)
        x = x.reshape(x.shape[0], -1, 8)
        first = self.param("first", nn.initializers.zeros, (1, 1, 8))
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, 8)), x], 1)
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(nn.LayerNorm()(x))
        x = x + nn.Dense(8, name="down")(nn.gelu(nn.Dense(16, name="up")(nn.LayerNorm()(x))))
        return nn.Dense(5, name="head")(x[:, 0])


MODELS = {
    "mlp": (models.MLP(features=(8, 6)), (8, 8)),
    "cnn": (models.SmallCNN(), (8, 8, 1)),
    "resnet8": (models.CifarResNet(depth=8, width=4), (32, 32, 3)),
    "resnet18": (models.resnet18(width=4), (32, 32, 3)),
    "resnet50": (models.ImageNetResNet(blocks=(1, 2), bottleneck=True, width=4), (32, 32, 3)),
    "vgg": (models.VGGSmall(width=4), (32, 32, 3)),
    "alexnet": (models.AlexNet(width=4), (64, 64, 3)),
    "mobilenet": (models.MobileNetV2(width=8, stages=STAGES[:2]), (32, 32, 3)),
    "attention": (Attention(), (8, 8, 3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_model_gives_its_sums_in_onnx_runtime_and_its_outputs_in_every_profile(name):
    module, shape = MODELS[name]
    x = np.random.default_rng(2).normal(size=(3, *shape)).astype(np.float32)
    fixed = whole_model(module, x)
    plain = interpret(graph_of(fixed, x), x)
    found = run(bj.to_onnx(fixed, x[:2], profile="integers", sites=True), {"x": x})
    for site, integers in plain.integers.items():
        differ = (found[f"{site}/codes"] != integers).mean()
        assert differ < 1e-3, site  # of values that lie on a boundary, which rounding decides
    for profile in PROFILES:
        model = bj.to_onnx(fixed, x, profile=profile, free_batch=profile != "qonnx")
        output = (run if profile != "qonnx" else executed)(model, {"x": x})["output"]
        assert np.median(np.abs(output - plain.out)) < 1e-3 * plain.out.std()


@pytest.mark.slow
def test_qonnx_counts_the_costs_that_bitjax_counts(tmp_path):
    counting = pytest.importorskip("qonnx.util.inference_cost")  # an extra has it, not the core
    cost = counting.inference_cost
    x = np.zeros((1, 8, 8, 1), np.float32)
    fixed = whole_model(models.SmallCNN(), x, bits=3)
    path = tmp_path / "model.onnx"
    bj.to_onnx(fixed, x, path=path, profile="qonnx", free_batch=False)
    found = cost(str(path), discount_sparsity=False)["total_cost"]
    costs = bj.site_costs(fixed.model, x)
    assert found["total_macs"] == bj.total_macs(fixed.model, x)
    assert found["total_bops"] == bj.bops(bj.bits_of(fixed.variables), costs)


@pytest.mark.slow
def test_published_weights_evaluate_the_same_in_onnx_runtime(data_root, tmp_path):
    """All codes of 1,000 test images, at 8 bits of weights and inputs."""
    images = bj_data.cifar10(data_root, splits=("test",)).eval_images[:1000]
    x = np.asarray(bj_data.normalize(images, RESNET_MEAN, RESNET_STD, 255.0))
    model = bj.Quantized(models.resnet20(), [bj.rule(".*", bj.uniform(bits=8))])
    floats = load_resnet(data_root / "pretrained" / "cifar10_resnet20.npz")
    variables = {**model.init(jax.random.key(0), x[:2]), **floats}
    fixed = bj.deploy(model, bj.calibrate(model, variables, [x[:64]]), x[:2])
    path = tmp_path / "model.onnx"
    bj.to_onnx(fixed, x[:2], path=path, profile="integers")
    verdict = bj.check_export(path, fixed, x).verdict
    assert verdict.holds, verdict


@pytest.mark.parametrize("whole", [True, False])
def test_a_bias_joins_the_convolution_where_int32_holds_it_exactly(whole):
    class Biased(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.relu(nn.Conv(4, (1, 1), name="conv")(x))

    eight = deployed.affine("offset", "symmetric"), 8, (), {}
    fixed = by_hand(Biased(), X, {"conv/kernel": eight, "conv/input": eight})
    quant, layer = fixed.variables["quant"]["conv"], fixed.variables["params"]["conv"]
    unit = quant["input"]["scale"] * quant["kernel"]["scale"]
    layer["bias"] = np.array([3, -200, 0, 7], np.float32) * unit + (0 if whole else unit / 3)
    model = bj.to_onnx(fixed, X)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    assert len(conv.input) == (3 if whole else 2)
    plain = interpret(graph_of(fixed, X), X).out
    np.testing.assert_allclose(run(model, {"x": X})["output"], plain, atol=1e-5)
