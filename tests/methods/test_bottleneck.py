"""The bottleneck's own stage: planes from one pass, within the rate, and what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
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


def test_more_planes_disturb_the_output_less_and_eight_hardly_at_all():
    errors = []
    for rate in (2.0, 4.0, 8.0):
        model, variables, _ = allocated(rate=rate)
        errors.append(float(jnp.mean((model.apply(variables, X) - Net().apply(FLOAT, X)) ** 2)))
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 1.0}, r"`rate` must be in \[2, 8\]"),
        ({"min_bits": 5, "max_bits": 4}, "must rise within"),
        ({"weighting": "hessian"}, "`weighting` must be one of"),
        ({"grid": "lasso"}, "`grid` must be one of"),
    ],
)
def test_settings_out_of_bounds_are_one_clear_line(settings, message):
    with pytest.raises(ValueError, match=message):
        bottleneck(RULES, **settings)
