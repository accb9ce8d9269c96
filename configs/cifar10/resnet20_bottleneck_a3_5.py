"""As resnet20_bottleneck_a4.py, 3.5 planes on average and no fine-tuning.

A rate that equal planes cannot have. Results: results/README.md. Command (1 minute on 2 cores):
  bitjax train cifar10/resnet20_bottleneck_a3_5 --workdir runs/a
"""

from bitjax.configs.cifar10.resnet20_bottleneck_a4 import get_config as a4_config


def get_config(options="0"):
    return a4_config(options, rate=3.5)
