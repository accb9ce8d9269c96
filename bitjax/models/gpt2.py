"""GPT-2: learned positions, layer normalisation in front of each layer, a tied head."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bitjax.checks import checked
from bitjax.models.attention import attend, check_tokens, count_positions
from bitjax.models.layers import COUNT, FIELDS
from bitjax.models.transformer import Block

_SIZES = ("vocab_size", "width", "layers", "heads", "context")
_EPSILON = 1e-5  # of the normalisations
_NORMAL = nn.initializers.normal(0.02)


@checked(**dict.fromkeys(_SIZES, COUNT), dtype=FIELDS["dtype"])
class GPT2(nn.Module):
    """`embed`, `positions`, `layers_{i}/{attention_norm,attention,ffn_norm,ffn}` and `norm`.

    The head is the embedding. `attention` has `wq, wk, wv, wo`, `ffn` has `w1, w2`, all with
    biases. What a cache holds are the sites `layers_{i}/attention/key_cache` and `value_cache`.

    Attributes:
      vocab_size: Number of tokens.
      width: Channels of the residual stream, a multiple of `heads`.
      layers: Number of blocks.
      heads: Heads of queries, keys and values.
      context: Most tokens of an example, and number of learned positions.
      dtype: Dtype of the computation; None: that of the parameters.

    Raises:
      ValueError: If `width` is no multiple of `heads`.

    Example:
      >>> model = GPT2(vocab_size=16, width=8, layers=1, heads=2, context=4)
      >>> tokens = jnp.array([[1, 5, 3]])
      >>> variables = model.init(jax.random.key(0), tokens)
      >>> model.apply(variables, tokens).shape
      (1, 3, 16)

    Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019. Queries,
      keys and values are three layers here and one there; there is no dropout.
    """

    vocab_size: int = 50_257
    width: int = 768
    layers: int = 12
    heads: int = 12
    context: int = 1024
    dtype: DTypeLike | None = None

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(
                f"`width` must be a multiple of `heads`, got {self.width} and {self.heads}."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False, decode: bool = False) -> jax.Array:
        """Tokens [n, t] to logits [n, t, vocab_size], as `bitjax.models.Llama`."""
        del train  # no layer behaves differently in training
        check_tokens(tokens, self.context)
        start = count_positions(self, tokens.shape[1], decode)
        table = partial(nn.Embed, features=self.width, dtype=self.dtype, embedding_init=_NORMAL)
        embed = table(self.vocab_size, name="embed")
        places = start + jnp.arange(tokens.shape[1])
        norm = partial(nn.LayerNorm, _EPSILON, dtype=self.dtype)
        attention = partial(_Attention, self.heads, self.dtype)
        ffn = partial(_FeedForward, self.dtype)
        x = embed(tokens) + table(self.context, name="positions")(places)
        for i in range(self.layers):
            x = Block(norm, attention, ffn, name=f"layers_{i}")(x, start, decode)
        return embed.attend(norm(name="norm")(x))


class _Attention(nn.Module):
    heads: int
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x, start, decode):
        *rows, width = x.shape
        q, k, v = (
            _dense(width, self.dtype, name)(x).reshape(*rows, self.heads, width // self.heads)
            for name in ("wq", "wk", "wv")
        )
        return _dense(width, self.dtype, "wo")(attend(self, q, k, v, start, decode))


class _FeedForward(nn.Module):
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        x = nn.gelu(_dense(4 * width, self.dtype, "w1")(x), approximate=True)
        return _dense(width, self.dtype, "w2")(x)


def _dense(features: int, dtype: DTypeLike | None, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=_NORMAL, name=name)
