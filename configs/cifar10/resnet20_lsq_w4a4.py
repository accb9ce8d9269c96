"""LSQ at 4 bits, weights and activations, of the published ResNet-20 on CIFAR-10.

Stem and head at 8 bits as in the paper; the schedule of resnet20_bitpruning.py, so that the two can
be compared. Results: results/README.md. Command (15 minutes on 2 cores):
  bitjax train cifar10/resnet20_lsq_w4a4 --workdir runs/r20-lsq
"""

from bitjax.configs.cifar10.resnet20_float import TRAINING
from bitjax.configs.cifar10.resnet20_float import get_config as float_config


def get_config():
    config = float_config()
    config.method = {"name": "lsq", "steps": 600, **TRAINING}
    learned = {"name": "lsq", "bits": 4}
    ends = {"name": "lsq", "bits": 8}
    config.rules = (
        ("(stem|head)/kernel", {**ends, "granularity": "per_channel"}),
        ("stem/input", ends),
        ("head/input", {**ends, "signed": False}),
        (".*/kernel", {**learned, "granularity": "per_channel"}),
        (".*/input", {**learned, "signed": False}),
    )
    return config
