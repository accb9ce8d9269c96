"""BitPruning: what moves bits, what holds them, and what stays true after the freeze."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.data import load, normalize, train_batch
from bitjax.methods import bitpruning
from bitjax.methods.base import Context
from bitjax.models import MLP
from bitjax.quantizers.base import freeze
from bitjax.rules import quantizer_of
from bitjax.training.state import initial_state
from bitjax.training.step import make_train_step

DATA = load("digits", limit=128)
X = normalize(jnp.asarray(DATA.images[:32]), DATA.mean, DATA.std, DATA.max_value)
RULES = (bj.rule(".*", bj.bitlength(init=6.0)),)
FAST = {"steps": 20, "bits_learning_rate": 0.1, "settle": 0.0, "learning_rate": 0.05}


def preprocess(key, images):
    del key
    return normalize(images, DATA.mean, DATA.std, DATA.max_value)


def start_of(method, model):
    """`(wrapped model, first stage, costs, state)`."""
    stage = method.stages[0]
    wrapped = bj.Quantized(model, stage.rules)
    variables = bj.attach(wrapped, model.init(jax.random.PRNGKey(0), X), X)
    state = initial_state(stage, variables, key=jax.random.PRNGKey(0))
    return wrapped, stage, bj.site_costs(model, X), state


def train(step, state, steps):
    for i in range(steps):
        state, _ = step(state, train_batch(DATA, 32, i, seed=0))
    return state


def mean_bits(state, costs):
    return float(bj.average_bits(bj.bits_of(state.quant), costs))


def with_controls(state, **values):
    new = {name: jnp.full_like(state.controls[name], v) for name, v in values.items()}
    return state._replace(controls={**state.controls, **new})


@pytest.fixture(scope="module")
def budgeted():
    """`(step, state, costs)` of a budget of 4 bits and a strength, whose value is a control."""
    method = bitpruning(RULES, gamma=1.0, budgets=(bj.budget("bits", 4.0),), **FAST)
    model, stage, costs, state = start_of(method, MLP(features=()))
    return jax.jit(make_train_step(model, stage, costs, preprocess)), state, costs


def beginning(state, bits, **controls):
    """The state with other bits, half a bit apart, and other controls."""
    sites = zip(bj.bits_of(state.quant), (-0.5, 0.5), strict=True)
    new = bj.with_bits({"quant": state.quant}, {site: bits + n for site, n in sites}, RULES)
    return with_controls(state._replace(quant=new["quant"]), **controls)


def test_bits_fall_with_the_strength(budgeted):
    step, state, costs = budgeted
    weak, strong = (train(step, beginning(state, 3.5, gamma=g), 5) for g in (0.0, 1.0))
    assert mean_bits(strong, costs) < mean_bits(weak, costs) - 0.3


@pytest.mark.parametrize("begin", [3.0, 4.5, 8.0])
def test_bits_are_within_the_budget_from_the_middle_of_the_stage_on(budgeted, begin):
    step, state, costs = budgeted
    found = []
    state = beginning(state, begin, gamma=0.0)
    for count in (4, 4, 4, 4):
        state = train(step, state, count)
        found.append(mean_bits(state, costs))
    assert max(found[1:]) < 4.0 + 1e-3
    if begin == 8.0:
        assert 4.5 < found[0] < 6.5, "bits fall by equal ratios on the way"


@pytest.mark.parametrize(
    "fixed",
    [
        bj.uniform(bits=8),
        pytest.param(bj.lsq(bits=8), marks=pytest.mark.slow),
        pytest.param(bj.pact(bits=8, signed=True), marks=pytest.mark.slow),
    ],
)
def test_fixed_bits_stay_where_they_are_beside_sites_that_learn_theirs(fixed):
    rules = (bj.rule("head/.*", fixed), *RULES)
    method = bitpruning(rules, gamma=1.0, budgets=(bj.budget("bits", 4.0),), **FAST)
    model, stage, costs, state = start_of(method, MLP(features=(8,)))
    step = jax.jit(make_train_step(model, stage, costs, preprocess))
    bits = bj.bits_of(train(step, state, 5).quant)
    moved = {site: float(n) for site, n in bits.items() if float(n) not in (6.0, 8.0)}
    assert moved and not any(site.startswith("head") for site in moved)


def test_ties_keep_one_bitlength_in_the_network():
    rules = (
        bj.rule(".*/kernel", bj.bitlength(init=6.0, granularity="per_channel")),
        bj.rule(".*/input", bj.bitlength(init=6.0)),
    )
    method = bitpruning(rules, gamma=0.5, tied=(".*",), **FAST)
    model, stage, costs, state = start_of(method, MLP(features=()))
    state = train(jax.jit(make_train_step(model, stage, costs, preprocess)), state, 5)
    kernel, x = (np.unique(n) for n in bj.bits_of(state.quant).values())
    assert len(kernel) == len(x) == 1 and kernel == x
    assert kernel[0] < 5.9


def fake_quant_tree(bits, costs, **leaves):
    tree = {}
    for site in costs:
        layer, role = site.split("/")
        tree.setdefault(layer, {})[role] = {"bits": jnp.float32(bits), **leaves}
    return tree


COSTS = bj.site_costs(MLP(features=(8,)), X)


def test_the_penalty_sleeps_until_ranges_have_settled_and_takes_any_criterion():
    method = bitpruning(RULES, steps=10, gamma=0.5, settle=0.25, criterion={"head/kernel": 3.0})
    stage = method.stages[0]
    controls = {name: jnp.float32(v) for name, v in stage.controls.items()}
    quant = fake_quant_tree(4.0, COSTS)
    assert float(stage.penalty(quant, COSTS, controls, 0.2)) == 0.0
    assert float(stage.penalty(quant, COSTS, controls, 0.25)) == 0.5 * 3.0 * 4.0
    slopes = jax.grad(lambda q: stage.penalty(q, COSTS, controls, 1.0))(quant)
    assert {s: float(g) for s, g in bj.bits_of(slopes).items() if g} == {"head/kernel": 1.5}


def test_bits_stay_in_their_bounds_and_sharpness_rises_geometrically():
    rules = (bj.rule(".*", bj.bitlength(init=4.0, min_bits=2.0, max_bits=8.0, mode="sharpen")),)
    stage = bitpruning(rules, steps=10, fine_tune=0.2, sharpness=16.0).stages[0]
    for bits, expected in ((1.0, 2.0), (5.5, 5.5), (9.0, 8.0)):
        quant = fake_quant_tree(bits, COSTS, sharpness=jnp.float32(1.0))
        for step, sharpness in ((2, 2.0), (4, 4.0), (8, 16.0)):
            new, _ = stage.after_step({"quant": quant}, {}, COSTS, jnp.asarray(step, jnp.int32))
            leaves = new["quant"]["head"]["kernel"]
            assert float(leaves["bits"]) == expected
            assert float(leaves["sharpness"]) == pytest.approx(sharpness, rel=1e-5)


def context_of(model, previous):
    nothing = iter(())
    return Context(model, None, previous, lambda *_: nothing, COSTS, jax.random.key(0), print)


def test_a_run_whose_bits_rounding_takes_says_so(capsys):
    loose = {"budgets": (bj.budget("bits", 4.0),)}
    for bits, settings, said in (
        (4.45, {"rounding": "nearest"}, "give a budget"),
        (4.45, loose, "more steps"),
        (4.05, loose, None),
    ):
        frozen = bitpruning(RULES, steps=10, **settings).stages[1]
        variables = {"quant": fake_quant_tree(bits, COSTS)}
        list(
            frozen.prepare(
                context_of(bj.Quantized(MLP(features=(8,)), RULES), variables), variables, 0
            )
        )
        out = capsys.readouterr().out
        assert ("rounding takes 0.45 of 4.45 learned bits" in out) == (said is not None)
        assert (said or "") in out


def test_after_the_freeze_a_convolution_that_pads_with_zeros_computes_with_codes_alone():
    model = nn.Conv(5, (3, 3), padding=1, use_bias=False)
    rules = (
        bj.rule("kernel", bj.bitlength(init=4.6, range="learned", granularity="per_channel")),
        bj.rule("input", bj.bitlength(init=3.4)),
    )
    method = bitpruning(rules, steps=0)
    x = X - 0.3  # lopsided, so that 0.0 is on no grid by chance
    first, last = method.stages
    wrapped = bj.Quantized(model, first.rules)
    learned = bj.attach(wrapped, model.init(jax.random.PRNGKey(0), x), x)
    frozen = bj.Quantized(model, last.rules)
    costs = bj.site_costs(model, x)
    context = context_of(frozen, learned)._replace(costs=costs)
    (variables,) = last.prepare(context, bj.attach(frozen, learned, x), 0)
    assert {site: np.unique(n).tolist() for site, n in bj.bits_of(variables).items()} == {
        "kernel": [5.0],
        "input": [3.0],
    }
    assert list(last.prepare(context, variables, 1)) == [], "resumed behind it, nothing is left"

    kernel = variables["params"]["kernel"]

    @jax.jit
    def with_codes(variables, x):
        levels = {}
        for role, value in (("kernel", kernel), ("input", x)):
            quantizer = quantizer_of(last.rules, role)
            params = variables["quant"][role]
            stats = variables.get("quant_stats", {}).get(role, {})
            codes = quantizer.encode(params, stats, value).codes
            zero = quantizer.encode(params, stats, jnp.zeros_like(value)).codes
            if role == "input":
                edges = ((0, 0), (1, 1), (1, 1), (0, 0))
                codes = jnp.pad(codes, edges, constant_values=jnp.max(zero))
                zero = jnp.pad(zero, edges, mode="edge")
            of_zero = quantizer.decode(params, stats, bj.Codes(zero))
            levels[role] = quantizer.decode(params, stats, bj.Codes(codes)), of_zero
        (w, w_zero), (a, a_zero) = levels["kernel"], levels["input"]
        out = jax.lax.conv_general_dilated(
            a, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return out, w_zero, a_zero

    out, *zeros = with_codes(variables, x)
    for zero in zeros:
        assert not np.any(zero), "0.0 is a code"
    np.testing.assert_allclose(jax.jit(frozen.apply)(variables, x), out, rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError):  # before the freeze the padding lies between two levels
        before = jax.jit(wrapped.apply)({**learned, "quant": variables["quant"]}, x)
        np.testing.assert_allclose(before, out, rtol=1e-3, atol=1e-3)


def test_freezing_fixes_bitlengths_and_nothing_else():
    rules = (bj.rule(".*/kernel", bj.bitlength(init=4.0)), bj.rule(".*", bj.lsq(bits=4)))
    frozen = bitpruning(rules, steps=4).stages[1].rules
    assert frozen[0].quantizer.name == freeze(rules[0].quantizer).name == "bitlength/fixed"
    assert frozen[1].quantizer is rules[1].quantizer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounding": "floor"}, "`rounding` must be None or one of .*got 'floor'"),
        ({"rounding": "budget"}, "rounding='budget' needs a budget"),
        (
            {"rounding": "ceil", "budgets": (bj.budget("bits", 4.0),)},
            "`rounding` must be 'budget' or None where there are budgets, got 'ceil'",
        ),
        (
            {"tied": (".*",), "budgets": (bj.budget("bits", 4.0),)},
            "`tied` .* does not go with budgets",
        ),
        ({"criterion": {"head/kernel": 0.0}}, "`criterion` must weigh at least one site above 0"),
        ({"fine_tune": 1.0}, r"`fine_tune` must be in \[0, 1\), got 1"),
        ({"settle": -0.5}, r"`settle` must be in \[0, 1\), got -0.5"),
        ({"distill": 1.5}, r"`distill` must be in \[0, 1\], got 1.5"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bitpruning(RULES, steps=10, **arguments)


def prepare_first(rules, **arguments):
    stage = bitpruning(rules, steps=10, **arguments).stages[0]
    stage.check(COSTS)
    variables = {"quant": fake_quant_tree(6.0, COSTS)}
    return list(stage.prepare(context_of(None, variables), variables, 0))


def test_learning_begins_from_bits_that_are_given():
    (found,) = prepare_first(RULES, start_bits={"head/kernel": 3.0, "head/input": 2})
    bits = {site: float(n) for site, n in bj.bits_of(found).items()}
    assert bits == {**dict.fromkeys(COSTS, 6.0), "head/kernel": 3.0, "head/input": 2.0}


def test_what_cannot_end_well_is_refused_before_the_first_step():
    low = (bj.rule(".*", bj.bitlength(init=6.0, min_bits=3.0)),)
    with pytest.raises(ValueError, match="the fewest bits allowed cost 3. Raise the budget"):
        prepare_first(low, budgets=(bj.budget("bits", 2.5),))
    with pytest.raises(ValueError, match="names sites 'stem/.*', which match none"):
        prepare_first(low, budgets=(bj.budget("bits", 2.5, "stem/.*"),))
    with pytest.raises(ValueError, match="no bits to learn: give at least one site a bitlength"):
        prepare_first((bj.rule(".*", bj.uniform(bits=4)),))
    with pytest.raises(ValueError, match="`tied` 'stem/.*' matches no site that learns its bits"):
        prepare_first(low, tied=("stem/.*",))
    with pytest.raises(ValueError, match="`criterion` weighs 'stem/kernel', which is no site"):
        prepare_first(low, criterion={"stem/kernel": 1.0})
    with pytest.raises(ValueError, match="`start_bits` has 'stem/kernel', which is no site that"):
        prepare_first(low, start_bits={"stem/kernel": 4.0})
    site, *_ = COSTS
    with pytest.raises(ValueError, match=rf"`start_bits\['{site}'\]` must be in \[3, 16\], got 2"):
        prepare_first(low, start_bits={site: 2})
    with pytest.raises(ValueError, match="must give all sites of `tied` '.*' the same bits"):
        prepare_first(low, start_bits={site: 4.0}, tied=(".*",))
    assert prepare_first(low, budgets=(bj.budget("bits", 3.5),)) == []
