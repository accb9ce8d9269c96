"""Every defect is planted, and found; a healthy model gives no findings."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from bitjax.diagnostics.doctor import doctor
from bitjax.diagnostics.findings import Finding, doctor_report
from bitjax.frameworks.attach import attach
from bitjax.frameworks.linen import Quantized
from bitjax.frameworks.plain import Function
from bitjax.quantizers.bitlength import bitlength
from bitjax.quantizers.halfwave import halfwave
from bitjax.quantizers.learned_ranges import lsq, pact
from bitjax.quantizers.uniform import uniform
from bitjax.rules import rule


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(6, name="first")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.Dropout(0.1, deterministic=not train)(nn.relu(x))
        return nn.Dense(3, name="last")(x)


X = jax.random.normal(jax.random.key(1), (32, 4))
Y = jnp.arange(32) % 3
FLOAT = Net().init(jax.random.key(0), X)


def examine(rules, change=None, x=X, **kwargs):
    """The findings on the net under `rules`, after `change` has broken its variables."""
    model = Quantized(Net(), rules)
    variables = attach(model, FLOAT, X)
    if change:
        change(variables)
    return doctor(model, variables, x, Y, **kwargs)


def only(findings, level, site, text):
    assert [(f.level, f.site) for f in findings] == [(level, site)], doctor_report(findings)
    assert text in findings[0].message


@pytest.mark.parametrize("train", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_healthy_model_gives_no_findings(train):
    rules = [rule("first/.*", bitlength(init=4.5, mode="sample", granularity="per_channel"))]
    assert examine([*rules, rule(".*", uniform(bits=2, signed=None))], train=train) == ()


def test_a_quantizer_that_is_a_rectifier_cuts_what_it_should():
    class Bare(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=True, use_bias=False, use_scale=False)(x)
            return nn.Dense(3, name="last")(x)

    model = Quantized(Bare(), [rule("last/input", halfwave(bits=2))])
    x = jax.random.normal(jax.random.key(3), (256, 8))
    assert doctor(model, model.init(jax.random.key(0), x), x) == ()


def test_a_float_model_and_losses_of_all_kinds_are_fine():
    assert doctor(Net(), FLOAT, X, Y) == ()
    assert doctor(Net(), FLOAT, (X,)) == ()
    assert doctor(Net(), FLOAT, X, X[:, :3], loss=lambda out, y: jnp.mean((out - y) ** 2)) == ()


def test_rules_that_do_nothing_are_all_found_and_the_rest_is_still_examined():
    good = rule("last/kernel", lsq(bits=4))
    model = Quantized(Net(), [rule("middle/.*", None), good, rule("last/kern.*", lsq())])
    variables = attach(Quantized(Net(), [good]), FLOAT, X)
    variables["params"]["last"]["bias"] = variables["params"]["last"]["bias"].at[0].set(jnp.nan)
    idle, shadowed, broken = doctor(model, variables, X, Y)
    assert (idle.level, idle.site) == ("error", "middle/.*")
    assert "matches no site in full. Sites: " in idle.message
    assert (shadowed.level, shadowed.site) == ("error", "last/kern.*")
    assert (broken.level, broken.site) == ("error", "last/bias")


def test_a_kernel_quantized_to_zeros():
    def scale_up(variables):
        variables["quant"]["last"]["kernel"]["scale"] = jnp.float32(1e3)

    findings = examine([rule("last/kernel", lsq(bits=4))], scale_up)
    # The first layer's gradient passes through that kernel.
    assert [(f.level, f.site) for f in findings] == [
        ("error", "first/kernel"),
        ("error", "last/kernel"),
    ]
    assert "which the float model gives it: see last/kernel" in findings[0].message
    said = "is quantized to all zeros: its elements reach 0.789, its range is [-8e+03, 7e+03]"
    assert said in findings[1].message and "'scale' is a parameter" in findings[1].message


@jax.custom_jvp
def broken(x):
    return x


@broken.defjvp
def _broken_jvp(primals, tangents):
    return primals[0], tangents[0] * jnp.nan


def with_apply(change, **form):
    """A bitlength quantizer whose `apply` is changed."""
    base = bitlength(init=4.0, **form)
    return base._replace(apply=lambda *args, **options: change(base.apply, *args, **options))


def test_gradients_that_quantizers_break():
    def no_gradient(apply, *args, **options):
        return jax.lax.stop_gradient(apply(*args, **options))

    def no_gradient_to_bits(apply, params, *args, **options):
        return apply(jax.lax.stop_gradient(params), *args, **options)

    def nan_to_bits(apply, params, *args, **options):
        return apply({**params, "bits": broken(params["bits"])}, *args, **options)

    findings = examine(
        [
            rule("last/kernel", with_apply(no_gradient, mode="fixed")),
            rule("first/kernel", with_apply(nan_to_bits)),
            rule("first/input", with_apply(no_gradient_to_bits)),
            rule("last/input", with_apply(no_gradient_to_bits, mode="fixed", signed=False)),
        ]
    )
    assert {(f.level, f.site) for f in findings} == {
        ("error", "last/kernel"),
        ("error", "first/kernel"),
        ("warning", "first/input"),
    }, doctor_report(findings)
    text = {f.site: f.message for f in findings}
    assert "gets no gradient from 'bitlength/fixed'" in text["last/kernel"]
    assert "NaN or inf gradient to its bits" in text["first/kernel"]
    assert "gets no gradient to its bits" in text["first/input"]


def test_a_gradient_of_nan():
    rules = [rule("last/kernel", with_apply(lambda apply, params, stats, x, **_: broken(x)))]
    findings = examine(rules)
    assert ("error", "last/kernel") in [(f.level, f.site) for f in findings]
    assert "gets a NaN or inf gradient: check the loss" in doctor_report(findings)


def test_ranges_and_bits_that_do_not_fit():
    """Five defects in one model, each found where it is and nothing else."""

    def change(variables):
        bits = jnp.array([8.0, 8.0, 9.0, 4.0, 4.0, 4.0]).reshape(1, 6)
        variables["quant"]["first"]["kernel"]["bits"] = bits
        stats = variables["quant_stats"]["first"]["input"]
        variables["quant_stats"]["first"]["input"] = {
            name: leaf if name == "count" else leaf / 10.0 for name, leaf in stats.items()
        }
        variables["quant_stats"]["last"]["input"]["count"] = jnp.float32(0.0)

    rules = [
        rule("first/kernel", bitlength(init=4.0, granularity="per_channel", max_bits=8.0)),
        rule("first/input", uniform(bits=4)),
        rule("last/kernel", pact(bits=4)),
        rule("last/input", uniform(bits=8, signed=True)),
    ]
    findings = examine(rules, change)
    assert {f.level for f in findings} == {"warning"}
    found = {(f.site, f.message.split(":")[0]) for f in findings}
    negative = 100 * float(jnp.mean(FLOAT["params"]["last"]["kernel"] < 0))
    share = next(f.message.split(" %")[0].split()[-1] for f in findings if "saturates" in f.message)
    assert found == {
        ("first/kernel", "has its bitlength at max_bits=8 in 50 % of its blocks"),
        ("first/input", "saturates"),
        (
            "last/kernel",
            f"is quantized without sign, but {negative:.1f} % of its elements are below 0 and are "
            "cut",
        ),
        ("last/input", "has a range that was never observed"),
        ("last/input", "never is below 0, yet half of its codes are"),
    }
    low, high = jnp.min(X) / 10.0, jnp.max(X) / 10.0
    half = (high - low) / 30.0
    outside = 100 * float(jnp.mean((X < low - half) | (X > high + half)))
    assert float(share) == pytest.approx(outside, abs=3.0)  # the grid moves to hold 0
    # In training the range is the batch's own.
    assert not any("saturates" in f.message for f in examine(rules, change, train=True))


def test_nan_is_named_and_hides_the_rest():
    broken = X.at[0, 0].set(jnp.nan)
    findings = examine([rule("first/input", pact(bits=8))], x=broken)
    said = "holds NaN or inf, as do 1 of 32 examples of the batch (the first is number 0)"
    only(findings, "error", "first/input", said)
    infinite = doctor(Net(), FLOAT, X, Y, loss=lambda out, y: jnp.sum(out) * jnp.inf)
    only(infinite, "error", "loss", "look at the labels")


@pytest.mark.parametrize("collections", [("params",), ("params", "quant", "quant_stats")])
def test_one_dead_layer_of_a_scan_is_found(collections):
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + nn.Dense(4, name="dense")(x), None

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = dict.fromkeys(collections, 0)
            stack = nn.scan(
                nn.remat(Block), variable_axes=axes, split_rngs={"params": True}, length=3
            )
            return stack(name="blocks")(x, None)[0]

    model = Quantized(Deep(), [rule(".*/kernel", lsq(bits=4))])
    variables = model.init(jax.random.key(0), X)
    assert doctor(model, variables, X) == ()
    scale = variables["quant"]["blocks"]["dense"]["kernel"]["scale"]
    variables["quant"]["blocks"]["dense"]["kernel"]["scale"] = scale.at[1].set(1e3)
    said = "in step 2 of 3 of its scan, is quantized to all zeros: its elements reach"
    only(doctor(model, variables, X), "error", "blocks/dense/kernel", said)
    scales = scale.at[1:].set(0.0)
    variables["quant"]["blocks"]["dense"]["kernel"]["scale"] = scales
    found = doctor(model, variables, X)
    assert "has 'scale' at 0 in 2 of 3 blocks" in doctor_report(found)


def test_layers_in_branches_are_said_to_be_left_out_and_their_gradients_are_not():
    class Gated(nn.Module):
        @nn.compact
        def __call__(self, x):
            one, two = nn.Dense(3, name="one"), nn.Dense(3, name="two")
            if self.is_initializing():
                return one(x) + two(x)
            return nn.cond(jnp.sum(x) > 1e6, lambda m, x: one(x), lambda m, x: two(x), self, x)

    model = Quantized(Gated(), [rule("t.*/kernel", lsq(bits=4))])
    variables = attach(model, Gated().init(jax.random.key(0), X), X)
    found = {(f.site, f.message.split(":")[0]) for f in doctor(model, variables, X)}
    assert found == {
        ("one", "is not examined"),
        ("two", "is not examined"),
        ("one/kernel", "gets no gradient, without quantization either"),
    }


def attend(params, x):
    """A plain function: parameters by names of its own, a product of two tensors, a gain."""
    q, k = x @ params["to"]["q"], x @ params["to"]["k"]
    return params["gain"] * (jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2)) @ x)


PLAIN = {"to": {"q": jnp.ones((4, 5)), "k": 0.1 * jnp.ones((4, 5))}, "gain": jnp.float32(1.0)}


@pytest.mark.slow
def test_a_plain_functions_products_and_parameters_are_looked_at():
    rules = [rule("to/product.*", lsq(bits=4)), rule("to/k/kernel", lsq(bits=4))]
    net = Function(attend, rules)
    x = jnp.abs(X.reshape(8, 4, 4))
    variables = attach(net, {"params": PLAIN}, x)
    found = doctor(net, variables, x)
    halved = {f.site for f in found if "never is below 0" in f.message}
    assert halved == {f"to/product{i}/{side}" for i in (0, 1) for side in ("left", "right")}
    variables["quant"]["to"]["k"]["kernel"]["scale"] = jnp.float32(1e3)
    found = doctor(net, variables, x)
    # Scores that are all 0 give q no gradient; `gain` reaches no product and is no finding.
    errors = [f.site for f in found if f.level == "error"]
    assert errors == ["to/q/kernel", "to/k/kernel"], doctor_report(found)


@pytest.mark.slow
def test_a_shared_kernel_of_a_scan_over_time_has_the_figures_of_one():
    def unrolled(params, x):
        def step(h, x):
            return jnp.tanh(h @ params["w"] + x), None

        return jax.lax.scan(step, jnp.zeros((8, 4)), x)[0]

    net = Function(unrolled, [rule(".*", lsq(bits=4))])
    x = jax.random.normal(jax.random.key(4), (5, 8, 4))
    params = {"w": jax.random.normal(jax.random.key(5), (4, 4))}
    variables = attach(net, {"params": params}, x)
    assert doctor(net, variables, x) == ()
    variables["quant"]["kernel"]["scale"] = jnp.float32(1e3)
    only(doctor(net, variables, x), "error", "kernel", "all zeros")


def test_weights_of_a_norm_and_boxes_are_followed_to_their_parameter():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            boxed = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
            x = nn.Dense(6, kernel_init=boxed, name="boxed")(x)
            return nn.WeightNorm(nn.Dense(3, name="normed"), feature_axes=-1)(x)

    model = Quantized(Normed(), [rule("normed/kernel", lsq(bits=4))])
    variables = model.init(jax.random.key(0), X)
    assert doctor(model, variables, X) == ()
    variables["quant"]["normed"]["kernel"]["scale"] = jnp.float32(1e3)
    sites = [(f.level, f.site) for f in doctor(model, variables, X)]
    assert sites == [("error", "boxed/kernel"), ("error", "normed/kernel")]


def test_keyword_and_dict_inputs_are_arguments_of_one_trace():
    traces = []

    class Text(nn.Module):
        @nn.compact
        def __call__(self, batch, *, mask, train=False):
            traces.append(batch["tokens"])
            x = nn.Embed(9, 4, name="embed")(batch["tokens"]) * mask[..., None]
            return nn.Dense(3, name="head")(x)

    batch, mask = {"tokens": jnp.arange(6) % 9}, jnp.ones(6)
    variables = Text().init(jax.random.key(0), batch, mask=mask)
    traces.clear()
    assert doctor(Text(), variables, batch, jnp.arange(6) % 3, mask=mask, train=True) == ()
    assert len(traces) == 1
    found = doctor(Text(), variables, batch, mask=mask.at[2].set(jnp.nan))
    only(found, "error", "head/input", "holds NaN or inf")


@pytest.mark.parametrize(
    ("model", "variables", "message"),
    [
        (nn.Dense, FLOAT, "`model` is the class Dense: give an instance"),
        ("net", FLOAT, "`model` is 'net': call bitjax.Quantized"),
        (attend, PLAIN, "variables of a function are {'params': its parameters"),
    ],
)
def test_what_is_no_model_is_one_clear_line(model, variables, message):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        doctor(model, variables, X)
    assert "\n" not in str(error.value)


def test_the_report_groups_what_is_the_same_and_puts_errors_first():
    findings = [Finding("warning", f"conv{i}/input", "was never observed") for i in range(5)]
    text = doctor_report((*findings, Finding("error", "head/kernel", "is all zeros")))
    assert text.splitlines() == [
        "doctor: 1 error, 5 warnings",
        "error    head/kernel: is all zeros",
        "warning  conv0/input, conv1/input, conv2/input and 2 more: was never observed",
    ]
    assert doctor_report(()) == "doctor: nothing found"


def test_the_labels_of_an_own_loss_may_be_any_tree():
    x = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
    model = Quantized(nn.Dense(2), [rule("kernel", uniform(bits=4))])
    variables = model.init(jax.random.key(0), x)
    labels = {"y": jnp.ones((4, 2)), "mask": jnp.array([True, True, False, True])}

    def loss(out, labels):
        return jnp.mean(jnp.square(out - labels["y"]) * labels["mask"][:, None])

    assert doctor(model, variables, x, labels, loss) == ()
    with pytest.raises(ValueError, match="`labels` must be an array of real numbers, got {"):
        doctor(model, variables, x, labels)
