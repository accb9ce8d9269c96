"""The published ResNet-20 on CIFAR-10, untrained: planes that are allocated, and equal ones.

The rows of `python -m experiments.reproduce cifar10-resnet20-planes`. A free-scale code of k planes
is the k-bit uniform grid, so what the bottleneck adds is how it spreads a rate over layers and how
it fits the scales. `bottleneck_a3` has 3 bits on average over the inputs of the 18 layers inside,
`uniform_a3` has 3 at each, of least squared error. At 2.5 `uniform` has 3 bits in the first and 2
in the second convolution of a block. Both see 1,024 training images. Kernels, stem and head have 8
bits. What comes behind the file's name is one of POINTS. Results:
results/cifar10-resnet20-planes.md. Command (20 s on 2 cores):
  bitjax train cifar10/resnet20_planes:bottleneck_a3 --workdir runs/r20-planes
"""

from bitjax.configs.cifar10.resnet20_250 import fixed_bits
from bitjax.configs.cifar10.resnet20_bottleneck_a4 import get_config as bottleneck_config
from bitjax.configs.cifar10.resnet20_float import get_config as float_config

RATES = ("2_5", "3", "4")
POINTS = ("float", *(f"{method}_a{rate}" for rate in RATES for method in ("uniform", "bottleneck")))


def get_config(point="bottleneck_a3"):
    if point not in POINTS:
        raise ValueError(f"behind the config's name comes one of {', '.join(POINTS)}, got {point}")
    method, _, rate = point.partition("_a")
    made = {"float": lambda _: float_config(), "uniform": uniform, "bottleneck": bottleneck}
    config = made[method](float(rate.replace("_", ".") or 0))
    config.name = f"cifar10/resnet20_planes/{point}"
    config.task = {"name": "classification", "kl": True}
    config.calibration_size = 1024
    return config


def uniform(rate):
    config = fixed_bits("uniform", f"w8a{int(rate)}")
    config.method = {"name": "uniform", "steps": 0}
    if rate != int(rate):
        *others, (inputs, spec) = config.rules
        first = ("stage.*/conv1/input", {**spec, "bits": int(rate) + 1})
        config.rules = (*others, first, (inputs, spec))
    return config


def bottleneck(rate):
    config = bottleneck_config("0", rate=rate)
    *others, _ = fixed_bits("uniform", "w8a8").rules
    config.rules = (*others, *config.rules)
    return config
