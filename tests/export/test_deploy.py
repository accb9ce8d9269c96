"""A deployed model computes what was evaluated, from numbers alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj

CHANNEL = {"granularity": "per_channel"}
KERNELS = {
    "uniform": bj.uniform(4),
    "one end": bj.uniform(3, signed=False),
    "symmetric by channel": bj.uniform(8, signed=True, **CHANNEL),
    "by group": bj.uniform(4, granularity="per_group", group_size=2),
    "off zero": bj.uniform(3, zero_on_grid=False, **CHANNEL),
    "lsq": bj.lsq(2, **CHANNEL),
    "sixteen": bj.lsq(16),
    "learned": bj.freeze(bj.bitlength(4.0, zero_on_grid=True)),
    "ternary": bj.ternary(),
    "stored": bj.ternary(fit="stored"),
    "low_bit": bj.low_bit(3),
    "binary": bj.binary(),
    "planes": bj.bitplane(4, signed=True),
}
INPUTS = {
    "uniform": bj.uniform(4),
    "by channel": bj.uniform(4, **CHANNEL),
    "off zero": bj.uniform(3, zero_on_grid=False),
    "lsq": bj.lsq(4, signed=False),
    "pact": bj.pact(3),
    "learned range": bj.freeze(bj.bitlength(5.0, range="learned", zero_on_grid=True)),
    "blend at whole bits": bj.bitlength(5.0),
    "hwgq": bj.hwgq(2),
    "half-wave": bj.halfwave(3),
    "planes": bj.bitplane(4),
    "observed planes": bj.bitplane(3, scale="observed"),
    "signed planes": bj.bitplane(5, signed=True),
    "free planes": bj.bitplane(4, coefficients="free"),
    "signed free planes": bj.bitplane(4, signed=True, coefficients="free"),
}
# Their products are those of levels, and a deployed level is the integer times the scale.
ON_LEVELS = {"off zero", "by group", "by channel", "free planes", "signed free planes"}
PAIRS = [(kernel, "lsq") for kernel in KERNELS] + [("lsq", name) for name in INPUTS]
# One of each kind of numbers; each compiles programs of its own.
FAST = {"by group", "off zero", "stored", "low_bit", "by channel", "half-wave", "learned range",
        "signed free planes"}  # fmt: skip


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x))
        return nn.Dense(4, name="head")(x.mean((1, 2)))


def made(kernel, inputs, *, model=None, signed=False):
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
    x = x if signed else jnp.abs(x)
    rules = [bj.rule(".*/kernel", kernel), bj.rule(".*/input", inputs)]
    net = bj.Quantized(model or Net(), rules)
    return net, net.init(jax.random.key(1), x), x


@pytest.mark.parametrize(
    "kernel, inputs",
    [p if FAST & {*p} else pytest.param(*p, marks=pytest.mark.slow) for p in PAIRS],
)
def test_deploying_changes_no_code_and_no_logit(kernel, inputs):
    net, variables, x = made(KERNELS[kernel], INPUTS[inputs], signed="signed" in inputs)
    fixed = bj.deploy(net, variables, x)
    out, again = (jax.jit(m.apply)(v, x) for m, v in ((net, variables), fixed))
    if {kernel, inputs} & ON_LEVELS:
        np.testing.assert_allclose(again, out, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(again, out)
    codes = {s: np.asarray(c.codes) for s, c in bj.codes_of(*fixed, x).items()}
    if kernel != "off zero":
        before = bj.codes_of(net, variables, x)
        assert all((before[site].codes == codes[site]).all() for site in codes)
    twice = bj.deploy(*fixed, x)
    assert twice.model.rules == fixed.model.rules
    jax.tree.map(np.testing.assert_array_equal, twice.variables, fixed.variables)


def test_kernels_of_a_scan_are_deployed_step_by_step():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.relu(nn.Dense(3, name="dense")(x)), None

    scanned = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
    net = bj.Quantized(scanned(), [bj.rule(".*", bj.uniform(3, **CHANNEL))])
    x = jnp.abs(jax.random.normal(jax.random.key(0), (2, 3)))
    variables = net.init(jax.random.key(1), x, None)
    fixed, held = bj.deploy(net, variables, x, None)
    assert held["quant"]["dense"]["kernel"]["scale"].shape == (2, 1, 3)
    wanted = net.apply(variables, x, None)[0]
    np.testing.assert_allclose(fixed.apply(held, x, None)[0], wanted, rtol=1e-5)


def test_calls_of_one_layer_keep_their_own_numbers():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            dense = nn.Dense(3, name="dense")
            return dense(nn.relu(dense(x)) * 4)

    rules = [bj.rule(".*@2", bj.lsq(3, signed=False)), bj.rule(".*", bj.uniform(4, signed=True))]
    net = bj.Quantized(Twice(), rules, calls="each")
    x = jax.random.normal(jax.random.key(0), (2, 3))
    variables = net.init(jax.random.key(1), x)
    fixed, held = bj.deploy(net, variables, x)
    np.testing.assert_array_equal(fixed.apply(held, x), net.apply(variables, x))


def test_what_no_rule_names_stays_float():
    net, variables, x = made(None, bj.lsq(4, signed=False))
    fixed, held = bj.deploy(net, variables, x)
    assert sorted(bj.bits_of(held)) == ["conv/input", "head/input"]
    np.testing.assert_allclose(fixed.apply(held, x), net.apply(variables, x), rtol=1e-5)
    same = bj.deploy(Net(), {"params": variables["params"]}, x)
    assert same.variables.keys() == {"params"} and not same.model.rules


class Made(nn.Module):
    @nn.compact
    def __call__(self, x):
        parts = [self.param(name, nn.initializers.normal(), (2, 2)) for name in ("kernel", "other")]
        return x @ (parts[0] @ parts[1])


def fractional():
    net, variables, x = made(bj.bitlength(3.5), bj.lsq(4, signed=False))
    return net, variables, x


def per_example():
    return made(bj.lsq(4), bj.bitplane(4, mode="faithful"))


def computed():
    net = bj.Quantized(Made(), [bj.rule("kernel", bj.lsq(4))])
    x = jnp.ones((1, 2))
    return net, net.init(jax.random.key(0), x), x


def falling():
    own = bj.lsq(4, signed=False)
    wrong = own._replace(
        numbers=None,
        integers=None,
        encode=lambda p, s, x: bj.Codes(15 - own.encode(p, s, x).codes),
    )
    return made(bj.lsq(4), wrong)


class ReadTwice(nn.Module):
    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(), (2, 2))
        return x @ kernel + kernel.sum()


def read_as_float():
    net = bj.Quantized(ReadTwice(), [bj.rule("kernel", bj.lsq(2))])
    x = jnp.ones((1, 2))
    return net, net.init(jax.random.key(0), x), x


def short():
    own = bj.lsq(2, signed=False)

    def numbers(params, stats):
        return own.numbers(params, stats)._replace(last=jnp.float32(1.0))

    def integers(params, stats, x):
        return jnp.minimum(own.integers(params, stats, x), 1.0)

    return made(bj.lsq(4), own._replace(numbers=numbers, integers=integers))


def wide():
    return made(bj.lsq(4), bj.uniform(12, zero_on_grid=False))


@pytest.mark.parametrize(
    "case, said",
    [
        (fractional, r"'conv/kernel' has 3.5 bits, which lie between two grids: round them first"),
        (per_example, "'conv/input': 'bitplane/faithful' scales each example by itself"),
        (computed, "the kernel 'kernel' is computed of parameters when the model runs"),
        (
            read_as_float,
            "the kernel 'kernel' is read as float, too, in 'the model' by 'reduce_sum'",
        ),
        (short, "'conv/input': the `numbers` of 'lsq' do not end where its bits do"),
        (falling, "'conv/input': the codes of 'lsq' do not rise with what they stand for"),
        (wide, "'conv/input': 'uniform' has no `numbers`, and a table of its 12 bits"),
    ],
)
def test_what_no_file_can_hold_is_refused_in_one_line(case, said):
    net, variables, x = case()
    with pytest.raises(ValueError, match=said) as error:
        bj.deploy(net, variables, x)
    assert "\n" not in str(error.value)
