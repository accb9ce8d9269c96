"""Continues token sequences with a causal model, one token after the other, from a cache."""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bitjax.checks import ARRAY, checked, integer, number
from bitjax.frameworks.compiled import jit_arrays
from bitjax.frameworks.kinds import advice
from bitjax.frameworks.linen import Quantized
from bitjax.variables import VARIABLES, floats_of

_CACHE = "cache"


@checked(variables=VARIABLES, tokens=ARRAY, steps=integer(1), temperature=number(0))
def generate(
    model: Any,
    variables: Mapping[str, Any],
    tokens: Any,
    steps: int,
    *,
    temperature: float = 0.0,
    key: Any = None,
) -> jax.Array:
    """Continues token sequences by `steps` tokens, each drawn from what the model gives it.

    One pass reads the prompts, then one token at a time follows from the keys and values in the
    cache, which is as long as prompt and steps together. All of it is one compiled program for each
    model, shape and number of steps. Where the model has rules for `key_cache` and `value_cache`,
    these are quantized as they enter the cache.

    Args:
      model: a Linen module, `bitjax.models.Llama` say, or `bitjax.Quantized` around one. It maps
        tokens to logits [n, t, vocabulary], and takes `decode=True`: its tokens then follow those
        in the collection `cache`, which `init` with `decode=True` makes as long as its tokens.
        With a `bitjax.deploy` it is `generate(*deployed, tokens, steps)`.
      variables: all collections of the model.
      tokens: prompts of one length, integers [n, t].
      steps: number of tokens to add.
      temperature: what divides the logits before a token is drawn; at 0 the likeliest is taken.
      key: a PRNG key, which a temperature above 0 needs.

    Returns:
      int32 [n, t + steps], the prompts in front.

    Raises:
      TypeError: If the model is no Linen module.
      ValueError: If the model has no `decode`; if `tokens` are empty, beyond its `vocab_size`, or
        with `steps` beyond its `context`; if the temperature is above 0 without a key.

    Example:
      >>> from bitjax.models import Llama
      >>> model = Llama(vocab_size=16, width=8, layers=1, heads=2, kv_heads=1, hidden=12)
      >>> prompts = jnp.array([[1, 5, 3], [1, 2, 2]])
      >>> variables = model.init(jax.random.key(0), prompts)
      >>> generate(model, variables, prompts, 4).shape
      (2, 7)
    """
    module = model.model if isinstance(model, Quantized) else model
    if not isinstance(module, nn.Module):
        raise TypeError(f"`model` must be a Linen module or bitjax.Quantized, got {advice(model)}.")
    if "decode" not in inspect.signature(module.__call__).parameters:
        raise ValueError(
            f"`model` must take `decode=True` and keep a cache, as bitjax.models.Llama does; "
            f"{type(module).__name__} does not."
        )
    tokens = _checked_tokens(module, tokens, steps)
    if temperature and not _is_key(key):
        said = f"{key.dtype}{list(key.shape)}" if hasattr(key, "dtype") else repr(key)
        raise ValueError(
            f"`key` must be a PRNG key to draw at temperature {temperature}, got {said}; give "
            "jax.random.key(0), say."
        )
    used = {name: tree for name, tree in variables.items() if name != _CACHE}
    draws = (np.float32(temperature), key) if temperature else (None, None)
    free = model.clone(parent=None, name=None)  # its scope would come along
    return jit_arrays(_generated, used, tokens, *draws, static=(free, steps))


def _is_key(key: Any) -> bool:
    """Whether one key is given, of the new kind or raw."""
    try:
        return jax.eval_shape(jax.random.bits, key).shape == ()
    except (TypeError, ValueError):
        return False


def _checked_tokens(module: nn.Module, tokens: Any, steps: int) -> jax.Array:
    """The prompts as int32, or a ValueError for what the model cannot continue."""
    if not isinstance(tokens, jax.Array):
        tokens = np.asarray(tokens)
    if tokens.ndim != 2 or not tokens.size or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            "`tokens` must be integers [prompts, length] with a token or more, got "
            f"{tokens.dtype}{list(tokens.shape)}."
        )
    length, context = tokens.shape[1] + steps, getattr(module, "context", None)
    if context is not None and length > context:
        left = context - tokens.shape[1]
        fewer = f" or at most {left} steps" if left > 0 else ""
        raise ValueError(
            f"`tokens` and `steps` need a cache of {length} tokens, the model's `context` is "
            f"{context}: give shorter prompts{fewer}."
        )
    most = getattr(module, "vocab_size", None)
    if most is not None and not isinstance(tokens, jax.core.Tracer):
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= most:
            raise ValueError(
                f"`tokens` must be in [0, {most - 1}], the model's `vocab_size`, got "
                f"{low if low < 0 else high}."
            )
    return jnp.asarray(tokens, jnp.int32)


def _generated(model, steps, variables, tokens, temperature, key):
    """The prompts and what follows them; without a temperature the likeliest tokens."""
    # Of keys, the first `steps - 1` belong to the scan.
    keys = None if key is None else jax.random.split(key, steps)

    def follow(cache, tokens, key):
        logits, changed = model.apply(
            {**variables, _CACHE: cache}, tokens, decode=True, mutable=[_CACHE]
        )
        last = logits[:, -1].astype(jnp.float32)
        chosen = (
            jnp.argmax(last, axis=-1)
            if key is None
            else jax.random.categorical(key, last / temperature)
        )
        return changed[_CACHE], chosen.astype(jnp.int32)

    def step(carry, key):
        cache, token = carry
        cache, token = follow(cache, token[:, None], key)
        return (cache, token), token

    cache = empty_cache(model, variables, tokens.shape[0], tokens.shape[1] + steps)
    first = follow(cache, tokens, None if keys is None else keys[-1])
    _, rest = jax.lax.scan(step, first, None if keys is None else keys[:-1], length=steps - 1)
    return jnp.concatenate([tokens, first[1][:, None], rest.T], axis=1)


def empty_cache(model: Any, variables: Mapping[str, Any], count: int, length: int) -> Any:
    """The collection `cache` of a model for `count` sequences of at most `length` tokens."""
    module = model.model if isinstance(model, Quantized) else model
    tokens = jax.ShapeDtypeStruct((count, length), jnp.int32)
    made = partial(module.apply, decode=True, mutable=[_CACHE])
    _, changed = jax.eval_shape(made, floats_of(variables), tokens)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), changed[_CACHE])
