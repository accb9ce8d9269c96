"""The published ResNet-20 on CIFAR-10, on integers throughout: 8 bits, power-of-two scales.

Normalisations are folded into kernels and biases. Every product reads 8-bit integers, kernels
without -128, and so does every sum of a shortcut. Ranges have the power of two of least squared
error on 512 training images; nothing is trained. Rescaling is then a shift, and behind the
normalised image every number is exact: any runtime that adds right gives the same codes.
`:per_tensor` after the file's name gives each kernel one scale. Target: within 0.5 points of the
float network's 91.73 % top-1 (found: 91.80; the run is not kept). Command (1.5 minutes on 2 cores):
  bitjax train cifar10/resnet20_int8 --workdir runs/int8
"""

from bitjax.configs.cifar10.resnet20_float import get_config as float_config


def get_config(granularity="per_channel"):
    config = float_config()
    config.name = "cifar10/resnet20_int8"
    if granularity != "per_channel":
        config.name += f"_{granularity}"
    config.model = {"name": "resnet20", "num_classes": 10, "norm": "none"}
    config.method = {"name": "uniform", "steps": 0}
    config.sums = True
    eight = {"name": "uniform", "bits": 8, "range": "mse", "scale": "power_of_two"}
    both = {**eight, "signed": True}
    config.rules = (
        (".*/kernel", {**both, "narrow": True, "granularity": granularity}),
        ("stem/input|.*/sum0/left", both),  # the normalised image; what a shortcut is added to
        (".*", {**eight, "signed": False}),  # behind a ReLU
    )
    return config
