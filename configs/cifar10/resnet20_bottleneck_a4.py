"""The bitwise bottleneck on the published ResNet-20, CIFAR-10: 4 planes on average, float weights.

The inputs of the 18 inner layers; scales and rates from 1,024 training images, weighted by the
Fisher information, then 300 steps of batch 128 with the float network as teacher. `:0` after the
file's name leaves them out (post-training). Targets: 91.0 % top-1 without training (an independent
reference with free scales and uniform rates: 91.11), 91.5 after 300 steps; float 91.73. Results:
results/README.md. Command (3 minutes on 2 cores):
  python -m experiments.train --config configs/cifar10/resnet20_bottleneck_a4.py --workdir runs/a4
"""

from configs.cifar10.resnet20_float import get_config as float_config


def get_config(steps="300", rate=4.0):
    config = float_config()
    config.name = f"cifar10/resnet20_bottleneck_a{rate:g}" + ("" if int(steps) else "_untrained")
    config.method = {
        "name": "bottleneck",
        "rate": rate,
        "steps": int(steps),
        "weighting": "fisher",
        "grid": "free",
        "min_bits": 2,
        "max_bits": 8,
        "calibration_batches": 8,
        "learning_rate": 0.01,
        "warmup": 10,
        "weight_decay": 1e-4,
        "distill": 1.0,
        "temperature": 4.0,
    }
    config.rules = (("stage.*/input", {"name": "bitplane", "bits": 8}),)
    return config
