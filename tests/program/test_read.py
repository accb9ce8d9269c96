"""Which tensors of a traced function are sites, their names, and that nothing else changes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bitjax import Function, Quantized, identity, lsq, rule
from bitjax.frameworks.shapes import program_of
from bitjax.program.macs import total_of

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


X = normal(5, 4)


def read(fn, params, *args, **options):
    return program_of(Function(fn, **options), (params, *args), {})[0]


def fused(params, x):
    """Queries, keys and values of one kernel, and attention between them."""
    q, k, v = jnp.split(x @ params["qkv"]["w"], 3, axis=-1)
    return jax.nn.softmax(q @ k.T) @ v


def concatenated(params, x):
    return x @ jnp.concatenate([params["a"]["w"], params["b"]["w"]], axis=1)


def normalised(params, x):
    v = params["v"]
    return x @ (params["g"] * v / jnp.linalg.norm(v, axis=0))


def lora(params, x):
    return x @ (params["w"] + params["down"] @ params["up"])


def tied(params, x):
    tokens = jnp.argmax(x, -1)
    return params["table"]["embedding"][tokens] @ params["table"]["embedding"].T


def stacked(params, x):
    """Two layers of three steps each, all of one array."""

    def layer(x, w):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w["w"]), None), x, w)[0], None

    return lax.scan(layer, x, params["layers"])[0]


def over_time(params, x):
    def step(h, x):
        return jnp.tanh(x @ params["in"]["w"] + h @ params["rec"]["w"]), None

    return lax.scan(step, jnp.zeros((4,)), x)[0]


def branches(params, x):
    return lax.cond(x.sum() > 0, lambda: x @ params["a"]["w"], lambda: x @ params["b"]["w"])


def loop(params, x):
    return lax.fori_loop(0, x.astype(int)[0, 0] ** 0 + 1, lambda _, x: jnp.sin(x @ params["w"]), x)


def recomputed(params, x):
    return jax.checkpoint(lambda w, x: jnp.sin(x @ w))(params["w"], x)


def residual(params, x):
    y = x @ params["a"]["w"]
    return y + jax.nn.gelu(y @ params["b"]["w"])


W = normal(4, 4)
# (function, parameters, names of its sites in order)
CASES = {
    "fused": (
        fused, {"qkv": {"w": normal(4, 12)}},
        "qkv/kernel qkv/input product0/left product0/right product1/left product1/right",
    ),
    "concatenated": (
        concatenated, {"a": {"w": normal(4, 2)}, "b": {"w": normal(4, 3)}},
        "a/kernel b/kernel a/input",
    ),
    "normalised": (normalised, {"v": W, "g": normal(4)}, "v/kernel v/input"),
    "lora": (
        lora, {"w": W, "down": normal(4, 1), "up": normal(1, 4)}, "kernel input"
    ),
    "tied": (tied, {"table": {"embedding": normal(7, 4)}}, "table/kernel table/input"),
    "stacked": (stacked, {"layers": {"w": normal(2, 3, 4, 4)}}, "layers/kernel layers/input"),
    "over time": (
        over_time, {"in": {"w": W}, "rec": {"w": W}},
        "in/kernel in/input rec/kernel rec/input",
    ),
    "branches": (
        branches, {"a": {"w": W}, "b": {"w": 2 * W}}, "a/kernel a/input b/kernel b/input"
    ),
    "loop": (loop, {"w": W}, "kernel input"),
    "recomputed": (recomputed, {"w": W}, "kernel input"),
    "residual": (
        residual, {"a": {"w": W}, "b": {"w": W}}, "a/kernel a/input b/kernel b/input"
    ),
}  # fmt: skip
every_case = pytest.mark.parametrize("name", CASES)


@every_case
def test_sites_are_named_by_parameters_and_places(name):
    fn, params, names = CASES[name]
    assert set(read(fn, params, X).sites) == set(names.split())


@every_case
def test_every_multiply_add_is_counted_once(name):
    fn, params, _ = CASES[name]
    program = read(fn, params, X)
    assert program.macs == total_of(jax.make_jaxpr(fn)(params, X).jaxpr)
    whole = name != "lora"  # its kernel is a product of parameters alone
    assert (program.reached == program.macs) is whole


@every_case
def test_quantizers_that_change_nothing_leave_values_and_gradients_bit_for_bit(name):
    fn, params, _ = CASES[name]
    net = Function(fn, [rule(".*", identity())])
    state = net.init(params, X)

    def loss(out):
        return jnp.sum(jnp.sin(out))

    def ours(params):
        return loss(net.apply(params, state, X)[0])

    def floats(params):
        return loss(fn(params, X))

    # A loop until something holds has no backward pass.
    slope = jax.value_and_grad if name != "loop" else lambda f: f
    found, expected = (jax.jit(slope(f))(params) for f in (ours, floats))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@every_case
def test_every_site_is_quantized_where_it_is_read(name):
    fn, params, names = CASES[name]
    state = Function(fn, [rule(".*", lsq(3))]).init(params, X)
    taken = "a/" if X.sum() > 0 else "b/"
    for site in names.split():
        out = Function(fn, [rule(site, lsq(3))]).apply(params, state, X)[0]
        changes = name != "branches" or site.startswith(taken)
        assert np.array_equal(out, fn(params, X)) is not changes, site


def test_a_scans_layers_have_quantizers_of_their_own_with_leading_axes():
    fn, params, _ = CASES["stacked"]
    state = Function(fn, [rule(".*", lsq(3))]).init(params, X)
    assert state["quant"]["layers"]["kernel"]["scale"].shape == (2, 3)
    fn, params, _ = CASES["over time"]
    state = Function(fn, [rule(".*", lsq(3))]).init(params, X)
    assert state["quant"]["rec"]["input"]["scale"].shape == ()


def test_addends_of_residual_sums_are_sites_on_request_and_a_gelus_terms_are_not():
    fn, params, _ = CASES["residual"]
    found = set(read(fn, params, X, sums=True).sites) - set(read(fn, params, X).sites)
    assert found == {"sum0/left", "sum0/right"}


def test_an_addend_that_takes_pixels_and_pads_zeros_is_the_array_before_it():
    def shortcut(filled):
        def fn(params, x):
            y = jnp.tanh(x @ params["a"]["w"])
            padded = jnp.pad(y[::2], ((0, 0), (1, 1)), constant_values=filled)
            return y[::2] @ params["b"]["w"] + padded

        program = read(fn, {"a": {"w": W}, "b": {"w": normal(4, 6)}}, X, sums=True)
        return program.sites["sum0/right"].shape

    assert shortcut(0.0) == (5, 4)
    assert shortcut(1.0) == (3, 6)  # what is padded is to be quantized too


def test_a_leaf_is_the_kernel_of_a_quantizer_even_when_it_is_cast_and_sliced():
    def half(params, x):
        return x.astype(jnp.bfloat16) @ params["w"].astype(jnp.bfloat16)[:, 1:].T.reshape(3, 4).T

    site = read(half, {"w": W}, X).sites["kernel"]
    assert (site.shape, site.dtype, site.axes.channel) == ((4, 4), jnp.float32, (-1,))


def test_names_that_collide_keep_their_whole_paths():
    def both(params, x):
        return x @ params["m"]["kernel"] + x @ params["m"]["w"]

    sites = read(both, {"m": {"kernel": W, "w": W}}, X).sites
    assert {"m/kernel/kernel", "m/w/kernel"} < set(sites)


def test_what_cannot_be_read_is_listed_with_its_work():
    @jax.custom_vjp
    def opaque(w, x):
        return x @ w

    opaque.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, g: kept)

    def fn(params, x):
        return opaque(params["hidden"]["w"], x) @ params["seen"]["w"]

    program = read(fn, {"hidden": {"w": W}, "seen": {"w": W}}, X)
    assert set(program.sites) == {"seen/kernel", "seen/input"}
    (part,) = program.unread
    assert (part.why, part.macs) == ("custom_vjp_call", 5 * 16)


def test_a_function_that_differentiates_inside_has_the_sites_of_its_forward_pass():
    def force(params, x):
        return jax.grad(lambda x: jnp.sum(jnp.sin(x @ params["w"])))(x)

    program = read(force, {"w": W}, X)
    assert set(program.sites) == {"kernel", "input"}
    assert [part.why for part in program.unread] == ["derivative"]


class Normalised(nn.Module):
    kind: type

    @nn.compact
    def __call__(self, x):
        more = {"update_stats": False} if self.kind is nn.SpectralNorm else {}
        return self.kind(nn.Dense(3))(x, **more)


def test_experts_of_a_ragged_product_are_one_kernel():
    def experts(params, x):
        return lax.ragged_dot(x, params["w"], jnp.array([2, 0, 3]))

    params = {"w": normal(3, 4, 2)}
    net = Function(experts, [rule("kernel", lsq(8, granularity="per_channel"))])
    program = read(experts, params, X)
    assert (set(program.sites), program.macs) == ({"kernel", "input"}, 5 * 4 * 2)
    state = net.init(params, X)
    assert state["quant"]["kernel"]["scale"].size == 6  # every expert's own filters
    out, _ = net.apply(params, state, X)
    np.testing.assert_allclose(out, experts(params, X), atol=0.1)


def test_a_product_of_two_activations_may_give_a_scalar():
    program = read(lambda params, x: jnp.vdot(x @ params["w"], x), {"w": W}, X)
    assert set(program.sites) == {"kernel", "input", "product0/left", "product0/right"}
    assert program.macs == 5 * 16 + 20


@pytest.mark.parametrize("kind", [nn.WeightNorm, nn.SpectralNorm])
def test_weight_and_spectral_normalisation_quantize_what_is_multiplied(kind):
    model = Normalised(kind)
    variables = jax.jit(model.init)(KEY, X)
    (kernel,) = [n for n in program_of(model, (X,), {})[0].sites if n.endswith("kernel")]
    wrapped = Quantized(model, [rule(kernel, lsq(2, granularity="per_tensor"))])
    given = jax.jit(wrapped.init)(KEY, X)
    jax.tree.map(np.testing.assert_array_equal, given["params"], variables["params"])
    # Behind a one-hot input stands the kernel itself, on at most four levels.
    rows = wrapped.apply(given, jnp.eye(4)) - wrapped.apply(given, jnp.zeros((1, 4)))
    assert len(np.unique(np.asarray(rows).round(5))) <= 4
