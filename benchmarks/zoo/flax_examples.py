"""The examples of the Flax repository (google/flax, examples/), all Linen but gemma."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.zoo.case import (
    Builder,
    Case,
    checkout,
    folder,
    linen,
    module_at,
    normal,
    on_path,
    stir,
    tokens,
)


def _models(example: str) -> Any:
    return module_at(folder("flax") / "examples" / example / "models.py")


def ppo() -> Case:
    """A convolutional actor and critic on 84x84 frames."""
    frames = 255 * jnp.abs(normal(2, 84, 84, 4))
    return linen(_models("ppo").ActorCritic(num_outputs=4), (frames,), source=checkout("flax"))


def vae() -> Case:
    """The key is a positional argument, an array of data."""
    model = _models("vae").VAE(latents=20)
    return linen(model, (jnp.abs(normal(2, 784)), jax.random.key(3)), source=checkout("flax"))


def vae_generate() -> Case:
    """The decoder alone, by `method=`."""
    whole = vae()
    return whole._replace(args=(normal(2, 20),), method="generate")


def _sizes(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 64, "output_vocab_size": 64, "emb_dim": 32, "num_heads": 2, "num_layers": 2,
        "qkv_dim": 32, "mlp_dim": 64, "max_len": 32, **more,
    }  # fmt: skip


def wmt(shared: bool = False) -> Case:
    """An encoder and decoder for translation."""
    models = _models("wmt")
    tied = {"share_embeddings": shared, "logits_via_embedding": shared}
    config = models.TransformerConfig(**_sizes(deterministic=True), **tied)
    args = (tokens(2, 12, 64), tokens(2, 10, 64, seed=1))
    return linen(models.Transformer(config), args, source=checkout("flax"))


def lm1b(tied: bool = False) -> Case:
    """A language model whose parameters are boxed with their axes' names."""
    models = _models("lm1b")
    config = models.TransformerConfig(**_sizes(deterministic=True), logits_via_embedding=tied)
    model = models.TransformerLM(config)
    return linen(model, (tokens(2, 12, 64),), source=checkout("flax"), note="boxed parameters")


def lm1b_decode() -> Case:
    """One token with a cache, which changes."""
    models = _models("lm1b")
    config = models.TransformerConfig(**_sizes(deterministic=True, decode=True))
    case = linen(models.TransformerLM(config), (tokens(2, 12, 64),), source=checkout("flax"))
    note = "one token, with a cache"
    # Stirring filled the cache and its counters, which begin empty.
    cache = jax.tree.map(jnp.zeros_like, case.variables["cache"])
    variables = {**case.variables, "cache": cache}
    return case._replace(
        args=(tokens(2, 1, 64),), mutable=("cache",), note=note, variables=variables
    )


def nlp_seq() -> Case:
    """A tagger with keyword-only arguments."""
    models = _models("nlp_seq")
    model = models.Transformer(models.TransformerConfig(**_sizes()))
    return linen(model, (), {"inputs": tokens(2, 12, 64), "train": False}, source=checkout("flax"))


def imagenet() -> Case:
    """A ResNet of basic blocks."""
    model = _models("imagenet").ResNet18(num_classes=10, num_filters=16)
    return linen(model, (normal(2, 32, 32, 3),), {"train": False}, source=checkout("flax"))


def sst2() -> Case:
    """Two LSTMs by nn.scan as a decorator, and attention."""
    model = _models("sst2").TextClassifier(
        embedding_size=16, hidden_size=16, vocab_size=64, output_size=1, dropout_rate=0.1,
        word_dropout_rate=0.1, deterministic=True,
    )  # fmt: skip
    args = (tokens(2, 9, 64), jnp.asarray([9, 5]))
    return linen(model, args, source=checkout("flax"), note="LSTM")


def seq2seq(teacher_force: bool = True) -> Case:
    """Two LSTMs; the decoder's cell draws tokens, from keys called `lstm`."""
    model = _models("seq2seq").Seq2seq(teacher_force=teacher_force, hidden_size=16, vocab_size=12)
    questions, answers = (jax.nn.one_hot(tokens(2, n, 12, seed=n), 12) for n in (7, 5))
    return linen(
        model, (questions, answers), source=checkout("flax"), rngs={"lstm": jax.random.key(5)},
        note='LSTM, rng "lstm"',
    )  # fmt: skip


def gemma() -> Case:
    """The NNX Gemma: grouped queries, sliding windows, a tied head."""
    from flax import nnx

    with on_path(folder("flax") / "examples" / "gemma"):
        transformer = module_at(folder("flax") / "examples" / "gemma" / "transformer.py")
        import transformer_cfg  # pyrefly: ignore[missing-import]  it lies beside
    kinds = transformer_cfg.AttentionType
    config = transformer_cfg.TransformerConfig(
        num_layers=2, num_embed=64, embed_dim=32, hidden_dim=64, num_heads=2, head_dim=16,
        num_kv_heads=1, final_logit_softcap=30.0, use_post_attn_norm=True, use_post_ffw_norm=True,
        attention_types=(kinds.LOCAL_SLIDING, kinds.GLOBAL), sliding_window_size=4,
        attn_logits_soft_cap=50.0, use_qk_norm=True,
    )  # fmt: skip
    model = transformer.Transformer(config, rngs=nnx.Rngs(0))
    model.eval()
    nnx.update(model, stir(nnx.state(model, nnx.Param)))
    mask = transformer.make_causal_attn_mask(jnp.ones((2, 12), bool))
    positions = jnp.tile(jnp.arange(12), (2, 1))
    args = (tokens(2, 12, 64), positions, None, mask)
    return Case("nnx", model, None, args, source=checkout("flax"), note="tied head")


CASES: dict[str, Builder] = {
    "flax ppo": ppo,
    "flax vae": vae,
    "flax vae.generate": vae_generate,
    "flax wmt": wmt,
    "flax wmt, tied": partial(wmt, True),
    "flax lm1b": lm1b,
    "flax lm1b, tied": partial(lm1b, True),
    "flax lm1b, decoding": lm1b_decode,
    "flax nlp_seq": nlp_seq,
    "flax imagenet ResNet": imagenet,
    "flax sst2": sst2,
    "flax seq2seq": seq2seq,
    "flax seq2seq, sampling": partial(seq2seq, False),
    "flax gemma (nnx)": gemma,
}
