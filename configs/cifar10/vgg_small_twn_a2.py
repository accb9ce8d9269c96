"""Ternary weights trained through, 2-bit half-wave activations, VGG-small on CIFAR-10.

What two-step quantization is compared with: the same grids, weights by the straight-through
estimator. Accelerator; no result yet. Command:
  python -m experiments.train --config configs/cifar10/vgg_small_twn_a2.py --workdir runs/vgg-twn
`:w32` after the file's name is a quarter of the width in 1,000 steps, for a CPU: 65.48 %.
"""

from bitjax.configs.cifar10.vgg_small_float import get_config as float_config


def get_config(arg="w128"):
    config = float_config(arg)
    config.name = config.name.replace("float", "twn_a2")
    config.method.name = "twn"
    config.rules = (
        ("conv[2-6]/kernel", {"name": "ternary", "fit": "twn"}),
        ("conv[2-6]/input", {"name": "halfwave", "bits": 2}),
    )
    return config
