"""The published ResNet-20 on CIFAR-10, trained for 2,000 steps: how near to float few bits come.

The rows of `python -m experiments.reproduce cifar10-resnet20-long`, with the sites and the teacher
of resnet20_250.py and eight times its steps. What comes behind the file's name is one of POINTS;
`float` is the control, under the same steps. Published on this architecture, of a better float
network and in 300 epochs: 92.96 % float, 92.45 at 4, 92.49 at 3 and 90.96 at 2 bits (APoT, Li et
al., arXiv 1909.13144, by its authors' program). Targets, those drops from 91.73: 91.2 at W4A4 and
W3A3, 89.7 at two bits; found 91.46 and, at the cost of W3A3, 91.51 by `bitpruning_3`; missed 90.46
by `uniform_w3a3` and 88.60 by `w2a2`. Results: results/cifar10-resnet20-long.md. Command (25
minutes of 2 cores):
  bitjax train cifar10/resnet20_long:bitpruning_3 --workdir runs/long
"""

from bitjax.configs.cifar10.resnet20_250 import STEPS as SHORT
from bitjax.configs.cifar10.resnet20_250 import bitpruning, fixed_bits, full_precision
from bitjax.configs.cifar10.resnet20_float import TRAINING

STEPS = 2000
POINTS = ("float", "uniform_w4a4", "uniform_w3a3", "w2a2", "bitpruning_3")


def get_config(point="bitpruning_3"):
    if point not in POINTS:
        raise ValueError(f"behind the config's name comes one of {', '.join(POINTS)}, got {point}")
    method, _, bits = point.partition("_")
    own = {"float": full_precision, "bitpruning": bitpruning, "w2a2": two_bits}
    config = own[method](bits) if method in own else fixed_bits(method, bits)
    config.name = f"cifar10/resnet20_long/{point}"
    config.task = {"name": "classification", "kl": True}
    config.method.update({"steps": STEPS, **TRAINING})
    for rate in ("bits_learning_rate", "range_learning_rate"):  # as far as in fewer steps
        if rate in config.method:
            config.method[rate] *= SHORT / STEPS
    config.checkpoint_every = 100
    return config


def two_bits(_):
    """As `uniform`, but a filter's four levels reach further to the side that needs it."""
    config = fixed_bits("uniform", "w2a2")
    *ends, (kernels, spec), inputs = config.rules
    free = {name: value for name, value in spec.items() if name != "signed"}
    config.rules = (*ends, (kernels, free), inputs)
    return config
