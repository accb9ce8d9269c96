"""A published, pruned SqueezeNet on 1,000 images of ImageNet, one a class; nothing is trained.

The network is SqueezeNet 1.0 of Han et al.'s Deep Compression: two thirds of its weights are exact
zeros, which every row keeps, and its authors' coded file has 660 kB. The 500 images of even labels
calibrate, those of odd labels judge, by top-1 accuracy and by the mean divergence KL of the float
network's classes from the model's, which 500 images tell apart far better. On them the float
network has 64.6 % top-1, and 57.5 % on the whole validation set (published).

Behind the file's name comes one of POINTS. All 26 convolutions have the bits that are named, and
kernels a scale per filter. `nearest` rounds, `gptq` and `solved` solve layer by layer from 128
images, `bottleneck` gives inputs planes and rounds kernels, `measured` chooses the bits of each
kernel by what they do to the outputs, within the bytes that equal bits take. An independent program
found for nearest kernels of symmetric codes: W8 64.0 % and KL 0.0073, W4 27.2 and 2.13, W3 1.6 and
4.99. Results: results/imagenet-squeezenet.md. Command (minutes of 2 cores):
  bitjax train imagenet/squeezenet:solved_w4 --workdir runs/squeezenet-solved-w4
"""

from bitjax.configs.base import get_config as base_config
from bitjax.configs.stories.solved_w4 import GPTQ

POINTS = (
    "float",
    "nearest_w8",
    "gptq_w8",
    "solved_w8",
    "bottleneck_w8a8",
    "measured_w8a8",
    "nearest_w4",
    "gptq_w4",
    "solved_w4",
    "bottleneck_w4a8",
    "solved_w4a8",
    "measured_w4a8",
    "nearest_w3",
    "gptq_w3",
    "solved_w3",
)
# Weights of all kernels, whose bytes at equal bits are the budgets of `measured`.
WEIGHTS = 1_244_448
IMAGE, KERNELS = "conv1/input", ".*/kernel"


def get_config(point="float"):
    if point not in POINTS:
        raise ValueError(f"behind the config's name comes one of {', '.join(POINTS)}, got {point}")
    config = base_config()
    config.name = f"imagenet/squeezenet/{point}"
    config.model = {"name": "squeezenet", "num_classes": 1000}
    config.init_from = "imagenet_sample/squeezenet.npz"
    config.data.name = "imagenet_sample"
    config.data.batch_size = 64
    config.data.eval_batch_size = 50
    config.data.mean = (123 / 255, 117 / 255, 104 / 255)  # subtracted from bytes, and no more
    config.data.std = (1 / 255, 1 / 255, 1 / 255)
    config.task = {"name": "classification", "kl": True}
    config.calibration_size = 64
    method, _, bits = point.partition("_")
    weights, _, inputs = bits[1:].partition("a")
    if method == "float":
        config.method = {"name": "full_precision", "steps": 0}
        return config
    make = {"nearest": nearest, "gptq": gptq, "solved": solved}
    make |= {"bottleneck": bottleneck, "measured": measured}
    make[method](config, int(weights))
    if inputs:
        planes = method == "bottleneck"
        config.rules += ((IMAGE, ranged(8)), (".*/input", behind_relu(int(inputs), planes)))
    return config


def ranged(bits):
    """A range around 0, of least squared error."""
    return {"name": "uniform", "bits": bits, "range": "mse", "signed": True}


def behind_relu(bits, planes):
    if planes:
        return {"name": "bitplane", "bits": 8}
    return {"name": "uniform", "bits": bits, "range": "mse", "signed": False}


def nearest(config, bits):
    config.method = {"name": "uniform", "steps": 0}
    config.rules = ((KERNELS, {**ranged(bits), "granularity": "per_channel"}),)


def solved(config, bits):
    config.data.batch_size = 16
    config.method = {"name": "solved", "calibration_batches": 8, "positions": 64}
    config.rules = ((KERNELS, {"name": "low_bit", "bits": bits, "fit": "stored", "narrow": False}),)


def gptq(config, bits):
    solved(config, bits)
    config.method = {**config.method, **GPTQ}


def bottleneck(config, bits):
    nearest(config, bits)
    config.data.batch_size = 16
    config.method = {"name": "bottleneck", "rate": 8.0, "calibration_batches": 8}


def measured(config, bits):
    nearest(config, bits)
    config.data.batch_size = 16
    config.method = {
        "name": "measured",
        "calibration_batches": 8,
        "candidates": (bits - 1, bits, bits + 1, bits + 2),
        "sites": KERNELS,
        "rounds": 0,
        "trials": 16,
    }
    config.budgets = ({"metric": "bytes", "limit": WEIGHTS * bits / 8, "sites": KERNELS},)
