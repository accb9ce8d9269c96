"""HWGQ of VGG-small on CIFAR-10: binary weights, 2-bit half-wave activations, from scratch.

Reported by HWGQ's authors: 92.51 % (Cai et al., CVPR 2017; recalled, not seen). Accelerator; no
result yet. Command:
  python -m experiments.train --config configs/cifar10/vgg_small_hwgq.py --workdir runs/vgg-hwgq
`:w32` after the file's name is a quarter of the width in 1,000 steps, for a CPU: 62.96 %.
"""

from bitjax.configs.cifar10.vgg_small_float import get_config as float_config


def get_config(arg="w128"):
    config = float_config(arg)
    config.name = config.name.replace("float", "hwgq")
    config.method.name = "hwgq"
    config.rules = (
        ("conv[2-6]/kernel", {"name": "binary"}),
        ("conv[2-6]/input", {"name": "hwgq", "bits": 2}),
    )
    return config
