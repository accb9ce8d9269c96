"""HWGQ of VGG-small on CIFAR-10: binary weights, 2-bit half-wave activations, from scratch.

Reported by HWGQ's authors: 92.51 % (Cai et al., CVPR 2017; recalled, not seen). Accelerator; no
result yet. Command:
  bitjax train cifar10/vgg_small_hwgq --workdir runs/vgg-hwgq
`:w32` after the file's name is a quarter of the width in 1,000 steps, for a CPU: 62.96 %.
"""

from bitjax.configs.cifar10.vgg_small_float import with_quantizers


def get_config(arg="w128"):
    kernel, inputs = {"name": "binary"}, {"name": "hwgq", "bits": 2}
    return with_quantizers(arg, "hwgq", kernel, inputs)
