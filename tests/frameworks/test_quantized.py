"""`Quantized` around every kind of Flax layer, under every transform, trained and evaluated."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitjax import Quantized, bitlength, identity, lsq, pact, rule, uniform
from bitjax.frameworks.shapes import program_of

KEY = jax.random.key(0)
KERNELS = rule("(.*/)?kernel", bitlength(3.5, granularity="per_channel"))
INPUTS = rule("(.*/)?input", uniform(4))
AXES = {"params": 0, "quant": 0, "quant_stats": 0}


def axes_of(layer, role, x):
    """The axes of a layer's tensor as the traced program has them."""
    return program_of(layer, (x,), {})[0].sites[role].axes


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def initialise(model, *args):
    """Variables with NumPy's numbers for parameters: drawing them takes JAX long to compile."""
    shapes = jax.eval_shape(model.init, KEY, *args)
    rng = np.random.default_rng(0)

    def fill(leaf):
        return jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype)

    given = {"params": jax.tree.map(fill, shapes["params"])}
    if not {"quant", "batch_stats"} & set(shapes):
        return given
    _, made = apply(model, given, *args, mutable=["quant", "quant_stats", "batch_stats"])
    assert jax.tree.map(jnp.shape, {**given, **made}) == jax.tree.map(jnp.shape, shapes)
    return {**given, **made}


def apply(model, variables, *args, **kwargs):
    return jax.jit(lambda variables, *args: model.apply(variables, *args, **kwargs))(
        variables, *args
    )


class Chain(nn.Module):
    """Dense, normalisation, dropout, Dense."""

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8, name="first", dtype=self.dtype)(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm", dtype=self.dtype)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(3, name="last", dtype=self.dtype)(x)


class SetUp(nn.Module):
    """Layers made in `setup`, in a list and a dict, and one of them called twice."""

    def setup(self):
        self.body = [nn.Dense(4), nn.Dense(4)]
        self.heads = {"a": nn.Dense(2), "b": nn.Dense(2)}

    def __call__(self, x):
        for layer in (*self.body, self.body[1]):
            x = nn.relu(layer(x))
        return self.heads["a"](x) + self.heads["b"](x)


class Shared(nn.Module):
    """A module given to two others as a field."""

    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(4, name="shared")
        return Uses(shared, name="one")(x) + Uses(shared, name="two")(2 * x)


class Uses(nn.Module):
    layer: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="own")(self.layer(x))


class Tied(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 6, name="embed")
        return embed.attend(nn.Dense(6, name="dense")(embed(tokens)))


class Scanned(nn.Module):
    axes: tuple = tuple(AXES.items())

    @nn.compact
    def __call__(self, x):
        body = nn.scan(Body, dict(self.axes), split_rngs={"params": True}, length=3)
        return body(name="body")(x, None)[0]


class Body(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(4, name="dense")(x)), None


class Ensemble(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.vmap(nn.Dense, AXES, {"params": True}, in_axes=None, axis_size=3)
        return layers(4, name="dense")(x)


class Remat(nn.Module):
    remat: bool = True

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Body) if self.remat else Body
        return block(name="block")(x, None)[0]


def attention(**options):
    return nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4, **options)


X = normal(5, 4)
IMAGE = normal(2, 6, 6, 4)
TOKENS = jnp.arange(6).reshape(2, 3)
RNN_AXES = {"quant": 0, "quant_stats": 0}
MODELS = {
    "Dense": (nn.Dense(3), X, [""]),
    "DenseGeneral": (nn.DenseGeneral((2, 3)), X, [""]),
    "Conv": (nn.Conv(3, (3, 3)), IMAGE, [""]),
    "ConvLocal": (nn.ConvLocal(3, (3,)), normal(2, 6, 4), [""]),
    "ConvTranspose": (nn.ConvTranspose(3, (3, 3), (2, 2)), IMAGE, [""]),
    "Einsum": (nn.Einsum((4, 2, 3), "ab,bcd->acd"), X, [""]),
    "Embed": (Tied(), TOKENS, ["embed", "dense"]),
    "chain": (Chain(), X, ["first", "last"]),
    "sequence": (
        nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)]), X, ["layers_0", "layers_2"]
    ),
    "setup": (SetUp(), X, ["body_0", "body_1", "heads_a", "heads_b"]),
    "shared": (Shared(), X, ["shared", "one/own", "two/own"]),
    "attention": (attention(), normal(2, 5, 4), ["query", "key", "value", "out"]),
    "scan": (Scanned(), X, ["body/dense"]),
    "vmap": (Ensemble(), X, ["dense"]),
    "remat": (Remat(), X, ["block/dense"]),
    "lstm": (
        nn.RNN(nn.LSTMCell(4), variable_axes=RNN_AXES), normal(2, 3, 4),
        [f"cell/{a}{b}" for a in "ih" for b in "ifgo"],
    ),
}  # fmt: skip
every_model = pytest.mark.parametrize("name", MODELS)


def quickly(names, quick):
    """Parametrizes by names, of which only some are asked by default: each takes seconds."""
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=() if name in quick else slow) for name in names]
    )


def at(tree, path):
    for part in path.split("/") if path else ():
        tree = tree[part]
    return tree


@every_model
def test_params_are_the_float_models_own_and_every_layer_has_its_sites(name):
    model, x, layers = MODELS[name]
    variables = jax.eval_shape(Quantized(model, [KERNELS, INPUTS]).init, KEY, x)
    assert variables["params"] == jax.eval_shape(model.init, KEY, x)["params"]
    for layer in layers:
        assert set(at(variables["quant"], layer)) == {"kernel", "input"}
    found = [path for path, _ in jax.tree_util.tree_leaves_with_path(variables["quant"])]
    assert len(found) == 2 * len(layers)  # bits alone


@quickly(MODELS, ("Embed", "attention", "scan", "vmap"))
def test_at_sixteen_bits_it_computes_what_the_float_model_does_and_all_of_it_learns(name):
    """What is quantized is each tensor where the layer uses it, and nothing else."""
    model, x, layers = MODELS[name]
    wrapped = Quantized(model, [KERNELS, rule("(.*/)?input", bitlength(3.5))])
    variables = initialise(wrapped, x)
    plain = {k: v for k, v in variables.items() if "quant" not in k}
    weights = normal(*jax.eval_shape(model.apply, plain, x).shape, seed=5)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(trained):
        # The ranges of the batch, for those at the start are of a layer's first call.
        out = wrapped.apply(
            {**variables, **trained}, x, rngs={"dropout": KEY}, train=name != "chain"
        )
        return jnp.sum(weights * out), out

    trained = {k: variables[k] for k in ("params", "quant")}
    _, out = gradient({**trained, "quant": jax.tree.map(lambda n: 0 * n + 16, trained["quant"])})
    expected = apply(model, plain, x)
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-3 * float(jnp.abs(expected).max()))
    assert (np.asarray(out) != np.asarray(expected)).any()

    gradients, _ = gradient(trained)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all(), path
    for layer in layers:
        bits = at(gradients["quant"], layer)
        assert all(np.any(bits[role]["bits"]) for role in bits), layer


BY_HAND = {
    "Dense": MODELS["Dense"][:2],
    "DenseGeneral": (nn.DenseGeneral((2, 3), axis=(-2, -1)), normal(2, 5, 4)),
    "Conv": MODELS["Conv"][:2],
    "Conv, grouped": (nn.Conv(4, (3, 3), feature_group_count=2, use_bias=False), IMAGE),
    "ConvLocal": MODELS["ConvLocal"][:2],
    "ConvTranspose": MODELS["ConvTranspose"][:2],
    "ConvTranspose, transposed": (
        nn.ConvTranspose(3, (3, 3), (2, 2), transpose_kernel=True), IMAGE
    ),
    "Einsum": MODELS["Einsum"][:2],
}  # fmt: skip


@quickly(BY_HAND, ("Dense", "Conv, grouped", "ConvTranspose, transposed", "Einsum"))
def test_a_layer_equals_quantizing_its_kernel_and_input_by_hand(name):
    layer, x = BY_HAND[name]
    kernels, inputs = bitlength(3.5, granularity="per_channel"), uniform(4)
    wrapped = Quantized(layer, [rule("kernel", kernels), rule("input", inputs)])
    variables = initialise(wrapped, x)

    @jax.jit
    def by_hand(params, x):
        kernel = params["kernel"]
        axes = axes_of(layer, "kernel", x)
        kernel = kernels.apply(*kernels.init(kernel, axes), kernel)
        x = inputs.apply(*inputs.init(x, axes_of(layer, "input", x)), x)
        return layer.apply({"params": {**params, "kernel": kernel}}, x)

    np.testing.assert_allclose(
        apply(wrapped, variables, x), by_hand(variables["params"], x), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    ("layer", "shape", "channels"),
    [
        (nn.Dense(3), (5, 4), (1, 3)),
        (nn.Conv(3, (3, 3)), (2, 6, 6, 4), (1, 1, 1, 3)),
        (nn.ConvTranspose(3, (3, 3)), (2, 6, 6, 4), (1, 1, 1, 3)),
        (nn.ConvTranspose(3, (3, 3), transpose_kernel=True), (2, 6, 6, 4), (1, 1, 3, 1)),
        (nn.DenseGeneral((2, 3)), (5, 4), (1, 2, 3)),
        (nn.Einsum((4, 2, 3), "ab,bcd->acd"), (5, 4), (1, 2, 3)),
        (nn.Einsum((3, 4), "ab,cb->ac"), (5, 4), (3, 1)),
        (nn.Embed(11, 6), None, (11, 1)),
    ],
)
def test_a_channel_of_a_kernel_is_a_filter_whatever_the_layer(layer, shape, channels):
    x = TOKENS if shape is None else jnp.ones(shape)
    wrapped = Quantized(layer, [rule("kernel", lsq(4, granularity="per_channel"))])
    variables = jax.eval_shape(wrapped.init, KEY, x)
    assert variables["quant"]["kernel"]["scale"].shape == channels


def test_remat_changes_nothing():
    rules = [KERNELS, INPUTS]
    plain, remat = (Quantized(Remat(remat), rules) for remat in (False, True))
    variables = initialise(plain, X)

    def slopes(model):
        def loss(trained):
            return jnp.sum(jnp.square(model.apply({**variables, **trained}, X)))

        return jax.jit(jax.grad(loss))({k: variables[k] for k in ("params", "quant")})

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        slopes(plain), slopes(remat),
    )  # fmt: skip


def test_a_scanned_stack_equals_its_layers_in_a_row():
    variables = initialise(Quantized(Scanned(), [KERNELS, INPUTS]), X)
    assert variables["quant"]["body"]["dense"]["kernel"]["bits"].shape == (3, 1, 4)
    variables["quant"]["body"]["dense"]["kernel"]["bits"] *= jnp.array([0.5, 1.0, 2.0])[
        :, None, None
    ]
    out, x = apply(Quantized(Scanned(), [KERNELS, INPUTS]), variables, X), X
    single = Quantized(Body(), [KERNELS, INPUTS])
    for i in range(3):
        own = {k: jax.tree.map(lambda leaf, i=i: leaf[i], v["body"]) for k, v in variables.items()}
        x, _ = apply(single, own, x, None)
    np.testing.assert_allclose(out, x, rtol=1e-5, atol=1e-6)


def test_a_scan_that_lists_the_parameters_alone_has_a_quantizer_for_each_step():
    listed, alone = Scanned(), Scanned((("params", 0),))
    variables = initialise(Quantized(listed, [KERNELS, INPUTS]), X)
    out = apply(Quantized(alone, [KERNELS, INPUTS]), variables, X)
    np.testing.assert_array_equal(out, apply(Quantized(listed, [KERNELS, INPUTS]), variables, X))


def test_a_scan_over_time_shares_its_quantizers_so_that_lengths_may_change():
    model = Quantized(nn.RNN(nn.LSTMCell(4)), [KERNELS, INPUTS])
    variables = initialise(model, normal(2, 5, 4))
    assert variables["quant"]["cell"]["ii"]["input"]["bits"].shape == ()
    assert apply(model, variables, normal(2, 9, 4)).shape == (2, 9, 4)


def test_kernels_alone_may_be_broadcast_over_time():
    cell = nn.RNN(nn.LSTMCell(4), variable_broadcast=("params", "quant", "quant_stats"))
    x = normal(2, 3, 4)
    model = Quantized(cell, [KERNELS])
    variables = initialise(model, x)
    assert variables["quant"]["cell"]["ii"]["kernel"]["bits"].shape == (1, 4)
    assert apply(model, variables, x).shape == (2, 3, 4)


def test_a_kernel_is_quantized_in_float32_before_it_is_cast():
    model = nn.Dense(3, dtype=jnp.bfloat16, use_bias=False)
    quantizer = uniform(6)
    wrapped = Quantized(model, [rule("kernel", quantizer)])
    variables = initialise(wrapped, X)
    kernel = variables["params"]["kernel"]
    x_hat = jax.jit(lambda k: quantizer.apply(*quantizer.init(k, axes_of(model, "kernel", X)), k))
    expected = model.apply({"params": {"kernel": x_hat(kernel)}}, X)
    out = apply(wrapped, variables, X)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.astype("float32"), expected.astype("float32"))


def test_the_model_is_vmapped_over_a_stack_of_variables():
    model = Quantized(Chain(), [KERNELS, INPUTS])
    variables = initialise(model, X)
    others = jax.tree.map(lambda leaf: leaf * 1.5, variables)
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), variables, others)
    together = jax.jit(jax.vmap(lambda v: model.apply(v, X)))(stack)
    alone = [apply(model, v, X) for v in (variables, others)]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-4, atol=1e-5)


def test_statistics_move_only_where_they_are_mutable():
    model = Quantized(nn.Dense(2), [INPUTS])
    variables = initialise(model, X)
    assert float(variables["quant_stats"]["input"]["count"]) == 0
    out = apply(model, variables, 9 * X, train=True)
    moved_out, updates = apply(model, variables, 9 * X, train=True, mutable=["quant_stats"])
    np.testing.assert_allclose(moved_out, out)
    stats = updates["quant_stats"]["input"]
    assert float(stats["count"]) == 1
    assert float(stats["clip_max"]) == pytest.approx(9 * float(X.max()))
    # Whatever else is mutable too.
    _, updates = apply(model, variables, X, train=True, mutable=True)
    assert float(updates["quant_stats"]["input"]["count"]) == 1


def test_training_uses_the_range_of_the_batch_and_evaluation_the_average():
    model = Quantized(nn.Dense(2), [INPUTS])
    variables = initialise(model, X)
    for factor in (1.0, 3.0):
        _, updates = apply(model, variables, factor * X, train=True, mutable=["quant_stats"])
        variables = {**variables, **updates}
    average = 0.99 * float(X.max()) + 0.01 * 3 * float(X.max())
    stats = variables["quant_stats"]["input"]
    assert float(stats["clip_max"]) == pytest.approx(average)
    # In evaluation an element's value does not hang on the others of its batch.
    large = jnp.concatenate([X, 100 * X])
    out = apply(model, variables, X)
    np.testing.assert_allclose(apply(model, variables, large)[: len(X)], out, rtol=1e-6)
    trained = apply(model, variables, large, train=True)[: len(X)]
    assert not np.allclose(trained, out, rtol=1e-2)


def test_a_kernel_has_the_range_of_its_present_value():
    model = Quantized(nn.Dense(2), [rule("kernel", uniform(8))])
    variables = initialise(model, X)
    grown = jax.tree.map(lambda leaf: 7 * leaf, variables["params"])
    for train in (False, True):
        out = apply(model, {**variables, "params": grown}, X, train=train)
        before = apply(model, variables, X, train=train)
        np.testing.assert_allclose(out, 7 * before, rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_called_twice_observes_both_calls():
    model = Quantized(SetUp(), [rule("body_1/input", uniform(8))])
    variables = initialise(model, X)
    _, updates = apply(model, variables, X, train=True, mutable=["quant_stats"])
    before, after = variables["quant_stats"], updates["quant_stats"]
    assert float(after["body_1"]["input"]["count"]) == 1  # once for a batch
    assert float(after["body_1"]["input"]["clip_max"]) == float(
        before["body_1"]["input"]["clip_max"]
    )


class Spread(nn.Module):
    """Normalises by the batch that it sees, of which each device has a part."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, use_bias=False, name="norm")(x)
        return nn.Dense(2, name="dense")(x)


def test_an_axis_name_merges_ranges_and_normalisations_over_devices():
    rules = [rule("dense/.*", uniform(6))]
    alone, spread = Quantized(Spread(), rules), Quantized(Spread(), rules, axis_name="data")
    x = normal(8, 4) * jnp.arange(1, 9)[:, None]
    variables = initialise(spread, x)

    def run(model, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats", "quant_stats"])

    shards = x.reshape(4, 2, 4)
    out, updates = jax.jit(jax.vmap(lambda x: run(spread, x), axis_name="data"))(shards)
    whole, whole_updates = jax.jit(lambda x: run(alone, x))(x)
    np.testing.assert_allclose(out.reshape(8, 2), whole, rtol=1e-4, atol=1e-5)
    for of_devices, of_one in zip(*map(jax.tree.leaves, (updates, whole_updates)), strict=True):
        for of_device in of_devices:
            np.testing.assert_allclose(of_device, of_one, rtol=1e-4, atol=1e-6)


class Positional(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dropout(0.0, deterministic=not train)(nn.Dense(2, name="dense")(x))


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, *, deterministic=True):
        return nn.Dropout(0.0, deterministic=deterministic)(nn.Dense(2, name="dense")(x))


class TrainsByDefault(nn.Module):
    @nn.compact
    def __call__(self, x, training=True):
        return nn.Dropout(0.0, deterministic=not training)(nn.Dense(2, name="dense")(x))


class Silent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="dense")(x)


class PassesOn(nn.Module):
    @nn.compact
    def __call__(self, *args, **kwargs):
        return Chain(name="chain")(*args, **kwargs)


@pytest.mark.parametrize(
    ("model", "args", "kwargs", "train"),
    [
        (Chain(), (), {}, False),
        (Chain(), (), {"train": True}, True),
        (Chain(), (True,), {}, True),
        (Chain(), (False,), {}, False),
        (Positional(), (True,), {}, True),
        (Positional(), (), {"train": False}, False),
        (Deterministic(), (), {"deterministic": False}, True),
        (Deterministic(), (), {}, False),
        (Deterministic(), (), {"train": True}, True),
        (TrainsByDefault(), (), {}, True),
        (TrainsByDefault(), (False,), {}, False),
        (Silent(), (), {"train": True}, True),
        (Silent(), (), {}, False),
        (PassesOn(), (), {"train": True}, True),
        (nn.Sequential([nn.Dense(2), nn.relu]), (), {"train": True}, True),
        (nn.Sequential([jnp.tanh, nn.Dense(2)]), (), {"train": True}, True),
        (nn.Sequential([Chain(), nn.relu]), (), {"train": True}, True),
    ],
)
def test_training_is_read_from_the_call_however_it_says_so(model, args, kwargs, train):
    trained = []
    base = identity()

    def note(params, stats, x, *, train=False, key=None):
        trained.append(train)
        return base.apply(params, stats, x)

    wrapped = Quantized(model, [rule(".*", base._replace(apply=note))])
    variables = jax.eval_shape(lambda: wrapped.init(KEY, X, *args))if args else jax.eval_shape(
        lambda: wrapped.init(KEY, X, **kwargs)
    )  # fmt: skip
    trained.clear()
    rngs = {"dropout": KEY}
    jax.eval_shape(
        lambda v: wrapped.apply(v, X, *args, **kwargs, rngs=rngs, mutable=["batch_stats"]),
        variables,
    )
    assert set(trained) == {train}


@pytest.mark.parametrize("train", [False, True])
def test_train_reaches_a_model_that_calls_it_deterministic(train):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, deterministic=True):
            return nn.Dropout(0.5, deterministic=deterministic)(nn.Dense(8, name="dense")(x))

    variables = initialise(Quantized(Net(), []), X)
    out = Quantized(Net()).apply(variables, X, train=train, rngs={"dropout": KEY})
    expected = Net().apply(variables, X, deterministic=not train, rngs={"dropout": KEY})
    np.testing.assert_array_equal(out, expected)


def test_a_sampled_bitlength_draws_from_the_stream_of_its_name():
    model = Quantized(nn.Dense(2), [rule("kernel", bitlength(2.5, mode="sample"))])
    variables = initialise(model, X)
    drawn = jax.jit(lambda key: model.apply(variables, X, train=True, rngs={"quant": key}))
    assert len({float(drawn(jax.random.key(i)).sum()) for i in range(8)}) == 2
    with pytest.raises(ValueError, match=r"rngs=\{'quant': key\}"):
        model.apply(variables, X, train=True)


def test_variables_that_were_not_passed_are_an_error_that_names_the_site():
    model = Quantized(Chain(), [KERNELS, INPUTS])
    variables = initialise(model, X)
    for lacks, role in (("quant", "kernel"), ("quant_stats", "input")):
        given = {k: v for k, v in variables.items() if k != lacks}
        with pytest.raises(ValueError, match=rf"'first/{role}' has no '{lacks}' variables"):
            model.apply(given, X)


def test_new_bits_and_ranges_compile_nothing():
    rules = [KERNELS, rule(".*/input", pact(4))]
    model, traced = Quantized(Chain(), rules), []
    variables = initialise(model, X)

    @jax.jit
    def step(variables, x):
        traced.append(1)
        return model.apply(variables, x)

    for factor in (1.0, 1.1, 2.0):
        changed = {k: jax.tree.map(lambda leaf, f=factor: leaf * f, variables[k])
                   for k in ("quant", "quant_stats")}  # fmt: skip
        step({**variables, **changed}, X)
    assert len(traced) == 1


def test_integer_inputs_are_quantized_as_numbers():
    model = Quantized(nn.Dense(2), [rule("input", uniform(8))])
    x = jnp.arange(12).reshape(3, 4)
    variables = initialise(model, x)
    out = apply(model, variables, x)
    np.testing.assert_allclose(
        out, apply(nn.Dense(2), {"params": variables["params"]}, x), rtol=0.02, atol=0.05
    )


def test_kernels_ranges_are_the_same_on_all_devices_of_a_shard_map():
    model = Quantized(nn.Dense(2), [rule(".*", uniform(4))], axis_name="data")
    variables = initialise(model.clone(axis_name=None), X)
    mesh = jax.sharding.Mesh(jax.devices()[:1], "data")
    everywhere, parts = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("data")

    @partial(jax.shard_map, mesh=mesh, in_specs=(everywhere, parts), out_specs=(parts, everywhere))
    def step(variables, x):
        return model.apply(variables, x, train=True, mutable=["quant_stats"])

    _, changed = jax.jit(step)(variables, X)  # what differs on devices is refused here
    assert sorted(changed["quant_stats"]) == ["input", "kernel"]


class Valued(nn.Module):
    value: float

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x), jnp.full(2, self.value)


def test_models_whose_fields_are_equal_numbers_of_other_types_are_not_taken_for_each_other():
    variables = Valued(1).init(KEY, X)
    for value in (1, 1.0, True, 0.0, -0.0):
        found = Quantized(Valued(value)).apply(variables, X)[1]
        expected = jnp.full(2, value)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(jnp.signbit(found * 1.0), jnp.signbit(expected * 1.0))


class Dropping(nn.Module):
    @nn.compact
    def __call__(self, x):
        inner = Quantized(nn.Sequential([nn.Dense(50), nn.Dropout(0.5, deterministic=False)]))
        return inner(x), inner(x)


def test_every_call_inside_another_module_draws_anew():
    variables = Dropping().init(KEY, X)
    first, second = Dropping().apply(variables, X, rngs={"dropout": KEY})
    assert not np.array_equal(first == 0, second == 0)


def test_an_interceptor_of_the_callers_own_is_followed_for_as_long_as_it_is_set():
    variables, model = nn.Dense(2).init(KEY, X), Quantized(nn.Dense(2))
    before = model.apply(variables, X)
    with nn.intercept_methods(lambda call, args, kwargs, context: 2.0 * call(*args, **kwargs)):
        np.testing.assert_array_equal(model.apply(variables, X), 2.0 * before)
    np.testing.assert_array_equal(model.apply(variables, X), before)


def test_a_model_that_holds_lists_is_traced_once():
    called = []

    def act(x):
        called.append(1)
        return nn.relu(x)

    model = Quantized(nn.Sequential([nn.Dense(4), act, nn.Dense(2)]))
    variables = model.init(KEY, X)
    model.apply(variables, X)
    traced = len(called)
    model.apply(variables, 2.0 * X)
    assert len(called) == traced
    jax.tree.map(np.testing.assert_array_equal, model.bind(variables)(X), model.apply(variables, X))
    longer = Quantized(nn.Sequential([nn.Dense(4), act, nn.Dense(2), act]))
    assert longer.apply(variables, X).min() >= 0.0
