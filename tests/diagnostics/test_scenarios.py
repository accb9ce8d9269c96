"""Ways to ruin a run, each with what the doctor says of it; nothing else is said."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import bitjax as bj
from bitjax.models import MLP
from bitjax.quantizers.ste import replace_ste

NET = MLP(features=(16, 16), num_classes=4)
X = jax.random.normal(jax.random.key(0), (32, 10))
Y = jnp.arange(32) % 4
LAYERS = ("dense1", "dense2", "head")

UNIFORM, UNSIGNED = bj.uniform(4), bj.uniform(4, signed=False)
LSQ, LSQ_UNSIGNED = bj.lsq(4), bj.lsq(4, signed=False)
SHARED: dict = {}  # variables, made once for each net and its quantizers


RULES = (bj.rule(".*", UNIFORM),)


def variables(rules=RULES, net=NET, x=X):
    """The variables of a net that is attached normally; made once for each."""
    key = (net, *(id(r.quantizer) for r in rules))
    if key not in SHARED:
        SHARED[key] = bj.attach(bj.Quantized(net, rules), net.init(jax.random.key(1), x), x)
    return jax.tree.map(lambda leaf: leaf, SHARED[key])


MODEL = bj.Quantized(NET, RULES)


def changed(path, change, tree=None):
    """The variables with one leaf, or all leaves of a name, changed."""
    tree = variables() if tree is None else tree
    names = path.split("/")

    def go(keys, leaf):
        parts = [key.key for key in keys]
        same = len(parts) >= len(names) and all(
            a in (b, "*") for a, b in zip(reversed(names), reversed(parts), strict=False)
        )
        return change(leaf) if same else leaf

    return jax.tree_util.tree_map_with_path(go, tree)


def ranges_times(factor, layer="input"):
    """The variables with observed ranges of inputs that were those of other data."""
    low = changed(f"{layer}/clip_min", lambda c: c * factor)
    return changed(f"{layer}/clip_max", lambda c: c * factor, low)


def doctor(given=None, *, model=MODEL, x=X, y=Y, **kwargs):
    return bj.doctor(model, variables() if given is None else given, x, labels=y, **kwargs)


def under(quantizer, pattern=".*", **kwargs):
    """The doctor on the same variables under another rule."""
    return doctor(model=bj.Quantized(NET, [bj.rule(pattern, quantizer)]), **kwargs)


def with_gradient(times, **options):
    """`uniform(4)` whose gradient to x is multiplied by a number."""
    q = bj.uniform(4)

    def apply(params, stats, x, *, train=False, key=None):
        return replace_ste(times * x, q.apply(params, stats, x, train=train, key=key))

    return under(q._replace(apply=apply), ".*/kernel", **options)


def lsq():
    rules = (
        bj.rule("dense1/input|.*/kernel", LSQ),
        bj.rule(".*/input", LSQ_UNSIGNED),
    )
    return bj.Quantized(NET, rules), variables(rules)


def lsq_with(path, change):
    model, given = lsq()
    return doctor(changed(path, change, given), model=model)


PACT = bj.Quantized(NET, [bj.rule("dense2/input", bj.pact(4))])


def pact(clip):
    leaves = {"bits": jnp.float32(4), "clip_max": jnp.float32(clip)}
    given = {"params": variables()["params"], "quant": {"dense2": {"input": leaves}}}
    return doctor(given, model=PACT)


class Unused(nn.Module):
    @nn.compact
    def __call__(self, x):
        nn.Dense(3, name="side")(x)
        return nn.Dense(4, name="head")(x)


class Raw(nn.Module):
    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.lecun_normal(), (10, 16))
        return nn.Dense(4, name="head")(nn.relu(x @ w))


class Fixed(nn.Module):
    """A product with a table that is no parameter, which no rule can name."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="head")(x @ jnp.cos(jnp.arange(100.0)).reshape(10, 10))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8, name="a")(x)
        x = nn.BatchNorm(use_running_average=not train, name="bn")(x)
        return nn.Dense(4, name="head")(nn.relu(x))


def other(net, quantizer, change=None, pattern=".*", **batch):
    """The doctor on another net, or under another rule, attached normally and then changed."""
    rules = (bj.rule(pattern, quantizer),)
    given = variables(rules, net)
    return doctor(change(given) if change else given, model=bj.Quantized(net, rules), **batch)


KERNELS = [f"{layer}/kernel" for layer in LAYERS]
NO_GRADIENT = "gets no gradient, which the float model gives it: see "
FLOAT_TOO = "gets no gradient, without quantization either: see "


def all_of(sites, level, *texts):
    return {site: (level, *texts) for site in sites}


# What is done, and of every finding its site, its level and parts of its message.
QUICK = {
    "dead ReLUs": (
        lambda: doctor(changed("params/dense2/bias", lambda b: b - 1e3)),
        {"dense2": ("warning", "16 of 16 units that are 0", "head/input", "bias")}
        | all_of(KERNELS, "warning", FLOAT_TOO + "dense2"),
    ),
    "half of a layer's units dead": (
        lambda: doctor(changed("params/dense2/bias", lambda b: b.at[:8].add(-1e3))),
        {"dense2": ("warning", "8 of 16 units that are 0 in every example")},
    ),
    "a kernel of zeros": (
        lambda: doctor(changed("params/dense2/kernel", lambda k: k * 0)),
        {"dense2/kernel": ("warning", "is all zeros before it is quantized", "load it")}
        | all_of(("dense1/kernel", "head/kernel"), "warning", FLOAT_TOO + "dense2/kernel"),
    ),
    "one outlier weight": (
        lambda: doctor(changed("params/dense2/kernel", lambda k: k.at[0, 0].set(50.0))),
        {
            "dense2/kernel": (
                "warning", "99.6 % zeros", "an outlier of 50, 124 times", "range='minmax'",
                "range='percentile'", "granularity='per_channel'",
            ),
            "dense1/kernel": ("error", NO_GRADIENT + "dense2/kernel"),
        },
    ),
    "one filter of sixteen crushed": (
        lambda: doctor(changed("params/dense2/kernel", lambda k: k.at[:, 3].multiply(1e-3))),
        {
            "dense2/kernel": (
                "warning", "1 of 16 filters quantized to zeros", "granularity='per_tensor'",
                "reach 0.000524", "granularity='per_channel'",
            ),
        },
    ),
    "one outlier in the input": (
        lambda: doctor(
            changed("quant_stats/dense1/input/clip_max", lambda _: jnp.float32(1e4)),
            x=X.at[0, 0].set(1e4),
        ),
        {
            "dense1/input": ("warning", "99.7 % zeros", "an outlier of 1e+04, 312 times"),
            "dense1/kernel": ("error", NO_GRADIENT + "dense1/input"),
        },
    ),
    "ranges never observed": (
        lambda: doctor(changed("count", lambda n: n * 0)),
        all_of((f"{layer}/input" for layer in LAYERS), "warning", "never observed", "calibrate"),
    ),
    "calibrated on data 10 times smaller": (
        lambda: doctor(ranges_times(0.1)),
        all_of(
            ("dense1/input", "dense2/input"), "warning",
            "saturates: ", "lie outside its range [", "they reach", "bitjax.calibrate",
        ),
    ),
    "calibrated on data 100 times larger": (
        lambda: doctor(ranges_times(100.0, "dense1/input")),
        {"dense1/input": ("error", "all zeros", "reach 3.2", "[-312, 273]", "bitjax.calibrate")}
        | all_of(KERNELS, "error", NO_GRADIENT + "dense1/input"),
    ),
    "a range of which few codes are used": (
        lambda: doctor(
            changed("dense1/input/bits", lambda n: n + 2, ranges_times(16.0, "dense1/input"))
        ),
        {
            "dense1/input": (
                "warning", "uses 6.2 % of its range: its elements reach 3.2, the range is [-5",
                "about 4 of its 64 codes", "bitjax.calibrate",
            ),
        },
    ),
    "label -1": (
        lambda: doctor(y=Y.at[0].set(-1)),
        {"labels": ("error", "are -1 to 3", "classes 0 to 3", "1 of 32 are no class")},
    ),
    "label 4 of 4 classes": (
        lambda: doctor(y=Y.at[0].set(4)),
        {"labels": ("error", "are 0 to 4", "classes 0 to 3", "1 of 32 are no class")},
    ),
    "a label that never occurs": (
        lambda: doctor(y=jnp.clip(Y, 1, 3)),
        {"labels": ("warning", "never are 0: 1 of the 4 classes", "about 8", "shuffle")},
    ),
    "fractional bits on a fixed grid": (
        lambda: doctor(changed("quant/dense2/kernel/bits", lambda n: n * 0 + 2.5)),
        {"dense2/kernel": ("error", "has 2.5 bits and computes with 2", "with_bits", "'uniform'")},
    ),
    "0 bits on a fixed grid": (
        lambda: doctor(changed("quant/dense2/kernel/bits", lambda n: n * 0)),
        {"dense2/kernel": ("error", "has 0 bits, so that all becomes 0", "whole bits from 1 on")}
        | all_of(("dense1/kernel", "head/kernel"), "error", NO_GRADIENT + "dense2/kernel"),
    ),
    "negative bits": (
        lambda: doctor(changed("quant/dense2/kernel/bits", lambda n: n * 0 - 3)),
        {"dense2/kernel": ("error", "has -3 bits", "whole bits from 1 on")}
        | all_of(("dense1/kernel", "head/kernel"), "error", NO_GRADIENT + "dense2/kernel"),
    ),
    "NaN bits": (
        lambda: doctor(changed("quant/dense2/kernel/bits", lambda n: n * jnp.nan)),
        {"dense2/kernel": ("error", "has NaN or inf in 'bits'")}
        | all_of(("dense1/kernel", "head/kernel"), "error", NO_GRADIENT + "dense2/kernel"),
    ),
    "NaN in one example": (
        lambda: doctor(x=X.at[3, 2].set(jnp.nan)),
        {"dense1/input": ("error", "1 of 32 examples", "the first is number 3", "clean the data")},
    ),
    "a constant input": (
        lambda: doctor(x=jnp.ones_like(X)),
        {"batch": ("warning", "has the number 1 everywhere", "loads and normalises")},
    ),
    "every example the same": (
        lambda: doctor(x=jnp.tile(X[:1], (32, 1))),
        {"batch": ("warning", "has 32 examples, all of them the same", "loads and normalises")},
    ),
    "1 bit of a signed grid": (
        lambda: doctor(changed("dense1/kernel/bits", lambda n: n * 0 + 1)),
        {"dense1/kernel": ("warning", "99.4 % zeros: at 1 bit", "levels [-1.39, 0]", "binary()")},
    ),
    "weights of 1e30": (
        lambda: doctor(changed("params/dense2/kernel", lambda k: k * 1e30)),
        {
            "dense2/kernel": ("error", "weights up to 5.44e+29", "lower the learning rate"),
            "dense1/kernel": ("error", NO_GRADIENT + "dense2/kernel"),
        },
    ),
}  # fmt: skip

SLOW = {
    "a name misspelt in an alternation": (
        lambda: under(bj.uniform(4), "(dense1|dense2|haed)/kernel"),
        {
            "(dense1|dense2|haed)/kernel": (
                "warning", "its alternative 'haed' matches none of the 6 sites",
                "Nearest site: head/kernel",
            ),
        },
    ),
    "a quantizer without a gradient": (
        lambda: with_gradient(0.0),
        all_of(KERNELS, "error", "gets no gradient from 'uniform'", "x + jax.lax.stop_gradient("),
    ),
    "a gradient a million times too small": (
        lambda: with_gradient(1e-6),
        all_of(KERNELS, "error", "that is 1e-06 times the straight-through one"),
    ),
    "a gradient of the wrong sign": (
        lambda: with_gradient(-1.0),
        all_of(KERNELS, "error", "of the other sign from 'uniform'", "cosine", "-1.00"),
    ),
    "an unsigned quantizer on signed input": (
        lambda: other(NET, UNSIGNED, pattern="dense1/input"),
        {"dense1/input": ("warning", "48.4 % of its elements are below 0", "signed=True")},
    ),
    "an unsigned quantizer on input a little below 0": (
        lambda: other(NET, UNSIGNED, pattern="dense1/input", x=jnp.abs(X).at[0, 0].set(-1.0)),
        {"dense1/input": ("warning", "0.3 % of its elements are below 0", "signed=True")},
    ),
    "a signed quantizer behind a ReLU": (
        lambda: other(NET, bj.lsq(4), pattern="dense2/input"),
        {"dense2/input": ("warning", "half of its codes are: use signed=False")},
    ),
    "a scale of 0": (
        lambda: lsq_with("dense2/kernel/scale", lambda s: s * 0),
        {"dense2/kernel": ("error", "has 'scale' at 0", "bitjax.attach")}
        | all_of(("dense1/kernel", "head/kernel"), "error", NO_GRADIENT + "dense2/kernel"),
    ),
    "a negative scale": (
        lambda: lsq_with("dense2/kernel/scale", lambda s: -s),
        {"dense2/kernel": ("warning", "has 'scale' at -0.0719", "the other sign")},
    ),
    "bits at their bound": (
        lambda: other(NET, bj.bitlength(8.0, max_bits=8.0), pattern="dense1/.*"),
        all_of(("dense1/kernel", "dense1/input"), "warning", "at max_bits=8", "widen the bounds"),
    ),
    "a layer whose output is unused": (
        lambda: other(Unused(), bj.bitlength(4.0)),
        {"side": ("warning", "reaches no result of the model", "take the layer out")},
    ),
    "a raw product, which has sites": (lambda: other(Raw(), bj.uniform(4), None, ".*"), {}),
    "a product that no rule can reach": (
        lambda: other(Fixed(), bj.uniform(4)),
        {"the model itself": ("warning", "71.4 % of the multiply-adds", "(constant)")},
    ),
    "an unsigned bitplane on signed input, made under jit": (
        lambda: bj.doctor(
            model := bj.Quantized(NET, [bj.rule("dense1/input", bj.bitplane(4))]),
            jax.jit(model.init)(jax.random.key(1), X), X, labels=Y,
        ),
        {"dense1/input": ("warning", "48.4 % of its elements are below 0", "signed=True")},
    ),
    "a ternary kernel of few large weights": (
        lambda: other(
            NET, bj.ternary(fit="twn"),
            lambda v: changed("params/dense2/kernel", lambda k: (k * 1e-4).at[0].set(1.0), v),
            "dense2/kernel",
        ),
        {"dense2/kernel": ("warning", "93.8 % zeros", "an outlier of 1, 16 times", "fit='twn'")},
    ),
    "a clip far below the data": (
        lambda: pact(1e-3),
        {
            "dense2/input": (
                "error", "lie outside its range [0, 0.001] and get no gradient", "init_clip",
            ),
            "dense1/kernel": ("error", NO_GRADIENT + "dense2/input"),
        },
    ),
    "a clip far above the data": (
        lambda: pact(1e4),
        {"dense2/input": ("error", "all zeros", "its range is [0, 1e+04]", "init_clip")}
        | all_of(KERNELS, "error", NO_GRADIENT + "dense2/input"),
    ),
    "running statistics of other data": (
        lambda: other(
            Normed(), bj.uniform(4), lambda v: changed("batch_stats/bn/var", lambda x: x * 1e8, v),
            ".*/kernel",
        ),
        {"bn": ("warning", "its variance is 1.29e+08 times the batch's", "reestimate_batch_stats")},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "scenario",
    [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)],
)
def test_what_ruins_a_run_is_said_with_its_site_its_figure_and_its_remedy(scenario):
    run, expected = {**QUICK, **SLOW}[scenario]
    found = run()
    said = {f.site: (f.level, f.message) for f in found}
    assert {site: level for site, (level, _) in said.items()} == {
        site: level for site, (level, *_) in expected.items()
    }, bj.doctor_report(found)
    assert len(said) == len(found), bj.doctor_report(found)
    for site, (_, *texts) in expected.items():
        for text in texts:
            assert text in said[site][1]


def test_a_net_that_is_attached_normally_is_left_alone():
    assert doctor() == ()


class Twice(nn.Module):
    """One layer on data of two very different sizes."""

    def setup(self):
        self.c = nn.Dense(8)

    def __call__(self, x):
        return self.c(0.01 * x), self.c(x)


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", [bj.uniform(8), bj.lsq(8)], ids=["uniform", "lsq"])
def test_one_range_for_calls_that_differ_is_said_and_a_site_for_each_mends_it(quantizer):
    def errors(calls):
        model = bj.Quantized(Twice(), [bj.rule("c/input", quantizer)], calls=calls)
        given = bj.attach(model, floats, X)
        both = zip(model.apply(given, X), Twice().apply(floats, X), strict=True)
        apart = [float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) for a, b in both]
        return apart, bj.doctor(model, given, X)

    floats = Twice().init(jax.random.key(1), X)
    shared, (finding,) = errors("shared")
    assert max(shared) > 0.5
    assert (finding.level, finding.site) == ("warning", "c/input")
    assert "2 calls of a layer whose data reach 0.032 and 3.2" in finding.message
    assert 'calls="each"' in finding.message
    apart, nothing = errors("each")
    assert max(apart) < 0.02 and nothing == ()
