"""Ternary weights trained through, 2-bit half-wave activations, VGG-small on CIFAR-10.

What two-step quantization is compared with: the same grids, weights by the straight-through
estimator. Accelerator; no result yet. Command:
  bitjax train cifar10/vgg_small_twn_a2 --workdir runs/vgg-twn
`:w32` after the file's name is a quarter of the width in 1,000 steps, for a CPU: 65.48 %.
"""

from bitjax.configs.cifar10.vgg_small_float import with_quantizers


def get_config(arg="w128"):
    kernel, inputs = {"name": "ternary", "fit": "twn"}, {"name": "halfwave", "bits": 2}
    return with_quantizers(arg, "twn_a2", kernel, inputs)
