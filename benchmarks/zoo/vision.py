"""big_vision, vision_transformer and flaxmodels: images, and the text towers beside them."""

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module, metadata
from typing import Any

import jax.numpy as jnp

from benchmarks.zoo.case import (
    Builder,
    Case,
    checkout,
    folder,
    linen,
    normal,
    on_path,
    package,
    tokens,
)


@contextmanager
def _without_tensorflow() -> Iterator[None]:
    """big_vision's utilities import TensorFlow's file access, which no model needs."""
    names = ("tensorflow", "tensorflow.io", "tensorflow.io.gfile")
    if any(name in sys.modules for name in names):
        yield
        return
    sys.modules.update({name: types.ModuleType(name) for name in names})
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _big_vision(name: str) -> Any:
    package("einops")
    import_module("flax.training.checkpoints")  # it looks for the real TensorFlow
    with on_path(folder("big_vision")), _without_tensorflow():
        return import_module(f"big_vision.models.{name}")


def _tower(**more: Any) -> dict[str, Any]:
    return {"width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2, **more}


def big_vision_vit(**more: Any) -> Case:
    """A ViT; its layers are a loop or a scan of a rematerialised block."""
    model = _big_vision("vit").Model(10, patch_size=(4, 4), **_tower(**more))
    args = (normal(2, 16, 16, 3),)
    note = ", ".join(f"{key}={value}" for key, value in more.items())
    return linen(model, args, {"train": False}, source=checkout("big_vision"), note=note)


def big_vision_bit() -> Case:
    """A ResNet whose convolutions standardise their kernels."""
    model = _big_vision("bit").Model(10, width=0.5, depth=(1, 1, 1))
    args = (normal(2, 32, 32, 3),)
    return linen(model, args, source=checkout("big_vision"), note="weight standardisation")


def big_vision_mixer() -> Case:
    """An MLP-Mixer."""
    model = _big_vision("mlp_mixer").Model(
        10, patch_size=(4, 4), num_blocks=2, hidden_dim=32, tokens_mlp_dim=16, channels_mlp_dim=64
    )
    return linen(model, (normal(2, 16, 16, 3),), source=checkout("big_vision"))


def big_vision_siglip(scan: bool) -> Case:
    """An image and a text tower side by side."""
    towers = _big_vision("proj.image_text.two_towers")
    text = _tower(vocab_size=64, scan=scan)
    image = _tower(patch_size=(4, 4), pool_type="map", scan=scan)
    model = towers.Model(image=image, text=text, out_dim=(None, 16), bias_init=-2.7)
    args = (normal(2, 16, 16, 3), tokens(2, 8, 64))
    with on_path(folder("big_vision")), _without_tensorflow():  # it imports its towers by name
        return linen(model, args, source=checkout("big_vision"), note=f"scan={scan}")


def big_vision_gemma(scan: bool) -> Case:
    """The Linen Gemma: einsums with raw kernels, a tied head."""
    model = _big_vision("ppp.gemma").Model(
        variant="small", width=32, depth=2, mlp_dim=64, num_heads=2, num_kv_heads=1, head_dim=16,
        norm_eps=1e-6, vocab_size=64, final_logits_softcap=30.0, attn_logits_softcap=50.0,
        post_norms=True, scan=scan, remat_policy="nothing_saveable" if scan else "none",
    )  # fmt: skip
    args = (tokens(2, 12, 64),)
    return linen(model, args, source=checkout("big_vision"), note=f"tied head, scan={scan}")


def _vit_jax(name: str) -> Any:
    with on_path(folder("vision_transformer")):
        return import_module(f"vit_jax.{name}")


def _patches(size: int) -> Any:
    return types.SimpleNamespace(size=(size, size))


def vision_transformer(hybrid: bool = False) -> Case:
    """The paper's ViT, on patches or on features of a ResNet."""
    model = _vit_jax("models_vit").VisionTransformer(
        num_classes=10, patches=_patches(1 if hybrid else 4), hidden_size=32,
        transformer={"num_layers": 2, "mlp_dim": 64, "num_heads": 2},
        resnet=types.SimpleNamespace(num_layers=(1, 1), width_factor=0.5) if hybrid else None,
    )  # fmt: skip
    args = (normal(2, 32 if hybrid else 16, 32 if hybrid else 16, 3),)
    return linen(model, args, {"train": False}, source=checkout("vision_transformer"))


def vision_transformer_mixer() -> Case:
    """The paper's MLP-Mixer."""
    model = _vit_jax("models_mixer").MlpMixer(
        patches=_patches(4), num_classes=10, num_blocks=2, hidden_dim=32, tokens_mlp_dim=16,
        channels_mlp_dim=64,
    )  # fmt: skip
    args = (normal(2, 16, 16, 3),)
    return linen(model, args, {"train": False}, source=checkout("vision_transformer"))


def flaxmodels_resnet18() -> Case:
    """Its width is fixed: 11 million parameters."""
    flaxmodels = package("flaxmodels")
    model = flaxmodels.ResNet18(output="logits", pretrained=None, num_classes=10)
    images = jnp.abs(normal(2, 32, 32, 3))
    source = f"flaxmodels {metadata.version('flaxmodels')}"
    return linen(model, (images,), {"train": False}, source=source)


def flaxmodels_vgg16() -> Case:
    """Its widths are fixed; images of 32 pixels keep it small."""
    flaxmodels = package("flaxmodels")
    model = flaxmodels.VGG16(pretrained=None, num_classes=10, include_head=False)
    images = jnp.abs(normal(2, 32, 32, 3))
    source = f"flaxmodels {metadata.version('flaxmodels')}"
    return linen(model, (images,), {"train": False}, source=source)


CASES: dict[str, Builder] = {
    "big_vision ViT": big_vision_vit,
    "big_vision ViT, scan": partial(big_vision_vit, scan=True),
    "big_vision ViT, map head, bfloat16": partial(
        big_vision_vit, pool_type="map", rep_size=True, dtype_mm="bfloat16"
    ),
    "big_vision BiT": big_vision_bit,
    "big_vision Mixer": big_vision_mixer,
    "big_vision SigLIP": partial(big_vision_siglip, False),
    "big_vision SigLIP, scan": partial(big_vision_siglip, True),
    "big_vision Gemma": partial(big_vision_gemma, False),
    "big_vision Gemma, scan": partial(big_vision_gemma, True),
    "vision_transformer ViT": vision_transformer,
    "vision_transformer R+ViT": partial(vision_transformer, True),
    "vision_transformer Mixer": vision_transformer_mixer,
    "flaxmodels ResNet-18": flaxmodels_resnet18,
    "flaxmodels VGG-16": flaxmodels_vgg16,
}
