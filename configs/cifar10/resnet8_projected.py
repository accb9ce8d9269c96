"""A ResNet-8 with projected shortcuts on CIFAR-10, and its ternary kernels without training.

The rows of `python -m experiments.reproduce cifar10-resnet8-solved`, a second network beside the
published ResNet-20: three blocks, and 1x1 convolutions where a shortcut changes its shape. `float`
is trained from scratch; the others start from its run and have ternary kernels inside, stem and
head at 8 bits, solved from the same 512 images as in resnet20_solved.py. What comes behind the
file's name is one of POINTS. Results: results/cifar10-resnet8-solved.md. Command (half an hour of
a core):
  bitjax train cifar10/resnet8_projected:float --workdir runs/resnet8
"""

from bitjax.configs.base import get_config as base
from bitjax.configs.cifar10.resnet20_float import get_config as resnet20_config
from bitjax.configs.cifar10.resnet20_solved import BATCH, IMAGES, SOLVERS, method, rules

POINTS = ("float", *(f"{solver}_t" for solver in SOLVERS))
STEPS = 8000  # of batch 128: 20 epochs


def get_config(point="solved_t"):
    if point not in POINTS:
        raise ValueError(f"behind the config's name comes one of {', '.join(POINTS)}, got {point}")
    config = base()
    config.name = f"cifar10/resnet8_projected/{point}"
    config.model = {"name": "bitjax.models:CifarResNet", "depth": 8, "shortcut": "project"}
    config.data = resnet20_config().data
    config.data.batch_size = BATCH
    solver = point.partition("_")[0]
    if solver == "float":
        training(config)
        return config
    config.init_from = "runs/resnet8"
    config.task = {"name": "classification", "kl": True}
    config.calibration_size = IMAGES
    config.rules = rules(solver, "t", 0)
    config.method = method(solver, "t")
    return config


def training(config):
    config.method = {
        "name": "full_precision",
        "steps": STEPS,
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "warmup": 200,
    }
    config.checkpoint_every = 1000
    config.log_every = 100
