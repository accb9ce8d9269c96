"""The integer program has the bits of evaluation, in JAX and in NumPy, for every form of a site."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bitjax as bj
from bitjax.export.interpreter import interpret
from bitjax.export.nodes import sums_of, tensors_of
from bitjax.export.numpy_ops import PRODUCTS
from bitjax.frameworks.call import run
from bitjax.frameworks.probe import ask_outside
from bitjax.models import AlexNet, ImageNetResNet, MobileNetV2, resnet20
from tests.export.by_hand import KINDS, RNG, Form, all_layers, by_hand, zoo

CHANNEL = Form(4, block="channel")


@pytest.fixture(scope="module")
def model():
    return bj.integer_model(zoo().deployed, zoo().x)


@pytest.fixture(scope="module")
def ran(model):
    return model.sites(zoo().x)


def evaluation(fixed, **kwargs):
    """The compiled evaluation of a model of any framework, and the integers that it makes."""

    def watch(seen):
        own = {seen.site(role): use for role, use in seen.uses.items() if role != "kernel"}
        return {
            site: use.quantizer.integers(use.params, use.stats, use.x) for site, use in own.items()
        }

    def evaluate(variables, x, watch):
        net, asked = ask_outside(fixed.model, variables, (x,), kwargs)
        ran = run(net, asked, variables, watch=watch)
        return ran.out, [record for _, record in ran.records]

    out = jax.jit(lambda variables, x: evaluate(variables, x, None)[0])
    seen = jax.jit(lambda variables, x: evaluate(variables, x, watch)[1])

    def integers(x):
        return {site: a for record in seen(fixed.variables, x) for site, a in record.items()}

    return (lambda x: np.asarray(out(fixed.variables, x))), integers


def test_the_output_is_that_of_evaluation_to_the_bit(model, ran):
    out = zoo().evaluate(zoo().x)
    assert np.ptp(out) > 0.1 and len(np.unique(out)) > 10
    np.testing.assert_array_equal(model(zoo().x), out)
    np.testing.assert_array_equal(ran.out, out)


def test_every_site_gives_its_integers_in_forward_order(ran):
    assert list(ran.integers) == [f"{name}/input" for name in KINDS]
    for name, (_, form) in KINDS.items():
        found = np.asarray(ran.integers[f"{name}/input"])
        assert (found.dtype == np.int32) is not form.table
        assert form.coding == "signs" or len(np.unique(found)) > 1, name


def test_numpy_has_the_same_integers_and_sums(model, ran):
    found = interpret(model.graph, zoo().x)
    assert list(found.sums) == list(ran.sums)
    for name, own in (found.integers | found.sums).items():
        np.testing.assert_array_equal(own, (ran.integers | ran.sums)[name], err_msg=name)
    np.testing.assert_allclose(found.out, ran.out, atol=1e-6)


def test_kernels_are_held_as_integers(model):
    arrays, kernels, _ = model.held
    for site, kernel in model.graph.kernels.items():
        if kernel.coding == "table":
            continue
        held = arrays[kernel.number] if kernel.whole else kernels[kernel.number][0]
        assert held.dtype in (jnp.int8, jnp.int16), site


class Small(nn.Module):
    @nn.compact
    def __call__(self, x, scale=None):
        x = nn.Dense(4, name="a")(x.reshape(x.shape[0], -1))
        return {"out": x if scale is None else x * scale}


X = RNG(1).normal(size=(2, 2, 3)).astype(np.float32)


def test_any_batch_and_any_tree_of_arguments_will_do():
    fixed = by_hand(Small(), {"a": (Form(4), Form(4))}, X)
    scale = RNG(2).normal(size=(2, 1)).astype(np.float32)
    net = bj.integer_model(fixed, X, scale=scale)
    x, scale = np.concatenate([X, X, X[:1]]), np.ones((5, 1), np.float32)
    out = jax.jit(fixed.model.apply)(fixed.variables, x, scale=scale)["out"]
    np.testing.assert_array_equal(net(x, scale=scale)["out"], out)
    np.testing.assert_array_equal(net.sites(x, scale=scale).out["out"], out)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda net: net(X[:, :, :2]), "'x' must have the shape (N, 2, 3)"),
        (lambda net: net(), "'x' is not among the arrays of this call: none"),
        (lambda net: net(y=X), "'x' is not among the arrays of this call: 'y'"),
    ],
    ids=["shape", "nothing", "name"],
)
def test_other_arrays_are_refused_in_one_line(call, said):
    net = bj.integer_model(by_hand(Small(), {"a": (Form(4), Form(4))}, X), X)
    with pytest.raises(ValueError) as caught:
        call(net)
    assert said in str(caught.value) and "\n" not in str(caught.value)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name="embed")(x.reshape(x.shape[0], -1, 3))
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(nn.LayerNorm(name="norm")(x))
        return nn.Dense(4, name="head")(nn.gelu(x).mean(1))


class Mixer(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


def mlp(params, x):
    for name in ("a", "b"):
        x = jnp.tanh(x @ params[name]["w"] + params[name]["bias"])
    return x


def attention():
    rules = [bj.rule(".*/kernel", bj.lsq(4, granularity="per_channel")), bj.rule(".*", bj.lsq(5))]
    net = bj.Quantized(Attention(), rules)
    x = RNG(0).normal(size=(2, 4, 3)).astype(np.float32)
    return bj.deploy(net, net.init(jax.random.key(0), x), x), x


def plain():
    net = bj.Function(mlp, [bj.rule(".*", bj.lsq(4))])
    layer = {"w": RNG(0).normal(size=(3, 3)).astype(np.float32), "bias": np.ones(3, np.float32)}
    params, x = {"a": layer, "b": layer}, RNG(1).normal(size=(2, 3)).astype(np.float32)
    return bj.deploy(net, {"params": params, **net.init(params, x)}, x), x


def functional():
    x = RNG(0).normal(size=(2, 5, 5, 3)).astype(np.float32)
    rules = [bj.rule(".*/kernel", bj.ternary()), bj.rule(".*", bj.lsq(4))]
    return bj.deploy(*bj.quantize(Mixer(nnx.Rngs(0)), rules, x).functional(), x), x


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.Dense(4, name="a")(x))
        return nn.Dense(2, name="b")(y + nn.Dense(4, name="c")(y))


def residual():
    x = RNG(0).normal(size=(2, 3)).astype(np.float32)
    net = bj.Quantized(Residual(), [bj.rule(".*", bj.lsq(5))], sums=True)
    return bj.deploy(net, net.init(jax.random.key(0), x), x), x


TRAINED = {f.__name__: f for f in (attention, plain, functional, residual)}


def image(model, size):
    x = RNG(0).normal(size=(2, size, size, 3)).astype(np.float32)
    return lambda: (by_hand(model, all_layers(model, x, CHANNEL, Form(4)), x), x)


MODELS = {
    "resnet20": image(resnet20(), 32),
    "resnet18": image(ImageNetResNet((1, 1), num_classes=10), 32),
    "resnet50": image(ImageNetResNet((1, 1), bottleneck=True, num_classes=10), 32),
    "mobilenet": image(MobileNetV2(10, 8, ((1, 4, 1, 1), (6, 6, 2, 2))), 16),
    "alexnet": image(AlexNet(num_classes=10), 67),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TRAINED, *MODELS])
def test_models_give_the_bits_of_evaluation(name):
    fixed, x = {**TRAINED, **MODELS}[name]()
    net = bj.integer_model(fixed, x)
    out, integers = evaluation(fixed)
    # With the flags of the quick tests XLA joins products and sums in the one program and not in
    # the other, so that a code of ResNet-20 differs; as users compile, no bit does.
    ran, whole = net.sites(x), integers(x)
    np.testing.assert_array_equal(net(x), out(x))
    assert list(ran.integers) == [site for site in net.graph.sites if site in whole]
    for site, own in ran.integers.items():
        np.testing.assert_array_equal(own, whole[site], err_msg=site)
    check_sums(net.graph, ran)


def check_sums(graph, ran):
    """Every sum of JAX is that of NumPy, of the integers that JAX has."""
    integers = {i: ran.integers[name] for name, i in tensors_of(graph).items()}
    numbers = {**graph.constants, **{i: np.asarray(x) for i, x in integers.items()}}
    sums = {node.outs[0]: node for node in graph.nodes if "accumulator" in node.params}
    for name, number in sums_of(graph).items():
        node = sums[number]
        if all(i in numbers for i in node.ins):  # else integers are moved on their way
            given = [numbers[i].astype(np.int64) for i in node.ins]
            found = PRODUCTS[node.op](node.params, *given)
            np.testing.assert_array_equal(found, ran.sums[name], err_msg=name)
