"""The bottleneck's own stage: planes from one pass, within the rate, and what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.data import load, normalize
from bitjax.methods import bottleneck
from bitjax.methods.base import Context

DATA = load("digits", limit=256)
X = normalize(jnp.asarray(DATA.images), DATA.mean, DATA.std, DATA.max_value)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        for name in ("first", "second", "third"):
            x = nn.relu(nn.Dense(16, name=name)(x))
        return nn.Dense(10, name="head")(x)


RULES = (bj.rule("(second|third|head)/input", bj.bitplane(bits=8)),)
FLOAT = Net().init(jax.random.key(0), X)


def allocated(rules=RULES, **settings):
    stage = bottleneck(rules, calibration_batches=2, **settings).stages[0]
    model = bj.Quantized(Net(), rules)
    variables = bj.attach(model, FLOAT, X)
    lines = []
    context = Context(
        model=model,
        previous_model=None,
        previous=FLOAT,
        batches=lambda count, augment: iter([X[:128], X[128:]][:count]),
        costs=bj.site_costs(Net(), X),
        key=jax.random.PRNGKey(0),
        log=lines.append,
    )
    (after,) = stage.prepare(context, variables, 0)
    assert list(stage.prepare(context, variables, 1)) == []  # done already: a resumed run
    return model, after, lines


def bits(variables):
    return [int(n) for n in bj.bits_of(variables).values()]


def test_the_average_rate_is_within_the_budget_and_no_plane_more_fits():
    for rate in (2.0, 3.4, 4.0):
        _, variables, lines = allocated(rate=rate)
        assert rate * 3 - 1 < sum(bits(variables)) <= rate * 3
        assert "planes on average over 3 sites" in lines[0]


def test_the_float_parameters_are_untouched():
    _, variables, _ = allocated(rate=3.0)
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, variables["params"], FLOAT["params"]))


@pytest.mark.slow
def test_more_planes_disturb_the_output_less_and_eight_hardly_at_all():
    errors = []
    for rate in (2.0, 4.0, 8.0):
        model, variables, _ = allocated(rate=rate)
        errors.append(float(jnp.mean((model.apply(variables, X) - Net().apply(FLOAT, X)) ** 2)))
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


@pytest.mark.slow
def test_windows_are_powers_of_two_and_free_scales_lose_less():
    model, free, _ = allocated(rate=3.0, min_bits=3, max_bits=3)
    _, window, _ = allocated(rate=3.0, min_bits=3, max_bits=3, grid="window")
    scales = [float(s["input"]["scale"]) for s in window["quant"].values()]
    assert all(jnp.frexp(s)[0] == 0.5 for s in scales)
    exact = Net().apply(FLOAT, X)
    error = [float(jnp.mean((model.apply(v, X) - exact) ** 2)) for v in (free, window)]
    assert error[0] < error[1]


def test_the_papers_knob_gives_each_site_its_own_planes():
    _, loose, _ = allocated(psnr_loss=40.0)
    _, tight, _ = allocated(psnr_loss=20.0)
    assert all(a <= b for a, b in zip(bits(loose), bits(tight), strict=True))
    assert bits(loose) != bits(tight)


def test_a_site_with_negative_elements_is_refused_by_name():
    rules = (bj.rule("first/input", bj.bitplane(bits=8, signed=True)),)
    with pytest.raises(ValueError, match="no planes to choose"):
        allocated(rules)


def test_a_code_with_fewer_planes_than_a_site_may_get_is_refused_by_name():
    rules = (bj.rule("(second|third|head)/input", bj.bitplane(bits=4, depth=4)),)
    with pytest.raises(ValueError, match=r"at most the 4 planes of 'second/input', got 8"):
        allocated(rules)
    _, variables, _ = allocated(rules, rate=3.0, max_bits=4)
    assert sum(bits(variables)) == 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 1.0}, r"`rate` must be in \[2, 8\]"),
        ({"min_bits": 5, "max_bits": 4}, "must rise within"),
        ({"weighting": "hessian"}, "`weighting` must be one of"),
        ({"grid": "planes"}, "`grid` must be one of"),
        ({"grid": "lasso"}, "`grid` 'lasso' goes with `psnr_loss`, or with"),
        ({"resolve_every": -1}, "`resolve_every` must be an integer of 0 or more"),
    ],
)
def test_settings_out_of_bounds_are_one_clear_line(settings, message):
    with pytest.raises(ValueError, match=message):
        bottleneck(RULES, **settings)


PAPER = bj.bitplane(bits=8, mode="faithful", truncate=True, coefficients="free")
PAPER_RULES = (bj.rule("(second|third|head)/input", PAPER),)


FIRST = nn.relu(nn.Dense(16).apply({"params": FLOAT["params"]["first"]}, X.reshape(len(X), -1)))


def test_the_papers_planes_lose_more_than_rounded_ones_and_lasso_more_than_the_best_subset():
    seen = bj.site_histograms(
        Net(), FLOAT, [X], sites="(second|third|head)/input", per_example=True
    )
    assert all(histogram.high == 1.0 for histogram in seen.values())
    free, truncated, lasso = (
        bj.rate_curves(seen, grid=grid) for grid in ("free", "truncated", "lasso")
    )
    for site in seen:
        middle = slice(1, 6)  # at 8 planes a code loses less than the best scale of a histogram
        assert (free[site].distortion[middle] < truncated[site].distortion[middle]).all()
        assert (truncated[site].distortion <= lasso[site].distortion).all()


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["truncated", "lasso"])
def test_the_papers_planes_do_to_a_site_what_their_curve_says(grid):
    settings = {"grid": grid, "rate": 3.0, "min_bits": 3, "max_bits": 3}
    _, variables, _ = allocated(PAPER_RULES, **settings)
    assert bits(variables) == [3, 3, 3]
    batches = [X[:128], X[128:]]
    seen = bj.site_histograms(Net(), FLOAT, batches, sites="second/input", per_example=True)
    curve = bj.rate_curves(seen, grid=grid)["second/input"]
    peak = jnp.max(FIRST, axis=1, keepdims=True)
    x = FIRST / jnp.where(peak > 0, peak, 1)
    x_hat = PAPER_RULES[0].quantizer.apply(variables["quant"]["second"]["input"], {}, x)
    np.testing.assert_allclose(jnp.mean((x_hat - x) ** 2), curve.distortion[2], rtol=0.02)


@pytest.mark.slow
def test_the_papers_planes_at_its_knob_are_within_what_they_promise():
    _, variables, _ = allocated(PAPER_RULES, grid="truncated", psnr_loss=25.0, min_bits=1)
    params = variables["quant"]["second"]["input"]
    peak = jnp.max(FIRST, axis=1, keepdims=True)
    x = FIRST / jnp.where(peak > 0, peak, 1)
    error = jnp.mean((PAPER_RULES[0].quantizer.apply(params, {}, x) - x) ** 2)
    assert -10 * jnp.log10(error) >= 30.0 - 0.1  # the histogram stands for the data in its bins


SOLVED = bj.bitplane(bits=8, coefficients="solved")
SOLVED_RULES = (bj.rule("(second|third|head)/input", SOLVED),)


@pytest.mark.slow
def test_solved_coefficients_lose_less_at_their_site_than_powers_of_two():
    errors = []
    for rules in (RULES, SOLVED_RULES):
        _, variables, _ = allocated(rules, rate=3.0, min_bits=3, max_bits=3)
        stats = variables.get("quant_stats", {})
        assert all(float(node["input"]["count"]) == 2 for node in stats.values())
        params = variables["quant"]["second"]["input"]
        errors.append(float(jnp.mean((rules[0].quantizer.apply(params, {}, FIRST) - FIRST) ** 2)))
    assert errors[1] < errors[0]


@pytest.mark.slow
def test_coefficients_are_solved_anew_in_fine_tuning():
    stages = bottleneck(SOLVED_RULES, steps=20, resolve_every=10, calibration_batches=2).stages
    steps, resolve = stages[1].every
    assert steps == 10
    model, variables, _ = allocated(SOLVED_RULES, rate=3.0)
    moved = variables["quant_stats"]["second"]["input"]
    moved = {**moved, "first": 1.1 * moved["first"]}
    stats = {**variables["quant_stats"], "second": {"input": moved}}
    after = resolve(Context(model, *[None] * 6), {**variables, "quant_stats": stats})
    old, new = (v["quant"]["second"]["input"] for v in (variables, after))
    count = int(old["bits"])
    np.testing.assert_allclose(
        new["coefficients"][:count], 1.1 * old["coefficients"][:count], rtol=1e-4
    )
    assert all(stage.every is None for stage in bottleneck(SOLVED_RULES, steps=20).stages)
