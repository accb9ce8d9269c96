"""Post-training quantization of the published ResNet-20: MSE ranges, kernels per channel.

`:w8a8` or `:w4a4` after the file's name sets the bits of the 18 inner layers; stem and head have 8.
Targets: W8A8 at least 91.6; W4A4 at least 88.5, and 90.5 after re-estimating batch normalisation on
augmented training images (independent references 91.75, 88.59, 90.56). Results: results/README.md.
Command (2 minutes on 2 cores):
  bitjax train cifar10/resnet20_uniform:w4a4 --workdir runs/w4a4
"""

import re

from bitjax.configs.cifar10.resnet20_float import get_config as float_config


def get_config(arg="w8a8"):
    found = re.fullmatch(r"w(\d+)a(\d+)", arg)
    if found is None:
        raise ValueError(f"after the config's name comes :wNaM, for example :w4a4, got {arg!r}.")
    weight_bits, input_bits = map(int, found.groups())
    config = float_config()
    config.name = f"cifar10/resnet20_uniform_{arg}"
    config.method = {"name": "uniform", "steps": 0, "reestimate_batches": 40}
    weights = {"name": "uniform", "range": "mse", "granularity": "per_channel", "signed": True}
    inputs = {"name": "uniform", "range": "mse"}
    config.rules = (
        ("(stem|head)/kernel", {**weights, "bits": 8}),
        (".*/kernel", {**weights, "bits": weight_bits}),
        ("stem/input", {**inputs, "bits": 8}),  # the normalised image
        ("head/input", {**inputs, "bits": 8, "signed": False}),
        (".*/input", {**inputs, "bits": input_bits, "signed": False}),  # after a ReLU
    )
    return config
