"""Decoders compute what their papers say, and the published weights what they are known for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.models import GPT2, Llama, load_llama

SMALL_GPT2 = GPT2(vocab_size=11, width=12, layers=2, heads=3, context=16)
SMALL = Llama(vocab_size=11, width=12, layers=2, heads=6, kv_heads=2, hidden=10, context=16)
TOKENS = np.array([[1, 5, 3, 10, 0, 2, 7], [4, 4, 4, 9, 8, 1, 6]])


def drawn(model):
    """Variables of which none is 0 or 1, as biases and scales start, so that none goes unseen."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), shapes)


@pytest.fixture(scope="module")
def small():
    return drawn(SMALL)


def slow_llama(params, tokens, heads, kv_heads):
    """One text, position by position and head by head, in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5) * scale["scale"]

    def turned(x, at):
        out = x.copy()
        for i in range(0, len(x), 2):
            z = (x[i] + 1j * x[i + 1]) * np.exp(1j * at * 10000.0 ** (-i / len(x)))
            out[i : i + 2] = z.real, z.imag
        return out

    x = p["embed"]["embedding"][tokens]
    for i in range(sum(name.startswith("layers_") for name in p)):
        layer = p[f"layers_{i}"]
        w = {n: x["kernel"] for part in ("attention", "ffn") for n, x in layer[part].items()}
        y = norm(x, layer["attention_norm"])
        q, k, v = (y @ w[n] for n in ("wq", "wk", "wv"))
        size, out = q.shape[1] // heads, np.zeros_like(q)
        for t in range(len(tokens)):
            for h in range(heads):
                mine, group = slice(h * size, (h + 1) * size), h // (heads // kv_heads)
                its = slice(group * size, (group + 1) * size)
                asks = turned(q[t, mine], t)
                scores = [asks @ turned(k[s, its], s) / np.sqrt(size) for s in range(t + 1)]
                shares = np.exp(scores) / np.sum(np.exp(scores))
                out[t, mine] = shares @ v[: t + 1, its]
        x = x + out @ w["wo"]
        y = norm(x, layer["ffn_norm"])
        gate = y @ w["w1"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w["w3"])) @ w["w2"]
    return norm(x, p["norm"]) @ p["embed"]["embedding"].T


def test_a_llama_computes_what_a_loop_over_positions_and_heads_does(small):
    found = jax.jit(SMALL.apply)(small, TOKENS)
    for row, tokens in zip(found, TOKENS, strict=True):
        np.testing.assert_allclose(row, slow_llama(small["params"], tokens, 6, 2), atol=1e-5)


def slow_gpt2(params, tokens, heads):
    """One text, position by position and head by head, in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, part):
        centred = x - np.mean(x, axis=-1, keepdims=True)
        spread = np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + 1e-5)
        return centred / spread * part["scale"] + part["bias"]

    def dense(x, part):
        return x @ part["kernel"] + part["bias"]

    x = p["embed"]["embedding"][tokens] + p["positions"]["embedding"][: len(tokens)]
    for i in range(sum(name.startswith("layers_") for name in p)):
        layer = p[f"layers_{i}"]
        y = norm(x, layer["attention_norm"])
        q, k, v = (dense(y, layer["attention"][n]) for n in ("wq", "wk", "wv"))
        size, out = q.shape[1] // heads, np.zeros_like(q)
        for t in range(len(tokens)):
            for h in range(heads):
                mine = slice(h * size, (h + 1) * size)
                scores = np.exp(k[: t + 1, mine] @ q[t, mine] / np.sqrt(size))
                out[t, mine] = scores / np.sum(scores) @ v[: t + 1, mine]
        x = x + dense(out, layer["attention"]["wo"])
        y = dense(norm(x, layer["ffn_norm"]), layer["ffn"]["w1"])
        y = y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = x + dense(y, layer["ffn"]["w2"])
    return norm(x, p["norm"]) @ p["embed"]["embedding"].T


def test_a_gpt2_computes_what_a_loop_over_positions_and_heads_does():
    variables = drawn(SMALL_GPT2)
    found = jax.jit(SMALL_GPT2.apply)(variables, TOKENS)
    for row, tokens in zip(found, TOKENS, strict=True):
        np.testing.assert_allclose(row, slow_gpt2(variables["params"], tokens, 3), atol=1e-5)


def test_the_published_weights_compute_what_a_loop_does(data_root):
    variables = load_llama(data_root / "stories" / "llama_260k.npz")
    tokens = np.load(data_root / "stories" / "tokens.npz")["test"][:24].astype(np.int32)
    found = jax.jit(Llama().apply)(variables, tokens[None])[0]
    expected = slow_llama(variables["params"], tokens, 8, 4)
    np.testing.assert_allclose(found, expected, atol=5e-5)


def nats(variables, documents):
    """Nats per predicted token, each document alone, its first 512 tokens."""

    @jax.jit
    def loss(tokens, length):
        chances = jax.nn.log_softmax(Llama().apply(variables, tokens[None])[0])
        scored = jnp.arange(1, len(tokens)) < length
        return -jnp.sum(scored * jnp.take_along_axis(chances[:-1], tokens[1:, None], 1)[:, 0])

    total = count = 0
    for document in documents:
        filling = -len(document) % 128  # a few shapes to compile
        total += float(loss(np.pad(document, (0, filling)), len(document)))
        count += len(document) - 1
    return total / count, count


def documents_of(data_root, count):
    tokens = np.load(data_root / "stories" / "tokens.npz")["test"].astype(np.int32)
    ends = np.flatnonzero(tokens == 1)[1 : count + 1]
    return [document[:512] for document in np.split(tokens, ends)[:count]]


@pytest.mark.slow
def test_the_published_weights_have_perplexity_3_7922_on_120_test_documents(data_root):
    # stories/README.md of the data: by independent NumPy code.
    variables = load_llama(data_root / "stories" / "llama_260k.npz")
    loss, count = nats(variables, documents_of(data_root, 120))
    assert count == 43_083
    assert loss == pytest.approx(1.33294, abs=1e-5)
    assert np.exp(loss) == pytest.approx(3.7922, abs=1e-4)


def test_a_program_serves_every_batch_and_every_length(small):
    n, t = jax.export.symbolic_shape("n, t")
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), small)
    tokens = jax.ShapeDtypeStruct((n, t), jnp.int32)
    found = jax.eval_shape(SMALL.apply, given, tokens)
    assert found.shape == (n, t, 11)


def test_bfloat16_computes_near_float32(small):
    exact = jax.jit(SMALL.apply)(small, TOKENS)
    found = jax.jit(SMALL.clone(dtype="bfloat16").apply)(small, TOKENS)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.15)


@pytest.mark.parametrize(
    ("model", "sizes", "message"),
    [
        (SMALL, {"heads": 5}, "`width` must be an even multiple of `heads`.* width 12 and 5 heads"),
        (SMALL, {"heads": 4}, "`width` must be an even multiple"),
        (SMALL, {"kv_heads": 4}, "`heads` must be a multiple of `kv_heads`, got 6 and 4"),
        (SMALL, {"layers": 0}, "`layers` must be an integer of 1 or more, got 0"),
        (SMALL_GPT2, {"heads": 5}, "`width` must be a multiple of `heads`, got 12 and 5"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused_in_one_line(model, sizes, message):
    with pytest.raises(ValueError, match=message) as error:
        model.clone(**sizes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.ones((1, 17), int), "`tokens` must have 16 tokens an example or fewer"),
        (np.ones((1, 4)), r"`tokens` must be integers \[examples, length\], got float"),
        (np.ones(4, int), r"`tokens` must be integers \[examples, length\], got int64\[4\]"),
    ],
)
def test_tokens_that_a_decoder_cannot_read_are_refused_in_one_line(small, tokens, message):
    with pytest.raises(ValueError, match=message) as error:
        SMALL.apply(small, tokens)
    assert "\n" not in str(error.value)
