"""Generation with a cache gives what evaluating the whole text each time gives."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.frameworks.generate import empty_cache
from bitjax.models import GPT2, Llama, load_llama

LLAMA = Llama(vocab_size=11, width=12, layers=1, heads=6, kv_heads=2, hidden=10, context=16)
GPT = GPT2(vocab_size=11, width=12, layers=1, heads=3, context=16)
PROMPTS = np.array([[1, 5, 3, 10], [4, 4, 0, 2], [9, 8, 1, 6]])


def drawn(model):
    """Variables with which a model of random weights does not repeat one token."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), PROMPTS)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 1.5, x.shape), x.dtype), shapes)


def quantized():
    """A model with rules for a few layers, its ranges from the prompts, and its variables."""
    four = bj.uniform(bits=4, granularity="per_channel")
    net = bj.Quantized(LLAMA, [bj.rule(".*(_cache|w2/kernel)", four)])
    return net, bj.attach(net, drawn(LLAMA), PROMPTS)


MODELS = {
    "llama": lambda: (LLAMA, drawn(LLAMA)),
    "gpt2": lambda: (GPT, drawn(GPT)),
    "quantized": quantized,
    "deployed": lambda: bj.deploy(*quantized(), PROMPTS),
}


def check_greedy(model, variables, prompts, steps):
    """Each token is the likeliest behind all of those before it, seen at once."""
    found = bj.generate(model, variables, prompts, steps)
    assert found.shape == (len(prompts), prompts.shape[1] + steps) and found.dtype == jnp.int32
    np.testing.assert_array_equal(found[:, : prompts.shape[1]], prompts)
    likeliest = jnp.argmax(jax.jit(model.apply)(variables, found), axis=-1)
    start = prompts.shape[1]
    np.testing.assert_array_equal(found[:, start:], likeliest[:, start - 1 : -1])
    return found


@pytest.mark.parametrize("name", MODELS)
def test_each_token_is_the_likeliest_behind_the_whole_text_before_it(name):
    model, variables = MODELS[name]()
    found = check_greedy(model, variables, PROMPTS, 12)
    assert len(np.unique(found[:, 4:])) > 2  # a model that says one thing would prove little


def test_the_published_model_generates_with_its_cache_what_it_does_without(data_root):
    variables = load_llama(data_root / "stories" / "llama_260k.npz")
    tokens = np.load(data_root / "stories" / "tokens.npz")["test"].astype(np.int32)
    starts = np.flatnonzero(tokens == 1)[:3]
    prompts = np.stack([tokens[start : start + 20] for start in starts])
    check_greedy(Llama(), variables, prompts, 100)


class Chain(nn.Module):
    """The next token is drawn by the row of the last one; counts how often it is traced."""

    chances: tuple = ((0.1, 0.2, 0.7), (1.0, 0.0, 0.0), (0.0, 0.5, 0.5))
    vocab_size: int = 3

    traces = 0

    @nn.compact
    def __call__(self, tokens, decode=False):
        Chain.traces += 1
        if decode:
            self.variable("cache", "position", jnp.zeros, (), jnp.int32)
        return jnp.log(jnp.array(self.chances))[tokens]


def test_tokens_are_drawn_as_often_as_the_model_says():
    starts = np.zeros((4000, 1), int)
    warm, again, other = (
        bj.generate(Chain(), {}, starts, 2, temperature=1.0, key=jax.random.key(seed))
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(warm, again)
    assert (warm != other).any()
    np.testing.assert_allclose(np.bincount(warm[:, 1]) / 4000, [0.1, 0.2, 0.7], atol=0.03)
    after_2 = warm[warm[:, 1] == 2, 2]  # the second draw is another one than the first
    np.testing.assert_allclose(np.bincount(after_2) / len(after_2), [0, 0.5, 0.5], atol=0.03)
    hot = bj.generate(Chain(), {}, starts, 2, temperature=2.0, key=jax.random.key(0))
    roots = np.sqrt([0.1, 0.2, 0.7])
    np.testing.assert_allclose(np.bincount(hot[:, 1]) / 4000, roots / roots.sum(), atol=0.03)


def test_a_program_is_compiled_once_for_each_shape_and_number_of_steps():
    def traces(*args, model=Chain, **kwargs):
        before = Chain.traces
        bj.generate(model(), {}, *args, **kwargs)
        return Chain.traces - before

    assert traces(np.zeros((2, 3), int), 5)
    assert not traces(np.ones((2, 3), int), 5)  # by an equal model, which is another object
    assert traces(np.zeros((2, 3), int), 6)
    assert traces(np.zeros((3, 3), int), 5)
    key = jax.random.key(0)
    assert traces(np.zeros((2, 3), int), 5, temperature=1.0, key=key)
    assert not traces(np.zeros((2, 3), int), 5, temperature=0.5, key=key)


@pytest.mark.slow
def test_the_published_model_of_four_bits_generates_so_with_a_cache_of_four_bits(data_root):
    variables = load_llama(data_root / "stories" / "llama_260k.npz")
    streams = np.load(data_root / "stories" / "tokens.npz")
    seen, prompts = (
        np.stack([streams[split][start : start + length] for start in starts])
        for split, length, starts in (("train", 128, range(0, 4096, 512)), ("test", 20, (0, 900)))
    )
    four = bj.uniform(bits=4, granularity="per_channel")
    net = bj.Quantized(Llama(), [bj.rule("layers_.*(_cache|/kernel)", four)])
    quantized = bj.attach(net, variables, seen.astype(np.int32))
    found = check_greedy(net, quantized, prompts.astype(np.int32), 100)
    assert (found != bj.generate(Llama(), variables, prompts.astype(np.int32), 100)).any()


def test_what_enters_a_quantized_cache_is_on_its_grid():
    net, variables = quantized()
    cache = {"cache": empty_cache(net, variables, 3, 6)}
    apply = jax.jit(partial(net.apply, decode=True, mutable=["cache"]))
    _, changed = apply({**variables, **cache}, PROMPTS)
    held = changed["cache"]["layers_0"]["attention"]
    for name in ("key", "value"):
        quantizer, site = net.rules[0].quantizer, f"{name}_cache"
        leaves, stats = (
            variables[c]["layers_0"]["attention"][site] for c in ("quant", "quant_stats")
        )
        again = quantizer.apply(leaves, stats, held[name])
        np.testing.assert_array_equal(held[name], again)
        assert len(np.unique(held[name][:, :4, 0, 0])) > 1


@pytest.mark.parametrize(("count", "length"), [(1, 8), (3, 16)])
def test_a_cache_takes_memory_by_prompts_and_length(count, length):
    cache = empty_cache(LLAMA, drawn(LLAMA), count, length)
    arrays = [x for x in jax.tree.leaves(cache) if x.ndim]
    # Keys and values of 2 heads of 2 channels each, in float32.
    a_token = 2 * 2 * 2 * 4
    assert sum(x.nbytes for x in arrays) == count * length * a_token
    assert bj.cache_bytes({}, bj.site_costs(LLAMA, PROMPTS)) == a_token


@pytest.mark.parametrize(
    ("model", "arguments", "kind", "message"),
    [
        (lambda x: x, {}, TypeError, "`model` must be a Linen module or bitjax.Quantized, got a f"),
        (nn.Dense(3), {}, ValueError, "`model` must take `decode=True` and keep a cache"),
        (LLAMA, {"steps": 13}, ValueError, "a cache of 17 tokens.* is 16: .* at most 12 steps"),
        (LLAMA, {"tokens": np.ones((1, 16), int)}, ValueError, "is 16: give shorter prompts.$"),
        (LLAMA, {"steps": 0}, ValueError, "`steps` must be an integer of 1 or more, got 0"),
        (LLAMA, {"tokens": PROMPTS + 1}, ValueError, r"in \[0, 10\], .*`vocab_size`, got 11"),
        (LLAMA, {"tokens": PROMPTS - 1}, ValueError, r"in \[0, 10\], .*`vocab_size`, got -1"),
        (LLAMA, {"tokens": PROMPTS[0]}, ValueError, r"integers \[prompts, length\].*int64\[4\]"),
        (LLAMA, {"tokens": PROMPTS[:, :0]}, ValueError, r"a token or more, got int64\[3, 0\]"),
        (LLAMA, {"tokens": PROMPTS * 1.0}, ValueError, r"must be integers .*float64\[3, 4\]"),
        (LLAMA, {"temperature": -1.0}, ValueError, "`temperature` must be a finite number of 0"),
        (LLAMA, {"temperature": 0.5}, ValueError, "`key` must be a PRNG key to draw at temper"),
        (LLAMA, {"temperature": 0.5, "key": 3}, ValueError, "`key` must be a PRNG key .* got 3; g"),
        (LLAMA, {"temperature": 0.5, "key": np.ones(3)}, ValueError, r"key .* got float64\[3\];"),
    ],
)  # fmt: skip
def test_what_cannot_be_continued_is_refused_in_one_line(model, arguments, kind, message):
    given = {"tokens": PROMPTS, "steps": 2, **arguments}
    with pytest.raises(kind, match=message) as error:
        bj.generate(model, {"params": {}}, **given)
    assert "\n" not in str(error.value)


def test_tokens_behind_a_full_cache_are_refused_in_one_line():
    variables = {**drawn(LLAMA), "cache": empty_cache(LLAMA, drawn(LLAMA), 3, 5)}
    read = partial(LLAMA.apply, decode=True, mutable=["cache"])
    _, changed = read(variables, PROMPTS)
    with pytest.raises(ValueError, match="the cache holds 5 tokens, got 2 behind 4: make it lon"):
        read({**variables, **changed}, PROMPTS[:, :2])


def test_a_cache_shorter_than_the_prompt_is_refused_in_one_line():
    variables = {**drawn(LLAMA), "cache": empty_cache(LLAMA, drawn(LLAMA), 3, 3)}
    with pytest.raises(ValueError, match="the cache holds 3 tokens, got 4: make it longer"):
        jax.eval_shape(partial(LLAMA.apply, decode=True, mutable=["cache"]), variables, PROMPTS)
