"""BitPruning of the published ResNet-20 on CIFAR-10: at most 4.0 bits over the 18 inner layers.

The average is over their weights and inputs. One bitlength per tensor, learned clips (weights' per
channel), 600 steps of batch 128, the float network as teacher; stem and head at 8 bits. Target: at
least 91.2 % top-1 (float 91.73; a quick independent run with learned ranges reached 91.02 in 410
steps). Results: results/README.md. Command (7 minutes on 2 cores):
  bitjax train cifar10/resnet20_bitpruning --workdir runs/r20-bp
"""

from bitjax.configs.cifar10.resnet20_float import TRAINING, ends
from bitjax.configs.cifar10.resnet20_float import get_config as float_config


def get_config():
    config = float_config()
    config.method = {
        "name": "bitpruning",
        "steps": 600,
        "fine_tune": 0.6,
        "settle": 0.05,
        "gamma": 0.0,  # the budget alone moves the bits
        "rounding": "budget",
        **TRAINING,
        "bits_learning_rate": 0.035,
        "range_learning_rate": 0.005,
    }
    # 0.0 is a code from the start, so that the freeze moves no level.
    learned = {
        "name": "bitlength",
        "init": 6.0,
        "range": "learned",
        "clip_bits": 5.0,
        "zero_on_grid": True,
    }
    weights = {**learned, "min_bits": 2.0, "range_granularity": "per_channel"}
    config.rules = (
        *ends(),
        (".*/kernel", weights),
        (".*/input", {**learned, "signed": False, "min_bits": 2.0}),
    )
    config.budgets = ({"metric": "bits", "limit": 4.0, "sites": "stage.*"},)
    return config
