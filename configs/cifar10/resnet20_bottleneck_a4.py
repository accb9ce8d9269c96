"""The bitwise bottleneck on the published ResNet-20, CIFAR-10: 4 planes on average, float weights.

The inputs of the 18 inner layers; scales and rates from 1,024 training images, weighted by the
Fisher information, then 300 steps of batch 128 with the float network as teacher. Behind the file's
name come the steps of fine-tuning and what is done otherwise, one step of the method after another:
  :0             no fine-tuning
  :0,uniform     the same rate at every site
  :0,window      scales that are powers of two of an 8-bit code's step
  :0,truncated   planes of a finished 8-bit code, as the authors' program, at equal rates
  :0,lasso       the planes and coefficients that the LASSO of that program finds
  :0,solved      coefficients of least squares in place of powers of two
Targets: 91.0 % top-1 without training (an independent reference with free scales and uniform rates:
91.11), with a window 90.7, 91.5 after 300 steps; float 91.73. Results: results/README.md.
Command (3 minutes on 2 cores):
  bitjax train cifar10/resnet20_bottleneck_a4 --workdir runs/a4
"""

from bitjax.configs.cifar10.resnet20_float import TRAINING
from bitjax.configs.cifar10.resnet20_float import get_config as float_config

VARIANTS = ("", "uniform", "window", "truncated", "lasso", "solved")


def get_config(options="300", rate=4.0):
    steps, _, variant = options.partition(",")
    if variant not in VARIANTS:
        raise ValueError(f"the variant behind the steps must be one of {VARIANTS}, got {variant!r}")
    config = float_config()
    config.name = f"cifar10/resnet20_bottleneck_a{rate:g}"
    config.name += ("" if int(steps) else "_untrained") + (f"_{variant}" if variant else "")
    paper = variant in ("truncated", "lasso")
    equal = paper or variant == "uniform"
    if equal and rate != int(rate):
        raise ValueError(f"{variant!r} gives all sites one rate, which must be whole, got {rate}")
    config.method = {
        "name": "bottleneck",
        "rate": rate,
        "steps": int(steps),
        "weighting": "fisher",
        "grid": variant if paper or variant == "window" else "free",
        "min_bits": int(rate) if equal else 2,
        "max_bits": int(rate) if equal else 8,
        "calibration_batches": 8,
        **TRAINING,
    }
    planes = {"name": "bitplane", "bits": 8}
    if paper:
        planes |= {"mode": "faithful", "truncate": True, "coefficients": "free"}
    if variant == "solved":
        planes |= {"coefficients": "solved"}
        config.method.update({"resolve_every": 100})
    config.rules = (("stage.*/input", planes),)
    return config
