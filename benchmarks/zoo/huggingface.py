"""The Flax models of transformers, before version 5, called as transformers calls them."""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp

from benchmarks.zoo.case import Builder, Case, Missing, normal, package, stir, tokens

_BATCH, _LENGTH, _VOCABULARY = 2, 12, 64

# Sizes under the names that most configurations have.
_SMALL = {
    "vocab_size": _VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64,
    "num_attention_heads": 2, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_IMAGE = {"image_size": 16, "patch_size": 4, "num_channels": 3}


def _case(
    name: str, config: Any, args: tuple, kwargs: Mapping[str, Any] | None = None, note: str = "",
    **more: Any,
) -> Case:  # fmt: skip
    """The inner Linen module with its own random parameters; `name` is of the class around it."""
    transformers = _transformers()
    whole = getattr(transformers, name)(config, seed=0, **more)
    # A ResNet's parameters hold all its collections.
    params = whole.params if "batch_stats" in whole.params else {"params": whole.params}
    source = f"transformers {transformers.__version__}"
    kwargs = {"deterministic": True, **(kwargs or {})}
    return Case("linen", whole.module, stir(params), args, kwargs, source, _BATCH, note=note)


def _transformers() -> Any:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    transformers = package("transformers")
    if int(transformers.__version__.split(".")[0]) >= 5:
        raise Missing(f"transformers {transformers.__version__} has no Flax models")
    return transformers


def _config(name: str, **more: Any) -> Any:
    return getattr(_transformers(), name)(**{**_SMALL, **more})


def _text(seed: int = 0) -> tuple:
    """Tokens, a mask whose second example ends early, positions."""
    lengths = jnp.asarray([_LENGTH, _LENGTH - 3])
    mask = (jnp.arange(_LENGTH) < lengths[:, None]).astype(jnp.int32)
    positions = jnp.tile(jnp.arange(_LENGTH), (_BATCH, 1))
    return tokens(_BATCH, _LENGTH, _VOCABULARY, seed), mask, positions


def bert(name: str) -> Case:
    """BERT with a head."""
    words, mask, positions = _text()
    kwargs = {
        "token_type_ids": jnp.zeros_like(words), "position_ids": positions,
        "head_mask": jnp.ones((2, 2)),
    }  # fmt: skip
    note = "tied head" if "Masked" in name else ""
    return _case(name, _config("BertConfig"), (words, mask), kwargs, note)


def image(name: str, config: str) -> Case:
    """A transformer of patches."""
    return _case(name, _config(config, **_IMAGE), (normal(_BATCH, 16, 16, 3),))


def resnet() -> Case:
    """A ResNet; its images arrive with channels last."""
    config = _transformers().ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=10
    )
    args = (normal(_BATCH, 32, 32, 3),)
    more = {"input_shape": (1, 32, 32, 3)}
    return _case("FlaxResNetForImageClassification", config, args, **more)


def clip() -> Case:
    """Two towers, called with positional arguments alone."""
    text = {**_SMALL, "projection_dim": 16}
    vision = {**_SMALL, **_IMAGE, "projection_dim": 16}
    config = _transformers().CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    words, mask, positions = _text()
    args = (words, normal(_BATCH, 16, 16, 3), mask, positions, True)
    more = {"input_shape": ((1, 1), (1, 16, 16, 3))}
    case = _case("FlaxCLIPModel", config, args, note="positional arguments", **more)
    return case._replace(kwargs={})


def gpt2() -> Case:
    """GPT-2: one transposed kernel for q, k and v, a tied head."""
    config = _config("GPT2Config", n_positions=32, n_embd=32, n_layer=2, n_head=2)
    return _case("FlaxGPT2LMHeadModel", config, _text(), note="tied head")


def decoder(name: str, config: str, note: str = "", **more: Any) -> Case:
    """A causal language model."""
    return _case(name, _config(config, num_key_value_heads=2, **more), _text(), note=note)


def _two_texts() -> dict[str, Any]:
    (words, mask, positions), (answers, _, _) = _text(), _text(1)
    return {
        "input_ids": words, "attention_mask": mask, "decoder_input_ids": answers,
        "decoder_attention_mask": jnp.ones_like(answers), "position_ids": positions,
        "decoder_position_ids": positions,
    }  # fmt: skip


class _OlderNumpy:
    """jax.numpy with the argument of `clip` that T5 still uses and JAX has removed."""

    def __getattr__(self, name):
        return getattr(jnp, name)

    @staticmethod
    def clip(x, a_min=None, a_max=None):
        return jnp.clip(x, a_min, a_max)


def t5(gated: bool) -> Case:
    """T5, keyword arguments only; its head is tied, or its own after a gated block."""
    config = _config(
        "T5Config", d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
        decoder_start_token_id=0, tie_word_embeddings=not gated,
        feed_forward_proj="gated-gelu" if gated else "relu",
    )  # fmt: skip
    kwargs = {k: v for k, v in _two_texts().items() if "position" not in k}
    _transformers().models.t5.modeling_flax_t5.jnp = _OlderNumpy()
    note = "gated, own head" if gated else "tied head"
    return _case("FlaxT5ForConditionalGeneration", config, (), kwargs, note)


_SEQ2SEQ = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "decoder_start_token_id": 1,
}  # fmt: skip


def bart() -> Case:
    """BART: a submodule called `model`, a tied head."""
    config = _config("BartConfig", **_SEQ2SEQ)
    note = "submodule `model`, tied head"
    return _case("FlaxBartForConditionalGeneration", config, (), _two_texts(), note)


def whisper() -> Case:
    """Convolutions over a spectrogram, then an encoder and a decoder."""
    config = _config(
        "WhisperConfig", **_SEQ2SEQ, num_mel_bins=8, max_source_positions=10,
        max_target_positions=32, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    words, _, positions = _text()
    kwargs = {
        "input_features": normal(_BATCH, 8, 20), "decoder_input_ids": words,
        "decoder_attention_mask": jnp.ones_like(words), "decoder_position_ids": positions,
    }  # fmt: skip
    more = {"input_shape": (1, 8, 20)}
    name = "FlaxWhisperForConditionalGeneration"
    return _case(name, config, (), kwargs, "submodule `model`, tied head", **more)


def wav2vec2() -> Case:
    """Convolutions over a waveform, one of them with weight normalisation."""
    config = _config(
        "Wav2Vec2Config", conv_dim=(16, 16), conv_kernel=(10, 3), conv_stride=(5, 2),
        num_feat_extract_layers=2, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        do_stable_layer_norm=True, feat_extract_norm="layer", mask_time_prob=0.0,
    )  # fmt: skip
    wave = normal(_BATCH, 200)
    args = (wave, jnp.ones(wave.shape, jnp.int32))
    more = {"input_shape": (1, 200)}
    return _case("FlaxWav2Vec2ForCTC", config, args, note="weight normalisation", **more)


CASES: dict[str, Builder] = {
    "FlaxBert classification": partial(bert, "FlaxBertForSequenceClassification"),
    "FlaxBert MLM": partial(bert, "FlaxBertForMaskedLM"),
    "FlaxViT": partial(image, "FlaxViTForImageClassification", "ViTConfig"),
    "FlaxDinov2": partial(image, "FlaxDinov2ForImageClassification", "Dinov2Config"),
    "FlaxResNet": resnet,
    "FlaxCLIP": clip,
    "FlaxGPT2": gpt2,
    "FlaxT5": partial(t5, False),
    "FlaxT5, gated": partial(t5, True),
    "FlaxLlama": partial(decoder, "FlaxLlamaForCausalLM", "LlamaConfig", "submodule `model`"),
    "FlaxMistral": partial(
        decoder, "FlaxMistralForCausalLM", "MistralConfig", "submodule `model`", sliding_window=4
    ),
    "FlaxGemma": partial(
        decoder, "FlaxGemmaForCausalLM", "GemmaConfig", "submodule `model`, tied head", head_dim=16
    ),
    "FlaxBart": bart,
    "FlaxWhisper": whisper,
    "FlaxWav2Vec2": wav2vec2,
}
