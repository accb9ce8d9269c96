"""Heads that only the training call has: their sites are made, and evaluation does not change."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.frameworks.attach import attached_shapes


class Body(nn.Module):
    """Without a head: what evaluation is compared with."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(6, name="first")(x))
        x = nn.Dropout(0.2, deterministic=not train)(nn.relu(x))
        return nn.Dense(3, name="last")(x)


class Headed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(6, name="first")(x))
        x = nn.Dropout(0.2, deterministic=not train)(nn.relu(x))
        out = nn.Dense(3, name="last")(x)
        return (out, nn.Dense(3, name="aux")(x)) if train else out


X = jax.random.normal(jax.random.key(1), (16, 4))
RULES = [bj.rule(".*/kernel", bj.lsq(bits=4)), bj.rule(".*/input", bj.uniform(bits=4))]
FLOAT = Headed().init({"params": jax.random.key(0), "dropout": jax.random.key(9)}, X, train=True)
MODEL = bj.Quantized(Headed(), RULES)
HEAD = {"aux/kernel", "aux/input"}


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def without(tree, name):
    return {key: value for key, value in tree.items() if key != name}


def test_attach_makes_the_heads_sites_and_training_moves_them():
    variables = bj.attach(MODEL, FLOAT, X)
    assert HEAD < set(bj.bits_of(variables))
    before = variables["quant_stats"]["aux"]["input"]
    assert float(before["count"]) == 1.0 and float(before["clip_max"]) > 0
    (_, aux), changed = MODEL.apply(
        variables, 3.0 * X, train=True, mutable=["batch_stats", "quant_stats"],
        rngs={"dropout": jax.random.key(2)},
    )  # fmt: skip
    assert aux.shape == (16, 3)
    assert float(changed["quant_stats"]["aux"]["input"]["count"]) == 2.0

    def loss(quant):
        out, aux = MODEL.apply(
            {**variables, "quant": quant}, X, train=True, mutable=["batch_stats", "quant_stats"],
            rngs={"dropout": jax.random.key(2)},
        )[0]  # fmt: skip
        return jnp.sum(out**2) + jnp.sum(aux**2)

    assert float(jnp.abs(jax.grad(loss)(variables["quant"])["aux"]["kernel"]["scale"])) > 0


def test_the_evaluation_and_every_other_site_stay_bit_for_bit():
    body = bj.Quantized(Body(), RULES)
    float_body = {**FLOAT, "params": without(FLOAT["params"], "aux")}
    variables, plain = bj.attach(MODEL, FLOAT, X), bj.attach(body, float_body, X)
    for collection in ("quant", "quant_stats"):
        same(without(variables[collection], "aux"), plain[collection])
    same(variables["batch_stats"], FLOAT["batch_stats"])
    np.testing.assert_array_equal(MODEL.apply(variables, X), body.apply(plain, X))
    assert list(bj.site_costs(MODEL, X)) == list(bj.site_costs(body, X))
    # Attached again, and calibrated, the head keeps what it has.
    same(bj.attach(MODEL, variables, X), variables)
    calibrated = bj.calibrate(MODEL, variables, [2.0 * X, X])
    same(calibrated["quant_stats"]["aux"], variables["quant_stats"]["aux"])
    assert float(calibrated["quant_stats"]["last"]["input"]["count"]) == 2.0


def test_a_float_init_that_evaluates_makes_no_head_and_attach_copes():
    plain = Headed().init(jax.random.key(0), X)
    assert "aux" not in plain["params"]
    assert not HEAD & set(bj.bits_of(bj.attach(MODEL, plain, X)))
    assert not HEAD & set(bj.bits_of(MODEL.init(jax.random.key(0), X)))


def test_init_with_train_makes_the_head_too():
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(9)}
    assert HEAD < set(bj.bits_of(MODEL.init(rngs, X, train=True)))


def test_a_rule_for_the_head_alone_is_not_idle_and_one_for_nothing_is():
    model = bj.Quantized(Headed(), [bj.rule("aux/kernel", bj.lsq(bits=4))])
    variables = bj.attach(model, FLOAT, X)
    assert set(bj.bits_of(variables)) == {"aux/kernel"}
    assert bj.doctor(model, variables, X) == ()
    idle = bj.Quantized(Headed(), [bj.rule("auxiliary/kernel", bj.lsq(bits=4))])
    with pytest.raises(ValueError, match="'auxiliary/kernel' does nothing.*aux/kernel"):
        bj.attach(idle, FLOAT, X)


def test_the_doctor_sees_the_head_where_it_trains():
    variables = bj.attach(MODEL, FLOAT, X)
    variables["quant"]["aux"]["kernel"]["scale"] = jnp.float32(1e3)
    assert "aux/kernel" not in {f.site for f in bj.doctor(MODEL, variables, X)}
    found = {f.site: f.message for f in bj.doctor(MODEL, variables, X, train=True)}
    assert "all zeros" in found["aux/kernel"]


def test_nan_in_the_head_is_named_when_its_sites_are_made():
    broken = jax.tree.map(lambda leaf: leaf, FLOAT)
    broken["params"]["aux"]["bias"] = jnp.full(3, jnp.nan)
    with pytest.raises(ValueError, match="NaN or inf first at aux/bias"):
        bj.attach(MODEL, broken, X)


def test_shapes_are_those_of_what_attach_makes():
    made = bj.attach(MODEL, FLOAT, X)
    shapes = attached_shapes(MODEL, jax.eval_shape(lambda: FLOAT), (X,), {})
    for name, tree in shapes.items():
        assert jax.tree.map(jnp.shape, made[name]) == jax.tree.map(lambda s: s.shape, tree)


@pytest.mark.parametrize(
    ("said", "trains", "positional"),
    [("train", True, True), ("training", True, False), ("deterministic", False, True)],
)
def test_a_function_says_in_its_own_words_whether_it_trains(said, trains, positional):
    def net(params, x, flag):
        out = x @ params["out"]["w"]
        return (out, x @ params["aux"]["w"]) if flag == trains else out

    words = {}
    exec(
        f"def fn(params, x, {said}={not trains}): return net(params, x, {said})",
        {"net": net},
        words,
    )
    function = bj.Function(words["fn"], RULES)
    params = {"out": {"w": jnp.ones((4, 2))}, "aux": {"w": jnp.ones((4, 2))}}
    args = (X, not trains) if positional else (X,)
    assert HEAD < set(bj.bits_of(function.init(params, *args)))
    assert HEAD < set(bj.bits_of(bj.attach(function, {"params": params}, *args)))


def test_a_model_may_have_one_head_for_each_mode():
    def net(params, x, train=False):
        return x @ params["aux" if train else "main"]["w"]

    function = bj.Function(net, [bj.rule("main/kernel", bj.lsq(bits=4)), *RULES[1:]])
    params = {"main": {"w": jnp.ones((4, 2))}, "aux": {"w": jnp.ones((4, 2))}}
    state = function.init(params, X)
    assert set(bj.bits_of(state)) == {"main/kernel", "main/input", "aux/input"}
    variables = {"params": params}
    assert set(bj.bits_of(bj.attach(function, variables, X))) == set(bj.bits_of(state))


def test_a_training_call_that_needs_more_than_the_evaluation_is_left_alone():
    def net(params, x, labels=None, train=False):
        out = x @ params["out"]["w"]
        return jnp.sum((out - labels) ** 2) if train else out

    function = bj.Function(net, RULES)
    params = {"out": {"w": jnp.ones((4, 2))}}
    assert set(bj.bits_of(function.init(params, X))) == {"out/kernel", "out/input"}


def test_a_head_whose_call_needs_more_is_attached_in_a_second_step():
    def net(params, x, shift=None, train=False):
        out = x @ params["out"]["w"]
        return (out, (x + shift) @ params["aux"]["w"]) if train else out

    function = bj.Function(net, RULES)
    params = {"out": {"w": jnp.ones((4, 2))}, "aux": {"w": jnp.ones((4, 3))}}
    first = bj.attach(function, {"params": params}, X)
    with pytest.raises(
        ValueError, match=r"'aux/kernel' has no 'quant' .* attach\(..., train=True\)"
    ):
        function.apply(params, first, X, shift=X, train=True)
    both = bj.attach(function, first, X, shift=X, train=True)
    assert set(bj.bits_of(both)) == {"out/kernel", "out/input", *HEAD}
    same(first["quant"]["out"], both["quant"]["out"])
    same(first["quant_stats"]["out"], both["quant_stats"]["out"])
    assert function.apply(params, both, X, shift=X, train=True)[0][1].shape == (16, 3)
