"""What is marked to enter a cache is one site, quantized there, whatever reads it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from bitjax import Function, identity, lsq, rule, tap, uniform
from bitjax.frameworks.shapes import program_of
from bitjax.program.calls import together
from bitjax.program.macs import total_of

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


X = normal(2, 5, 4)  # examples, tokens, width
PARAMS = {"attn": {n: {"w": normal(4, m)} for n, m in {"q": 4, "k": 2, "v": 2, "o": 4}.items()}}


def heads(x, count):
    return x.reshape(*x.shape[:2], count, -1)


def marked(k, v):
    return checkpoint_name(k, "key_cache"), checkpoint_name(v, "value_cache")


def projected(p, x, mark=marked):
    q, k, v = (heads(x @ p[n]["w"], count) for n, count in (("q", 2), ("k", 1), ("v", 1)))
    return q, *mark(k, v)


def mixed(q, k, v):
    shares = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k))
    return jnp.einsum("nhqk,nkhd->nqhd", shares, v).reshape(*q.shape[:2], -1)


def repeated(params, x):
    q, k, v = projected(params["attn"], x)
    return mixed(q, *(jnp.repeat(y, 2, axis=2) for y in (k, v))) @ params["attn"]["o"]["w"]


def moved(params, x):
    q, k, v = projected(params["attn"], x)
    wide = [jnp.broadcast_to(y.astype(jnp.bfloat16), q.shape) for y in (k, v)]
    q, k, v = (y.transpose(0, 2, 1, 3) for y in (q, *wide))
    out = jax.nn.softmax(q.astype(jnp.bfloat16) @ k.mT) @ v
    out = out.astype(jnp.float32).transpose(0, 2, 1, 3).reshape(x.shape)
    return out @ params["attn"]["o"]["w"]


def written(params, x):
    """Into buffers that are longer, and masked."""
    q, *rest = projected(params["attn"], x)
    seen = (jnp.arange(8) < 5)[None, :, None, None]
    rest = [lax.dynamic_update_slice(jnp.zeros((2, 8, 1, 2)), y, (0, 0, 0, 0)) for y in rest]
    rest = [jnp.repeat(jnp.where(seen, y, 0.0), 2, axis=2) for y in rest]
    return mixed(q, *rest) @ params["attn"]["o"]["w"]


def recomputed(params, x):
    q, k, v = projected(params["attn"], x)
    core = jax.checkpoint(lambda q, k, v: mixed(q, jnp.repeat(k, 2, 2), jnp.repeat(v, 2, 2)))
    return core(q, k, v) @ params["attn"]["o"]["w"]


def by_blocks(params, x):
    """A scan over blocks of keys and values."""
    q, k, v = projected(params["attn"], x)

    def step(total, block):
        k, v = (jnp.repeat(y[:, None], 2, axis=2) for y in block)
        return total + jnp.einsum("nqhd,nkhd,nkhe->nqhe", q, k, v), None

    total, _ = lax.scan(step, jnp.zeros_like(q), [y.swapaxes(0, 1) for y in (k, v)])
    return total.reshape(x.shape) @ params["attn"]["o"]["w"]


FORMS = {f.__name__: f for f in (repeated, moved, written, recomputed, by_blocks)}


@pytest.mark.parametrize("name", FORMS)
def test_a_mark_is_the_site_of_the_products_that_read_it(name):
    program = program_of(Function(FORMS[name]), (PARAMS, X), {})[0]
    sites = program.sites
    for mark in ("attn/key_cache", "attn/value_cache"):
        assert (sites[mark].role, sites[mark].shape) == ("cache", (2, 5, 1, 2))
        assert sites[mark].axes.channel == (-2, -1)
    products = [p for p in program.products if p.layer.rpartition("/")[2].startswith("product")]
    held = [o.site.name for p in products for o in p.held.values()]
    assert held == ["attn/key_cache", "attn/value_cache"]
    assert len([n for n in sites if "product" in n]) == 2  # the other sides
    assert program.macs == total_of(jax.make_jaxpr(FORMS[name])(PARAMS, X).jaxpr)
    assert program.reached == program.macs


@pytest.mark.parametrize("name", ["written", "by_blocks"])
def test_quantizers_of_caches_that_change_nothing_leave_values_and_gradients_alone(name):
    fn = FORMS[name]
    net = Function(fn, [rule(".*_cache", identity())])
    state = net.init(PARAMS, X)

    def slope(f):
        return jax.jit(jax.value_and_grad(lambda params: jnp.sum(jnp.sin(f(params)))))(PARAMS)

    found, expected = slope(lambda p: net.apply(p, state, X)[0]), slope(lambda p: fn(p, X))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_products_read_levels_and_gradients_go_straight_through_them():
    levels = uniform(2, range="absmax", granularity="per_channel")
    net = Function(repeated, [rule(".*_cache", levels)])
    state = jax.jit(net.init)(PARAMS, X)
    sites = program_of(net, (PARAMS, X), {})[0].sites

    def by_hand(k, v):
        found = []
        for x, name in ((k, "attn/key_cache"), (v, "attn/value_cache")):
            params, stats = levels.init(x, sites[name].axes)
            found.append(levels.apply(params, stats, x))
        return found

    def expected(params):
        q, k, v = projected(params["attn"], X, mark=by_hand)
        return mixed(q, *(jnp.repeat(y, 2, axis=2) for y in (k, v))) @ params["attn"]["o"]["w"]

    def slope(f):
        return jax.jit(jax.value_and_grad(lambda params: jnp.sum(jnp.sin(f(params)))))(PARAMS)

    found = slope(lambda params: net.apply(params, state, X)[0])
    np.testing.assert_allclose(found[0], slope(expected)[0], rtol=1e-5)
    assert all(jnp.any(found[1]["attn"][n]["w"] != 0) for n in PARAMS["attn"])


def decoding(params, x, cache, start):
    """One step with a cache, which it gives back."""
    q, *new = projected(params["attn"], x)
    cache = [
        lax.dynamic_update_slice(old, y, (0, start, 0, 0))
        for old, y in zip(cache, new, strict=True)
    ]
    seen = jnp.arange(cache[0].shape[1])[:, None, None] <= start
    out = mixed(q, *(jnp.repeat(jnp.where(seen, y, 0.0), 2, axis=2) for y in cache))
    return out @ params["attn"]["o"]["w"], cache


def test_a_token_is_quantized_as_it_enters_and_what_is_in_the_cache_stays():
    rules = [rule("attn/.*_cache", uniform(3, granularity="per_channel"))]
    state = jax.jit(Function(repeated, rules).init)(PARAMS, X)  # of the program without a cache
    net, cache = Function(decoding, rules), [jnp.zeros((2, 5, 1, 2))] * 2
    step = jax.jit(lambda x, cache, t: net.apply(PARAMS, state, x, cache, t)[0][1])
    for t in range(5):
        before = cache
        cache = step(X[:, t : t + 1], cache, jnp.int32(t))
        np.testing.assert_array_equal(cache[0][:, :t], before[0][:, :t])
    variables = {"params": PARAMS, **state}
    whole = tap(Function(repeated, rules), variables, X, layers=".*_cache")
    for held, name in zip(cache, ("key", "value"), strict=True):
        np.testing.assert_array_equal(held, whole[f"attn/{name}_cache"].output)


@pytest.mark.parametrize("mark", ["key_proj", "key_cache"])
def test_marks_for_other_purposes_are_no_sites(mark):
    def fn(params, x):
        x = x.astype(jnp.int32) if mark == "key_cache" else x  # a cache of integers
        return checkpoint_name(x, mark).astype(jnp.float32) @ params["w"]

    sites = program_of(Function(fn), ({"w": normal(4, 3)}, X), {})[0].sites
    assert set(sites) == {"kernel", "input"}


def test_layers_of_a_scan_have_caches_of_their_own_and_those_in_a_row_are_counted():
    def stacked(params, x):
        def layer(x, p):
            return x + mixed(*projected(p, x, mark=marked_twice)), None

        return lax.scan(layer, x, params)[0]

    def marked_twice(k, v):
        k, v = (jnp.repeat(y, 2, axis=2) for y in (k, v))
        return checkpoint_name(k, "key_cache"), checkpoint_name(v, "key_cache")

    params = jax.tree.map(lambda w: jnp.stack([w, 2 * w, 3 * w]), PARAMS["attn"])
    state = Function(stacked, [rule(".*_cache.*", lsq(4, granularity="per_channel"))])
    quant = state.init(params, X)["quant"]
    shapes = {name: quant[name]["scale"].shape for name in quant}
    assert shapes == {name: (3, 1, 1, 2, 2) for name in ("key_cache", "key_cache1")}


def test_calls_of_different_lengths_start_one_range_for_each_channel():
    site = program_of(Function(repeated), (PARAMS, X), {})[0].sites["attn/key_cache"]
    whole = together(site, [normal(2, 5, 3, 2), normal(2, 1, 3, 2)])
    assert whole.shape == (12, 1, 3, 2)
