"""As resnet20_bottleneck_a4.py, 5 planes on average and no fine-tuning.

Targets: 91.4 % top-1 (independent reference at uniform rates 91.55), with a window 91.3. Results:
results/README.md. Command (1 minute on 2 cores):
  bitjax train cifar10/resnet20_bottleneck_a5 --workdir runs/a5
"""

from bitjax.configs.cifar10.resnet20_bottleneck_a4 import get_config as a4_config


def get_config(options="0"):
    return a4_config(options, rate=5.0)
