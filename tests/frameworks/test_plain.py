"""`Function` around plain JAX, Equinox and Haiku: what it reads, when it traces, what it learns."""

import io

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bitjax as bj
from bitjax.program.state import missing

KEY = jax.random.key(0)
RULES = [bj.rule(".*kernel", bj.lsq(bits=4)), bj.rule(".*input", bj.bitlength(init=6.0))]
ALL = [bj.rule(".*", bj.lsq(bits=4))]


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X = normal(4, 6)
MLP = {
    "layers": [
        {"w": normal(6, 5, seed=1), "b": jnp.zeros(5)},
        {"w": normal(5, 2, seed=2), "b": jnp.zeros(2)},
    ]
}


def mlp(params, x):
    *hidden, head = params["layers"]
    for layer in hidden:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ head["w"] + head["b"]


def sites(fn, *args, **options):
    return list(bj.site_costs(bj.Function(fn, **options), *args))


def test_sites_are_named_by_paths_of_dicts_lists_and_tuples():
    assert sites(mlp, MLP, X) == [
        "layers/0/kernel", "layers/0/input", "layers/1/kernel", "layers/1/input",
    ]  # fmt: skip
    assert sites(lambda w, x: x @ w, normal(6, 2), X) == ["kernel", "input"]
    pair = (normal(6, 3), normal(3, 2))
    assert sites(lambda p, x: x @ p[0] @ p[1], pair, X)[::2] == ["0/kernel", "1/kernel"]


def test_a_convolution_of_its_own_has_the_costs_of_a_flax_layer():
    def conv(params, x):
        y = jax.lax.conv_general_dilated(
            x, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + params["conv"]["bias"]

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(4, (3, 3), name="conv")(x)

    x = normal(2, 8, 8, 3)
    params = Linen().init(KEY, x)["params"]
    assert bj.site_costs(bj.Function(conv), params, x) == bj.site_costs(Linen(), x)
    rules = [bj.rule(".*", bj.lsq(bits=4, granularity="per_channel"))]
    state = bj.Function(conv, rules).init(params, x)
    out, _ = bj.Function(conv, rules).apply(params, state, x)
    twin = bj.Quantized(Linen(), rules)
    np.testing.assert_allclose(out, twin.apply({"params": params, **state}, x), atol=1e-6)


def test_attention_is_named_by_the_kernels_that_feed_it_or_by_its_scope():
    def attend(p, x):
        q, k, v = (x @ p[name]["w"] for name in "qkv")
        return jax.nn.softmax(q @ k.T) @ v

    params = {n: {"w": normal(6, 6)} for n in "qkv"}
    found = sites(lambda p, x: attend(p["b"], attend(p["a"], x)), {"a": params, "b": params}, X)
    assert [name for name in found if "left" in name] == [
        "a/product0/left", "a/product1/left", "b/product0/left", "b/product1/left",
    ]  # fmt: skip

    def scoped(p, x):
        with jax.named_scope("mine"):
            return attend(p, x)

    assert "mine/product0/right" in sites(scoped, params, X)


def test_a_table_that_is_read_is_a_kernel_and_reading_it_backwards_a_product():
    params = {"emb": {"embedding": normal(7, 6)}, "head": {"w": normal(6, 6)}}

    def lm(p, tokens):
        table = p["emb"]["embedding"]
        return (table[tokens] @ p["head"]["w"]) @ table.T

    tokens = jnp.zeros((2, 3), jnp.int32)
    assert sites(lm, params, tokens) == ["emb/kernel", "head/kernel", "head/input", "emb/input"]


def test_arguments_may_be_trees_keywords_and_static_values():
    def fn(p, batch, power=1, *, mask, mode):
        out = (batch["x"] * mask) @ p["w"]
        return {"y": out**power if mode == "power" else out}

    net, params = bj.Function(fn, ALL), {"w": normal(6, 2)}
    given = {"mask": jnp.ones(6), "mode": "power"}
    state = net.init(params, {"x": X}, **given)
    plain, _ = net.apply(params, state, {"x": X}, **given)
    square, _ = net.apply(params, state, {"x": X}, power=2, **given)
    np.testing.assert_allclose(square["y"], plain["y"] ** 2, rtol=1e-6)


def test_without_rules_it_is_the_function():
    out, state = bj.Function(mlp).apply(MLP, {}, X)
    assert jnp.array_equal(out, mlp(MLP, X)) and state == {}


def test_one_trace_serves_every_call_and_every_transform():
    traces = []

    def fn(params, x):
        traces.append(x.shape)
        return mlp(params, x)

    net = bj.Function(fn, RULES)
    state = net.init(MLP, X)
    net.apply(MLP, state, X)
    call = jax.jit(lambda p, s, x: net.apply(p, s, x)[0])
    for factor in (1.0, 2.0):
        call(MLP, state, factor * X)
    jax.grad(lambda p: net.apply(p, state, X, train=True, update=True)[0].sum())(MLP)
    net.with_rules(ALL).init(MLP, X)
    assert traces == [(4, 6)]
    call(MLP, state, X[:2])
    assert traces == [(4, 6), (2, 6)]


def test_gradients_reach_parameters_and_quantizers():
    net = bj.Function(mlp, RULES)
    state = net.init(MLP, X)

    def loss(params, quant):
        return (net.apply(params, {**state, "quant": quant}, X, train=True)[0] ** 2).sum()

    params, quant = jax.grad(loss, argnums=(0, 1))(MLP, state["quant"])
    assert all(np.any(layer["w"]) for layer in params["layers"])
    assert float(jnp.abs(quant["layers"]["1"]["kernel"]["scale"])) > 0.0
    assert float(jnp.abs(quant["layers"]["0"]["input"]["bits"])) > 0.0


def test_statistics_move_only_where_they_are_updated():
    net = bj.Function(mlp, RULES)
    state = net.init(MLP, X)
    _, same = net.apply(MLP, state, X, train=True)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, same, state))
    _, moved = net.apply(MLP, state, 2 * X, train=True, update=True)
    assert float(moved["quant_stats"]["layers"]["0"]["input"]["count"]) == 1.0


OWN_FLAGS = {
    "train": lambda p, x, train=None: x @ p["w"],
    "training": lambda p, x, training=None: x @ p["w"],
    "deterministic": lambda p, x, deterministic=None: x @ p["w"],
}


@pytest.mark.parametrize("name", OWN_FLAGS)
def test_the_functions_own_argument_says_whether_it_trains(name):
    net, params = bj.Function(OWN_FLAGS[name], RULES), {"w": normal(6, 2)}
    state = net.init(params, X)
    trains = {name: name != "deterministic"}
    # In training the batch's own range quantizes, and not the one that the state began with.
    in_training, _ = net.apply(params, state, X / 3, **trains)
    outside, _ = net.apply(params, state, X / 3, **{name: not trains[name]})
    assert not jnp.array_equal(in_training, outside)
    same, _ = net.apply(params, state, X / 3, **{**trains, "train": True})
    assert jnp.array_equal(same, in_training)


@pytest.mark.slow
def test_vmap_over_examples_and_scans_over_time_and_depth():
    net = bj.Function(mlp, ALL)
    state = net.init(MLP, X)
    each = jax.vmap(lambda x: net.apply(MLP, state, x[None])[0][0])(X)
    np.testing.assert_allclose(each, net.apply(MLP, state, X)[0], atol=1e-6)

    def rnn(p, xs):
        def step(h, x):
            h = jnp.tanh(x @ p["wx"] + h @ p["wh"])
            return h, h

        return jax.lax.scan(step, jnp.zeros((4, 5)), xs)[1]

    cell = bj.Function(rnn, [bj.rule(".*", bj.uniform(bits=8))])
    weights, xs = {"wx": normal(6, 5), "wh": normal(5, 5)}, normal(3, 4, 6)
    state = cell.init(weights, xs)
    assert state["quant"]["wh"]["kernel"]["bits"].shape == ()
    _, state = cell.apply(weights, state, xs, train=True, update=True)
    # The three steps are one batch.
    assert float(state["quant_stats"]["wh"]["input"]["count"]) == 1.0

    def deep(p, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0]

    state = bj.Function(deep, ALL).init({"w": normal(3, 6, 6)}, X)
    assert state["quant"]["kernel"]["scale"].shape == (3,)


def test_optax_learns_bits_under_a_penalty():
    net = bj.Function(mlp, RULES)
    state = net.init(MLP, X)
    costs = bj.site_costs(net, MLP, X)
    labels = jnp.array([0, 1, 0, 1])
    tx = optax.adam(0.05)
    trained = {"params": MLP, "quant": state["quant"]}

    @jax.jit
    def step(trained, stats, opt):
        def loss(trained):
            given = {"quant": trained["quant"], "quant_stats": stats}
            out, new = net.apply(trained["params"], given, X, train=True, update=True)
            task = optax.softmax_cross_entropy_with_integer_labels(out, labels).mean()
            return task + 0.01 * bj.penalty(trained["quant"], costs), new["quant_stats"]

        (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
        updates, opt = tx.update(gradients, opt, trained)
        return optax.apply_updates(trained, updates), stats, opt, value

    stats, opt, values = state["quant_stats"], tx.init(trained), []
    for _ in range(20):
        trained, stats, opt, value = step(trained, stats, opt)
        values.append(float(value))
    assert values[-1] < values[0]
    assert float(bj.bits_of(trained)["layers/0/input"]) < 6.0


def test_tools_take_a_function_and_its_variables():
    net = bj.Function(mlp, RULES)
    variables = bj.attach(net, {"params": MLP}, X)
    variables = bj.calibrate(net, variables, [X, X])
    assert "layers/1/input" in bj.summary(net, variables, X, file=io.StringIO())
    assert not [f for f in bj.doctor(net, variables, X) if f.level == "error"]
    assert list(bj.fisher(net, variables, [X])) == ["layers/0/input", "layers/1/input"]
    assert bj.total_macs(net, MLP, X) == 6 * 5 + 5 * 2


def test_a_state_without_a_site_says_which():
    with pytest.raises(ValueError) as error:
        bj.Function(mlp, RULES).apply(MLP, {}, X)
    assert str(error.value) == missing("layers/0/kernel", "quant")


def test_equinox_modules_are_partitioned_and_keep_their_attributes_paths():
    eqx = pytest.importorskip("equinox")  # an extra has it, not the core
    model = eqx.nn.MLP(6, 3, 8, 2, key=KEY)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    net = bj.Function(lambda params, x: jax.vmap(eqx.combine(params, static))(x), RULES)
    state = net.init(params, X)
    assert sorted(state["quant"]["layers"]) == ["0", "1", "2"]
    assert sites(net.fn, params, X)[:2] == ["layers/0/kernel", "layers/0/input"]
    out, _ = bj.Function(net.fn).apply(params, {}, X)
    np.testing.assert_allclose(out, jax.vmap(model)(X), atol=1e-6)
    gradients = eqx.filter_grad(lambda p: net.apply(p, state, X)[0].sum())(params)
    assert gradients.layers[0].weight.shape == (8, 6)


def test_equinox_attention_is_named_by_its_own_path():
    eqx = pytest.importorskip("equinox")  # an extra has it, not the core
    layers = [eqx.nn.MultiheadAttention(2, 6, key=KEY) for _ in range(2)]
    params, static = eqx.partition(layers, eqx.is_inexact_array)

    def net(params, x):
        for layer in eqx.combine(params, static):
            x = layer(x, x, x)
        return x

    assert [name for name in sites(net, params, X) if "left" in name] == [
        "0/product0/left", "0/product1/left", "1/product0/left", "1/product1/left",
    ]  # fmt: skip


def test_haiku_functions_name_keys_and_state_as_neutral():
    hk = pytest.importorskip("haiku")  # an extra has it, not the core

    def forward(x, is_training):
        x = hk.BatchNorm(True, True, 0.9, name="norm")(hk.Linear(5, name="a")(x), is_training)
        return hk.Linear(3, name="b")(jax.nn.relu(x))

    net = hk.transform_with_state(forward)
    params, before = net.init(KEY, X, True)
    fn = bj.Function(net.apply, RULES, neutral=(0, 1))
    state = fn.init(params, before, None, X, False)
    assert list(bj.site_costs(fn, params, before, None, X, False))[::2] == ["a/kernel", "b/kernel"]
    (out, after), state = fn.apply(params, state, before, None, X, True, train=True, update=True)
    assert out.shape == (4, 3) and jax.tree.structure(after) == jax.tree.structure(before)
    assert float(state["quant_stats"]["b"]["input"]["count"]) == 1.0
    # Without rules it is Haiku's own result.
    (plain, _), _ = fn.with_rules(()).apply(params, {}, before, None, X, False)
    np.testing.assert_allclose(plain, net.apply(params, before, None, X, False)[0], atol=1e-6)


class Module:
    """A callable that holds its arrays, as Equinox's modules do."""

    def __init__(self, w):
        self.w = w

    def __call__(self, x):
        return x @ self.w


jax.tree_util.register_pytree_node(Module, lambda m: ((m.w,), None), lambda _, w: Module(*w))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: bj.Function(nn.Dense(2)), r"the Linen module Dense: call bitjax\.Quantized\("),
        (lambda: bj.Function(nn.Dense(2).bind({})), r"the Linen module Dense: call bitjax\.Quan"),
        (lambda: bj.Function(nn.Dense), r"the class Dense: give an instance, Dense\(\.\.\.\)"),
        (lambda: bj.Function(bj.Function(mlp)), r"a model that is wrapped already, in Function"),
        (lambda: bj.Function(Module(X)), r"eqx\.partition\(model, eqx\.is_inexact_array\)"),
        (lambda: bj.Function(3), r"got 3: call bitjax\.Quantized\("),
        (lambda: bj.Quantized(mlp, ALL), r"a function \(mlp\): call bitjax\.Function\(fn, rules\)"),
        (lambda: bj.Quantized(nn.Dense), r"the class Dense: give an instance, Dense\(\.\.\.\)"),
        (lambda: bj.Quantized(Module(X)), r"eqx\.partition\(model, eqx\.is_inexact_array\)"),
        (lambda: bj.site_costs(Module(X), X), r"eqx\.partition\(model, eqx\.is_inexact_array\)"),
        (lambda: bj.attach(nn.Dense(2), {}, X), r"the Linen module Dense: call bitjax\.Quantized"),
        (lambda: bj.attach(mlp, {}, X), r"a function \(mlp\): call bitjax\.Function\(fn, rules\)"),
    ],
)
def test_a_wrong_kind_of_model_is_told_what_to_call(call, says):
    with pytest.raises(TypeError, match=says) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_transformed_haiku_function_is_told_to_give_apply():
    hk = pytest.importorskip("haiku")  # an extra has it, not the core
    with pytest.raises(TypeError, match=r"bitjax\.Function\(model\.apply, rules\)"):
        bj.Function(hk.transform(lambda x: hk.Linear(2)(x)))
