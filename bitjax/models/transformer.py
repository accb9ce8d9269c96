"""A decoder in the manner of Llama: rotary positions, grouped queries, SwiGLU, a tied head."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bitjax.checks import checked, number
from bitjax.models.attention import attend, check_tokens, count_positions
from bitjax.models.layers import COUNT, FIELDS

_SIZES = ("vocab_size", "width", "layers", "heads", "kv_heads", "hidden", "context")
_POSITIVE = number(0, above=True)


@checked(**dict.fromkeys(_SIZES, COUNT), eps=_POSITIVE, base=_POSITIVE, dtype=FIELDS["dtype"])
class Llama(nn.Module):
    """`embed`, `layers_{i}/{attention_norm,attention,ffn_norm,ffn}` and `norm`; no biases.

    The head is the embedding. `attention` has `wq, wk, wv, wo`, `ffn` has `w1, w2, w3`. What a
    cache holds are the sites `layers_{i}/attention/key_cache` and `value_cache`.

    The defaults are the sizes of the published model that `load_llama` reads.

    Attributes:
      vocab_size: Number of tokens.
      width: Channels of the residual stream, a multiple of `heads`.
      layers: Number of blocks.
      heads: Heads of the queries, a multiple of `kv_heads`, each of an even number of channels.
      kv_heads: Heads of the keys and values; head h of the queries reads h // (heads / kv_heads).
      hidden: Channels inside the feed-forward layers.
      context: Most tokens of an example.
      eps: What the normalisations add to the mean of squares.
      base: Pair i of a head's d channels turns by position * base^(-2 i / d).
      dtype: Dtype of the computation; None: that of the parameters.

    Raises:
      ValueError: If the sizes do not fit together.

    Example:
      >>> model = Llama(vocab_size=16, width=8, layers=1, heads=2, kv_heads=1, hidden=12)
      >>> tokens = jnp.array([[1, 5, 3]])
      >>> variables = model.init(jax.random.key(0), tokens)
      >>> model.apply(variables, tokens).shape
      (1, 3, 16)

    Source: Touvron et al., LLaMA, 2023, arXiv 2302.13971; grouped queries as in Llama 2; rotary
      positions of Su et al., RoFormer, 2021, on neighbouring channels (2 i, 2 i + 1).
    """

    vocab_size: int = 512
    width: int = 64
    layers: int = 5
    heads: int = 8
    kv_heads: int = 4
    hidden: int = 172
    context: int = 512
    eps: float = 1e-5
    base: float = 10_000.0
    dtype: DTypeLike | None = None

    def __post_init__(self):
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(
                "`width` must be an even multiple of `heads`, so that channels turn in pairs, got "
                f"width {self.width} and {self.heads} heads."
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"`heads` must be a multiple of `kv_heads`, got {self.heads} and {self.kv_heads}."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False, decode: bool = False) -> jax.Array:
        """Tokens [n, t] to logits [n, t, vocab_size]; each position sees those before it.

        With `decode` the tokens follow those in the collection `cache`, which has to be mutable;
        `init` with `decode` makes it as long as its tokens.
        """
        del train  # no layer behaves differently in training
        check_tokens(tokens, self.context)
        start = count_positions(self, tokens.shape[1], decode)
        embed = nn.Embed(self.vocab_size, self.width, dtype=self.dtype, name="embed")
        norm = partial(nn.RMSNorm, self.eps, dtype=self.dtype)
        attention = partial(_Attention, self.heads, self.kv_heads, self.base, self.dtype)
        ffn = partial(_FeedForward, self.hidden, self.dtype)
        x = embed(tokens)
        for i in range(self.layers):
            x = Block(norm, attention, ffn, name=f"layers_{i}")(x, start, decode)
        return embed.attend(norm(name="norm")(x))


class Block(nn.Module):
    """Attention and a feed-forward layer, each normalised in front and added to the stream."""

    norm: Callable[..., nn.Module]  # each of the three takes `name`
    attention: Callable[..., nn.Module]
    ffn: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, start: Any, decode: bool) -> jax.Array:
        """Map [n, t, width], of which the first position is `start`, to the same shape."""
        y = self.norm(name="attention_norm")(x)
        x = x + self.attention(name="attention")(y, start, decode)
        return x + self.ffn(name="ffn")(self.norm(name="ffn_norm")(x))


class _Attention(nn.Module):
    heads: int
    kv_heads: int
    base: float
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x, start, decode):
        *rows, width = x.shape
        size = width // self.heads
        q, k, v = (
            _dense(count * size, self.dtype, name)(x).reshape(*rows, count, size)
            for name, count in (("wq", self.heads), ("wk", self.kv_heads), ("wv", self.kv_heads))
        )
        turn = partial(_turn, base=self.base)
        return _dense(width, self.dtype, "wo")(attend(self, q, k, v, start, decode, turn))


class _FeedForward(nn.Module):
    hidden: int
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        gate = nn.silu(_dense(self.hidden, self.dtype, "w1")(x))
        x = gate * _dense(self.hidden, self.dtype, "w3")(x)
        return _dense(width, self.dtype, "w2")(x)


def _dense(features: int, dtype: DTypeLike | None, name: str) -> nn.Dense:
    return nn.Dense(features, use_bias=False, dtype=dtype, name=name)


def _turn(x, start, *, base):
    """Channels (2 i, 2 i + 1) of [n, t, heads, d] as one complex number, turned by its position."""
    rates = base ** (-jnp.arange(0, x.shape[3], 2) / x.shape[3])
    angles = (start + jnp.arange(x.shape[1]))[:, None, None] * rates
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    real, imaginary = x[..., 0::2], x[..., 1::2]
    turned = jnp.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
