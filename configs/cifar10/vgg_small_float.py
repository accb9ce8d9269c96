"""VGG-small on CIFAR-10 in float, from scratch: the start of quantized ones and their comparison.

HWGQ's network and their 200 epochs of batch 100 with weight decay 5e-4, the peak rate of LQ-Nets'
(0.02), falling as a cosine. Accelerator; no result yet. Command:
  bitjax train cifar10/vgg_small_float --workdir runs/vgg-small
`:w32` after the file's name is a quarter of the width in 1,000 steps, for a CPU: 68.53 %.
"""

import re

from bitjax.configs.base import get_config as base

EPOCH = 50_000 // 100  # steps


def get_config(arg="w128"):
    found = re.fullmatch(r"w([1-9]\d*)", arg)
    if found is None:
        raise ValueError(f"after the config's name comes :wN, for example :w32, got {arg!r}.")
    width = int(found[1])
    short = width < 128
    config = base()
    config.name = f"cifar10/vgg_small_float{f'_{arg}' if short else ''}"
    config.model = {"name": "vgg_small", "width": width, "num_classes": 10}
    config.data.name = "cifar10"
    config.data.batch_size = 100
    config.data.augmentation = "crop_flip"
    config.method = {
        "name": "full_precision",
        "steps": 1000 if short else 200 * EPOCH,
        "learning_rate": 0.02,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "warmup": 50 if short else EPOCH,
    }
    if not short:
        config.checkpoint_every = 1000
        config.log_every = 100
    return config


def with_quantizers(arg, name, kernel, inputs):
    """The float run under a method that quantizes all layers but the first and the last."""
    config = get_config(arg)
    config.name = config.name.replace("float", name)
    config.method.name = name.partition("_")[0]
    config.rules = (("conv[2-6]/kernel", kernel), ("conv[2-6]/input", inputs))
    return config
