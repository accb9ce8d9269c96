"""What a model or a rule cannot do is one clear line; odd arguments work."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jax.tree_util import keystr, tree_leaves_with_path

import bitjax as bj
from bitjax.frameworks.shapes import program_of

X = jnp.ones((2, 4))
W = jnp.ones((4, 4))
Q = bj.lsq(4)


def function(fn, *patterns):
    return bj.Function(fn, tuple(bj.rule(p, Q) for p in patterns or (".*",)))


def sites(fn, params, *args):
    """The quantized sites of a function."""
    state = jax.eval_shape(function(fn).init, params, *args)
    paths = [keystr(path, simple=True, separator="/") for path, _ in tree_leaves_with_path(state)]
    return sorted({p.removeprefix("quant/").rpartition("/")[0] for p in paths if "quant/" in p})


def refused(message, init, *args):
    """A ValueError of one line that begins with the message."""
    with pytest.raises(ValueError) as caught:
        jax.eval_shape(init, *args)
    text = str(caught.value)
    assert "\n" not in text
    assert re.match(message, text), text


# ---- Python that depends on values --------------------------------------------------------------


def by_sign(params, x):
    return x @ params["w"] if x.sum() > 0 else x


def by_number(params, x):
    return x @ params["w"] * int(x.sum())


def by_numpy(params, x):
    return x @ params["w"] * np.asarray(x).sum()


def by_index(params, x):
    return x @ params["w"] * (1, 2)[x[0, 0].astype(int)]


def by_selection(params, x):
    return x[x > 0] @ params["w"]


def by_weight(params, x):
    return x @ params["w"] if params["w"].sum() > 0 else x


@pytest.mark.parametrize(
    "fn",
    [by_sign, by_number, by_numpy, by_index, by_selection, by_weight],
    ids=lambda f: f.__name__,
)
def test_python_that_depends_on_values_is_named_with_its_line(fn):
    place = rf"'{fn.__name__}' \({re.escape(__file__)}:{fn.__code__.co_firstlineno + 1}\)"
    advice = ".*choose with jnp.where or jax.lax.cond"
    refused(f"{place} needs the values of an array{advice}", function(fn).init, {"w": W}, X)


def test_python_that_depends_on_values_in_a_linen_module_is_named_too():
    class Choosing(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x) if (x > 0).all() else x

    model = bj.Quantized(Choosing(), [bj.rule(".*", Q)])
    variables = {"params": {"Dense_0": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}}}
    with pytest.raises(ValueError, match=r"Choosing.__call__' \(.*needs the values of an array"):
        model.apply(variables, X)


# ---- rules that name no site --------------------------------------------------------------------


def test_a_model_without_a_product_has_no_sites():
    refused(
        r"rule '\.\*' does nothing: .*nothing in it multiplies data by parameters\.",
        function(lambda params, x: x + params["w"]).init, {"w": W[0]}, X,
    )  # fmt: skip


@pytest.mark.parametrize("pattern", ["norm/.*", "norm/scale", "norm/kernel", "norm/scale/kernel"])
def test_a_parameter_that_reaches_no_product_is_named(pattern):
    def fn(params, x):
        return x @ params["dense"]["w"] * params["norm"]["scale"]

    params = {"dense": {"w": W}, "norm": {"scale": W[0]}}
    names = r"it names the parameter 'norm/scale', which no product reads\. Sites: dense/kernel, "
    refused(
        rf"rule '{re.escape(pattern)}' does nothing: {names}", function(fn, pattern).init, params, X
    )


@jax.custom_vjp
def opaque(w, x):
    return x @ w


opaque.defvjp(lambda w, x: (x @ w, (w, x)), lambda residual, g: (g, g))


def in_custom_vjp(w, x):
    return opaque(w, x)


def in_condition(w, x):
    return lax.while_loop(lambda x: (x @ w).sum() < 1.0, lambda x: x + 1.0, x)


def in_shard_map(w, x):
    mesh, spec = Mesh(jax.devices()[:1], ("data",)), PartitionSpec("data")
    product = jax.shard_map(
        lambda w, x: x @ w, mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=spec
    )
    return product(w, x)


def of_complex(w, x):
    return (x @ w.astype(jnp.complex64)).real


def of_integers(w, x):
    return (x.astype(int) @ w.astype(int)).astype(float)


WHY = {
    in_custom_vjp: "custom_vjp_call",
    in_condition: "the condition of a while loop",
    in_shard_map: "shard_map",
    of_complex: "complex numbers",
    of_integers: "integers",
}


@pytest.mark.parametrize("work", WHY, ids=lambda f: f.__name__)
def test_work_that_cannot_be_quantized_is_named_and_listed(work):
    def fn(params, x):
        return work(params["a"]["w"], x) @ params["b"]["w"]

    params, why = {"a": {"w": W}, "b": {"w": W}}, WHY[work]
    reason = rf"it names 'a', whose work cannot be quantized \({why}\)"
    refused(rf"rule 'a/kernel' does nothing: {reason}", function(fn, "a/kernel").init, params, X)
    assert sites(fn, params, X) == ["b/input", "b/kernel"]
    program, _ = program_of(fn, (params, X), {})
    (part,) = program.unread
    assert (part.why, part.macs, part.layers) == (why, 2 * 4 * 4, ("a",))
    alone = function(lambda params, x: work(params["w"], x), ".*").init
    refused(rf"rule '\.\*' does nothing: it names 'kernel', .*\({why}\)", alone, {"w": W}, X)


# ---- names that collide -------------------------------------------------------------------------


def test_two_leaves_that_would_name_one_layer_keep_their_whole_paths():
    params = {"a": {"kernel": W, "w": W}}
    found = sites(lambda p, x: x @ p["a"]["kernel"] @ p["a"]["w"], params, X)
    assert found == ["a/kernel/input", "a/kernel/kernel", "a/w/input", "a/w/kernel"]


@pytest.mark.parametrize(
    ("params", "both"),
    [
        ({"a/b": W, "a": {"b": W}}, lambda p, x: x @ p["a/b"] @ p["a"]["b"]),
        ({"a": {"b/c": W, "b": {"c": W}}}, lambda p, x: x @ p["a"]["b/c"] @ p["a"]["b"]["c"]),
    ],
)
def test_two_leaves_whose_paths_are_equal_as_text_are_an_error(params, both):
    refused(
        "two parameters have the path 'a/b.*let no key hold a '/'", function(both).init, params, X
    )


def test_a_layer_may_be_called_input_or_kernel():
    params = {"a": {"w": W, "input": {"w": W}, "kernel": {"kernel": W}}}

    def fn(p, x):
        return x @ p["a"]["w"] @ p["a"]["input"]["w"] @ p["a"]["kernel"]["kernel"]

    net = bj.Function(fn, (bj.rule(".*", bj.uniform(4)),))
    layers = ("a", "a/input", "a/kernel")
    assert sites(fn, params, X) == sorted(f"{a}/{r}" for a in layers for r in ("input", "kernel"))
    state = net.init(params, X)
    _, moved = net.apply(params, state, 3.0 * X, train=True, update=True)
    assert jax.tree.structure(moved) == jax.tree.structure(state)
    for layer, largest in zip(layers, (3.0, 12.0, 48.0), strict=True):
        stats = moved["quant_stats"]
        for name in f"{layer}/input".split("/"):
            stats = stats[name]
        assert float(stats["clip_max"]) == largest and float(stats["count"]) == 1.0


# ---- arguments and fields -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [[2, 3], np.full(4, 2.0), "twice", None, 2, 2.0, True, {3, 2}, {"n": 2}, jnp.tanh, np.bool_(1)],
    ids=lambda value: type(value).__name__,
)
def test_arguments_of_every_kind_reach_the_function(given):
    def fn(params, x, *, how):
        if isinstance(given, np.ndarray):
            return x @ params["w"] * how
        assert type(how) is type(given)
        if callable(how):
            return how(x @ params["w"])
        return x @ params["w"] if how else 2.0 * x @ params["w"]

    net = function(fn, "kernel")
    state = net.init({"w": W}, X, how=given)
    for _ in range(2):
        out, _ = net.apply({"w": W}, state, X, how=given)
        np.testing.assert_allclose(out, fn({"w": W}, X, how=given), rtol=1e-5)


def test_a_static_argument_with_another_value_is_another_program():
    net = function(lambda params, x, *, how: x @ params["w"] * (3.0 if how == "thrice" else 2.0))
    state = net.init({"w": W}, X, how="twice")
    one, other = (net.apply({"w": W}, state, X, how=how)[0] for how in ("twice", "thrice"))
    np.testing.assert_allclose(other, 1.5 * one, rtol=1e-6)


class Configured(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.config["features"], name="dense")(x)


def test_a_model_whose_fields_cannot_be_hashed_works():
    config = {"features": 3}
    model = bj.Quantized(Configured(config), [bj.rule(".*", Q)])
    variables = model.init(jax.random.key(0), X)
    assert model.apply(variables, X).shape == (2, 3)
    assert jax.jit(model.apply)(variables, X).shape == (2, 3)


@pytest.mark.parametrize("quantizer", [Q, bj.uniform(4), bj.bitlength(4.0)], ids=lambda q: q.name)
def test_an_empty_batch_is_no_start_and_moves_nothing(quantizer):
    net = bj.Function(lambda params, x: x @ params["w"], (bj.rule("input", quantizer),))
    message = r"a quantizer needs at least one element, got a tensor of shape \(0, 4\)"
    refused(message, net.init, {"w": W}, X[:0])
    state = net.init({"w": W}, X)
    for options in ({}, {"train": True, "update": True}):
        out, after = net.apply({"w": W}, state, X[:0], **options)
        assert out.shape == (0, 4)
        jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
def test_tokens_of_every_integer_type_look_up(dtype):
    tokens = np.array([[1, 2], [0, 1]], dtype)
    model = bj.Quantized(nn.Embed(5, 4), [bj.rule("kernel", bj.lsq(8))])
    table = {"params": {"embedding": np.random.default_rng(0).normal(size=(5, 4))}}
    _, made = model.apply(table, tokens, mutable=["quant"])
    out = model.apply({**table, **made}, tokens)
    np.testing.assert_allclose(out, table["params"]["embedding"][tokens], atol=0.05)


def test_whole_numbers_that_meet_a_float_kernel_are_quantized_as_floats():
    x = np.arange(8, dtype=np.uint8).reshape(2, 4)
    net = function(lambda params, x: x @ params["w"], "input")
    state = net.init({"w": W}, x)
    np.testing.assert_allclose(net.apply({"w": W}, state, x)[0], x @ W, rtol=0.1)


# ---- how often the model's Python runs ----------------------------------------------------------


def test_the_python_of_a_function_runs_once_per_shape():
    runs = []

    def fn(params, x):
        runs.append(x.shape)
        return x @ params["w"]

    net, params = function(fn), {"w": W}
    state = net.init(params, X)
    for _ in range(2):
        net.apply(params, state, X)
    net.apply(params, state, np.asarray(X), train=True, update=True)
    jax.jit(lambda params: net.apply(params, state, X)[0])(params)
    jax.grad(lambda params: net.apply(params, state, X)[0].sum())(params)
    jax.vmap(lambda x: net.apply(params, state, x)[0])(X[None])
    bj.site_costs(net, params, X)
    assert runs == [X.shape]
    net.apply(params, state, X[:1])
    assert runs == [X.shape, X[:1].shape]


def test_the_python_of_a_module_runs_once_per_shape_after_its_own_initialisation():
    runs = []

    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x):
            runs.append(x.shape)
            return nn.Dense(3)(x)

    model = bj.Quantized(Counting(), [bj.rule(".*", Q)])
    variables = model.init(jax.random.key(0), X)
    assert len(runs) == 2  # Flax's own, and the program with its random streams
    for _ in range(2):
        model.apply(variables, X)
    model.apply(variables, X, mutable=["quant_stats"], rngs={"quant": jax.random.key(1)})
    jax.jit(model.apply)(variables, X)
    jax.grad(lambda v: model.apply(v, X).sum())(variables)
    bj.Quantized(Counting(), [bj.rule(".*", bj.lsq(3))]).apply(variables, X)
    assert len(runs) == 3
