"""NNX models: named as in Linen, trained to the same numbers, and driven by NNX's own calls."""

import io

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bitjax as bj
from bitjax.methods.labels import learned_labels

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 6)), jnp.float32)
Y = jnp.array([0, 1, 2, 1])
RULES = [
    bj.rule(".*product.*", bj.uniform(bits=8)),
    bj.rule(".*kernel", bj.lsq(bits=4)),
    bj.rule(".*input", bj.bitlength(init=6.0)),
]


class Net(nnx.Module):
    """Attention and both normalisations between two linear layers."""

    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.ln = nnx.LayerNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = self.first(x)
        return self.head(self.ln(self.norm(x + self.attn(x))).mean(axis=1))


class Twin(nn.Module):
    """The same in Linen."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8, name="first")(x)
        x = x + nn.MultiHeadDotProductAttention(2, name="attn")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        return nn.Dense(3, name="head")(nn.LayerNorm(name="ln")(x).mean(axis=1))


class Small(nnx.Module):
    """What else an NNX model holds: a list, dropout, a counter."""

    def __init__(self, rate=0.5):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(6, 6, rngs=rngs) for _ in range(2)])
        self.drop = nnx.Dropout(rate, rngs=rngs)
        self.calls = nnx.Variable(jnp.int32(0))

    def __call__(self, x, scale=1.0):
        self.calls[...] += 1
        for layer in self.layers:
            x = self.drop(nnx.relu(layer(x)))
        return x * scale


def loss_of(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()


def small(rate=0.5, rules=RULES[1:]):
    return bj.quantize(Small(rate), rules, X)


def close(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6)


@pytest.fixture(scope="module")
def trained():
    """An NNX model and its Linen twin, before and after five steps."""
    model = bj.quantize(Net(), RULES, X)
    before = jax.tree.map(jnp.copy, model.functional()[1])
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    traces = []

    @nnx.jit
    def step(model, optimizer):
        traces.append(1)
        value, gradients = nnx.value_and_grad(lambda model: loss_of(model(X)))(model)
        optimizer.update(model, gradients)
        return value

    losses = [step(model, optimizer) for _ in range(5)]
    return model, before, losses, len(traces)


@pytest.mark.slow
def test_five_steps_give_the_numbers_of_the_linen_twin(trained):
    model, before, losses, traces = trained
    assert traces == 1
    twin = bj.Quantized(Twin(), RULES)
    floats = {name: before[name] for name in ("params", "batch_stats")}
    # The wrapper made the same variables in the first place.
    made = bj.attach(twin, floats, X)
    close(before["quant"], made["quant"])
    # Those of NNX have no history yet, as behind Linen's init.
    variables = {**made, "quant_stats": before["quant_stats"]}
    optimizer = optax.multi_transform(
        {
            **dict.fromkeys(("weights", "bits", "ranges"), optax.adam(1e-2)),
            "frozen": optax.set_to_zero(),
        },
        learned_labels(RULES),
    )
    trained_names = ("params", "quant")

    @jax.jit
    def step(variables, state):
        def loss(part):
            out, new = twin.apply(
                {**variables, **part}, X, train=True, mutable=["batch_stats", "quant_stats"]
            )
            return loss_of(out), new

        part = {name: variables[name] for name in trained_names}
        (value, new), gradients = jax.value_and_grad(loss, has_aux=True)(part)
        updates, state = optimizer.update(gradients, state, part)
        return {**variables, **new, **optax.apply_updates(part, updates)}, state, value

    state = optimizer.init({name: variables[name] for name in trained_names})
    expected = []
    for _ in range(5):
        variables, state, value = step(variables, state)
        expected.append(value)
    close(losses, expected)
    after = model.functional()[1]
    # NNX scales the products of queries and keys, Linen the queries before: by 2, of depth 4.
    ranges = after["quant_stats"]["attn"]["product0"]["left"]
    halves = {name: x if name == "count" else x / 2 for name, x in ranges.items()}
    after = bj.variables.write_site(after, "quant_stats/attn/product0/left", halves)
    close(after, variables)


def test_training_learns_bits_and_leaves_fixed_ones(trained):
    model, before, _, _ = trained
    old, new = bj.bits_of(before), bj.bits_of(model.functional()[1])
    assert float(new["head/input"]) != float(old["head/input"]) == 6.0
    assert float(new["head/kernel"]) == 4.0


def test_sites_are_named_by_paths_and_attention_by_the_kernels_that_feed_it():
    class Two(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.attn = nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)
            self.layers = nnx.List(
                [nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs) for _ in range(2)]
            )

        def __call__(self, x):
            x = self.attn(x)
            for layer in self.layers:
                x = x + layer(x)
            return x

    function, variables = bj.quantize(Two()).functional()
    scores = bj.tap(function, variables, X, layers="layers/1/product0")["layers/1/product0"]
    assert scores.left.size == scores.right.size == X.size and scores.kernel is None
    found = [name for name in bj.site_costs(function, X) if "product" in name]
    assert found == [
        f"{layer}/product{i}/{side}"
        for layer in ("attn", "layers/0", "layers/1")
        for i in (0, 1)
        for side in ("left", "right")
    ]


@pytest.mark.slow
def test_sums_and_caches_are_read():
    class Residual(nnx.Module):
        def __init__(self):
            self.attn = nnx.MultiHeadAttention(2, 6, decode=True, rngs=nnx.Rngs(0))
            self.attn.init_cache((1, 3, 6))

        def __call__(self, x):
            return x + self.attn(x)

    x = X[:1, :1]
    rules = [bj.rule(".*", bj.uniform())]
    model = bj.quantize(Residual(), rules, x, sums=True)
    function, variables = model.functional()
    assert {"attn/product1/right", "attn/sum0/left"} <= set(bj.site_costs(function, x))
    assert variables["cache"]["attn"]["cached_key"].shape == (1, 3, 2, 3)
    for _ in range(2):
        model(x)
    assert int(model.model.attn.cache_index[...]) == 2
    assert model.model.attn.cached_key[0, 1].any() and not model.model.attn.cached_key[0, 2].any()


def test_costs_are_those_of_the_linen_twin():
    function, _ = bj.quantize(Net()).functional()
    assert bj.site_costs(function, X) == bj.site_costs(Twin(), X)
    assert bj.total_macs(function, X) == bj.total_macs(Twin(), X)


def test_without_rules_it_is_the_float_model():
    model = Net()
    model.eval()
    assert jnp.array_equal(jax.jit(bj.quantize(model))(X), jax.jit(lambda x: model(x))(X))


def test_train_and_eval_are_nnx_own_calls():
    model = small()
    model.train()
    assert not model.use_running_average
    before = jax.tree.map(jnp.copy, model.functional()[1]["quant_stats"])
    nnx.jit(lambda model, x: model(x))(model, X)
    after = model.functional()[1]["quant_stats"]
    name = "layers/0/input"
    assert float(bj.variables.read_site(after, name)["count"]) == 1.0
    assert float(bj.variables.read_site(before, name)["count"]) == 0.0
    model.eval()
    assert model.use_running_average
    # What evaluates changes nothing of its quantizers; the model's own counter still counts.
    nnx.jit(lambda model, x: model(x))(model, 2 * X)
    close(model.functional()[1]["quant_stats"], after)
    assert int(model.model.calls[...]) == 2


def test_it_begins_in_the_mode_of_the_model():
    model = Small()
    assert not bj.quantize(model).use_running_average
    model.eval()
    assert bj.quantize(model).use_running_average


def test_a_call_may_say_for_itself_whether_it_trains():
    model = small(rate=0.0)
    model.eval()
    model(X, train=True)
    assert float(model.functional()[1]["quant_stats"]["layers"]["0"]["input"]["count"]) == 1.0


def test_making_quantizers_changes_nothing_of_the_model():
    model = Small()
    bj.quantize(model, RULES[1:], X)
    assert int(model.calls[...]) == 0 and int(model.drop.rngs.count[...]) == 0


def test_variables_are_nnx_variables_of_three_kinds():
    model = small()

    def paths(*filters):
        return {
            "/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, *filters))
        }

    assert "quant/layers/0/kernel/scale" in paths(nnx.Param)
    assert "quant/layers/0/input/bits" in paths(nnx.Param)
    assert "quant/layers/0/kernel/bits" not in paths(nnx.Any(nnx.Param, nnx.BatchStat))
    assert "quant_stats/layers/0/input/clip_max" in paths(nnx.BatchStat)
    assert "model/layers/0/kernel" in paths(nnx.Param)
    assert all(path.startswith("quant/") for path in paths(nnx.PathContains("quant")))


def test_split_and_merge_give_the_same_model():
    model = small()
    model.eval()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    again = nnx.merge(graph, params, rest)
    call = nnx.jit(lambda model, x: model(x))
    assert jnp.array_equal(call(again, X), call(model, X))
    assert again.rules == model.rules
    assert hash(nnx.graphdef(again)) == hash(graph)


def test_dropout_draws_another_mask_every_call():
    model = small()
    call = nnx.jit(lambda model, x: model(x))
    assert not jnp.array_equal(call(model, X), call(model, X))


def test_variables_and_arrays_that_a_call_makes_are_kept():
    class Keeps(nnx.Module):
        def __init__(self):
            self.linear = nnx.WeightNorm(nnx.Linear(6, 2, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
            self.calls = jnp.int32(0)  # an array without a Variable

        def __call__(self, x):
            self.calls = self.calls + 1
            self.seen = nnx.Intermediate(x[0, 0, 0])
            return self.linear(x)

    model = bj.quantize(Keeps(), RULES[1:], X)
    for factor in (1.0, 3.0):
        model(factor * X)
        assert float(model.model.seen[...]) == pytest.approx(float(factor * X[0, 0, 0]))
    assert int(model.model.calls) == 2


def test_a_model_in_evaluation_may_be_closed_over_by_jit():
    model = bj.quantize(nnx.Linear(6, 2, rngs=nnx.Rngs(0)), [bj.rule(".*", bj.uniform())], X)
    model.eval()
    np.testing.assert_allclose(jax.jit(lambda x: model(x))(X), model(X), atol=1e-6)


def test_quantizers_that_draw_take_a_stream():
    rules = [bj.rule("input", bj.bitlength(init=4.5, mode="sample"))]
    model = bj.quantize(nnx.Linear(6, 2, rngs=nnx.Rngs(0)), rules, X)
    with pytest.raises(ValueError, match="pass `key`"):
        model(X)
    model.rngs = nnx.Rngs(0)
    model(X)
    assert int(model.rngs.quant.count[...]) == 1


def test_stacked_models_and_scanned_layers_have_quantizers_of_their_own():
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=(0,))
    def layers(rngs):
        return nnx.Linear(6, 6, rngs=rngs)

    class Scanned(nnx.Module):
        def __init__(self):
            self.layers = layers(nnx.Rngs(0))

        def __call__(self, x):
            @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
            def run(layer, x):
                return nnx.relu(layer(x))

            return run(self.layers, x)

    model = bj.quantize(Scanned(), [bj.rule(".*", bj.lsq(bits=4))], X)
    assert model.functional()[1]["quant"]["layers"]["kernel"]["scale"].shape == (3,)

    @nnx.split_rngs(splits=2)
    @nnx.vmap(in_axes=(0, None))
    def ensemble(rngs, x):
        return bj.quantize(nnx.Linear(6, 2, rngs=rngs), [bj.rule(".*", bj.lsq(bits=4))], x)

    members = ensemble(nnx.Rngs(0), X)
    assert members.functional()[1]["quant"]["kernel"]["scale"].shape == (2,)


def test_tools_take_the_function_and_update_takes_what_they_return():
    model = small(rate=0.0)
    function, variables = model.functional()
    assert sorted(variables) == ["others", "params", "quant", "quant_stats"]
    assert "layers/1/input" in bj.summary(function, variables, X, file=io.StringIO())
    variables = bj.calibrate(function, variables, [X, X])
    assert not [f for f in bj.doctor(function, variables, X) if f.level == "error"]
    model.update(bj.with_bits(variables, {"layers/0/kernel": 2.0}))
    again = model.functional()[1]
    assert float(again["quant"]["layers"]["0"]["kernel"]["bits"]) == 2.0
    close(again["quant_stats"], variables["quant_stats"])
    # What is not given stays, and other quantizers' variables take the place of the old ones.
    model.update({"params": jax.tree.map(jnp.zeros_like, again["params"])})
    assert not model.model.layers[0].kernel[...].any()
    model.update(bj.attach(function.with_rules([]), again, X))
    assert float(model.functional()[1]["quant_stats"]["layers"]["0"]["input"]["count"]) == 2.0


def test_statistics_of_normalisations_are_estimated_anew_as_in_linen():
    function, variables = bj.quantize(Net()).functional()
    found = bj.reestimate_batch_stats(function, variables, [X, 2 * X])
    floats = {name: variables[name] for name in ("params", "batch_stats")}
    close(
        found["batch_stats"], bj.reestimate_batch_stats(Twin(), floats, [X, 2 * X])["batch_stats"]
    )


def test_the_function_evaluates_unless_it_is_told_to_train():
    model = small()
    function, variables = model.functional()
    assert not function.ask(variables, (X,), {}).train
    assert function.ask(variables, (X,), {"train": True}).train


def test_penalties_of_bits_reach_the_variables_inside_grad():
    model = small()
    costs = bj.site_costs(model.functional()[0], X)

    def loss(model):
        return bj.average_bits(bj.bits_of(model.functional()[1]), costs)

    gradients = nnx.to_pure_dict(nnx.grad(loss)(model))
    assert float(gradients["quant"]["layers"]["0"]["input"]["bits"]) > 0.0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: bj.Quantized(nnx.Linear(3, 2, rngs=nnx.Rngs(0))), r"bitjax\.quantize\(model"),
        (lambda: bj.Function(nnx.Linear(3, 2, rngs=nnx.Rngs(0))), r"bitjax\.quantize\(model"),
        (lambda: bj.summary(Small(), {}, X), r"`function, variables = model\.functional\(\)`"),
        (lambda: bj.doctor(small(), {}, X), r"`function, variables = model\.functional\(\)`"),
        (lambda: bj.site_costs(Small(), X), r"`function, variables = model\.functional\(\)`"),
        (lambda: bj.attach(small(), {}, X), r"`function, variables = model\.functional\(\)`"),
        (lambda: bj.calibrate(Small(), {}, [X]), r"bitjax\.quantize\(model, rules, batch\)"),
        (lambda: bj.fisher(Small(), {}, [X]), r"bitjax\.quantize\(model, rules, batch\)"),
        (lambda: bj.quantize(nn.Dense(2)), r"the Linen module Dense: call bitjax\.Quantized\("),
        (lambda: bj.quantize(nnx.Linear), r"the class Linear: give an instance, Linear\("),
        (lambda: bj.quantize(lambda x: x), r"call bitjax\.Function\(fn, rules\)"),
        (lambda: bj.quantize(small()), r"quantized already: call bitjax\.quantize\(model\.model"),
        (lambda: bj.quantize(Small(), RULES), r"needs a batch behind the rules"),
    ],
)
def test_a_wrong_kind_of_model_is_told_what_to_call(call, says):
    with pytest.raises(TypeError, match=says) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_rule_that_names_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"rule 'head/.*' does nothing"):
        bj.quantize(Small(), [bj.rule("head/.*", bj.lsq(bits=4))], X)
