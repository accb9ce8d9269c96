"""The published ResNet-20 on CIFAR-10 with few bits and no training: solvers beside each other.

The rows of `python -m experiments.reproduce cifar10-resnet20-solved`. What comes behind the file's
name is one of POINTS. As in `resnet20_250`, the 18 convolutions inside have the bits that are named
(`t`: ternary) and stem and head 8; kernels have a scale per filter, and the image 8 bits where
inputs are quantized. `nearest` rounds at scales of least squared error, which `gptq` and `adaround`
share; `nearest_t` are the ternary codes of least squared error. `gptq`, `adaround` and `solved`
solve layer by layer from the same 512 images, all positions. `measured` chooses bits of kernels and
inputs by what they do to the outputs, with solved kernels, within the bytes and BOPs of equal bits;
a quarter of the positions. All 10,000 test images judge, by top-1
accuracy and by the mean divergence KL of the float network's classes from the model's in nats.
Results: results/cifar10-resnet20-solved.md. Command (minutes of 2 cores):
  bitjax train cifar10/resnet20_solved:solved_w3 --workdir runs/r20-solved-w3
"""

from bitjax.configs.cifar10.resnet20_float import ends
from bitjax.configs.cifar10.resnet20_float import get_config as float_config
from bitjax.configs.stories.solved_w4 import GPTQ

SOLVERS = ("nearest", "gptq", "adaround", "solved")
SETTINGS = ("w4", "w3", "t", "w4a4")
MEASURED = ("measured_w4a4", "measured_w3a3")
POINTS = (
    "float",
    *(f"{solver}_{bits}" for solver in SOLVERS for bits in SETTINGS),
    "solved_w3a3",
    *MEASURED,
)
# AdaRound's layers are solved for the float network's output of the layer, as its paper has it.
ADAROUND = {"start": "adaround", "target": "output", "max_sweeps": 0, "float_inputs": True}
SOLVED = {"start": "all", "float_inputs": True}
# Weights and MACs of the 18 convolutions inside.
WEIGHTS, MACS, INNER = 267_264, 40_108_032, "stage.*"
IMAGES, BATCH, ALL = 512, 128, 1024


def get_config(point="solved_w4"):
    if point not in POINTS:
        raise ValueError(f"behind the config's name comes one of {', '.join(POINTS)}, got {point}")
    config = float_config()
    config.name = f"cifar10/resnet20_solved/{point}"
    config.data.batch_size = BATCH
    config.calibration_size = IMAGES
    config.task = {"name": "classification", "kl": True}
    solver, _, bits = point.partition("_")
    if solver == "float":
        return config
    weights, _, inputs = bits.partition("a")
    config.rules = rules(solver, weights, int(inputs or 0))
    if solver == "measured":
        measured(config, int(inputs))
    else:
        config.method = method(solver, weights)
    return config


def method(solver, weights):
    if solver == "nearest":
        return {"name": "uniform", "steps": 0}
    own = {"gptq": GPTQ, "adaround": ADAROUND, "solved": SOLVED}[solver]
    if solver == "solved" and weights == "t":  # with more codes it takes minutes more
        own = {**own, "pair_moves": True}
    return {"name": "solved", "calibration_batches": IMAGES // BATCH, "positions": ALL, **own}


def measured(config, bits):
    """Bits of kernels and inputs inside, within the bytes and BOPs that equal bits take."""
    config.method = {
        "name": "measured",
        "calibration_batches": IMAGES // BATCH,
        "positions": ALL // 4,
        "sites": INNER,
        "candidates": (bits - 1, bits, bits + 1, bits + 2),
        "rounds": 1,
        "trials": 30,
    }
    config.budgets = (
        {"metric": "bytes", "limit": WEIGHTS * bits / 8, "sites": f"{INNER}/kernel"},
        {"metric": "bops", "limit": MACS * bits**2, "sites": INNER},
    )


def rules(solver, weights, inputs):
    """The rules of kernels of these bits; of inputs too, unless they are 0."""
    stem_and_head, *ends_inputs = ends()
    kernel = kernel_of(weights, stored=solver != "nearest")
    if not inputs:
        return (stem_and_head, (".*/kernel", kernel))
    ranged = {"name": "uniform", "bits": inputs, "range": "mse", "signed": False}
    return (stem_and_head, *ends_inputs, (".*/kernel", kernel), (".*/input", ranged))


def kernel_of(weights, stored):
    if weights == "t":
        return {"name": "ternary", "fit": "stored" if stored else "optimal"}
    fit = "stored" if stored else "rounded"
    return {"name": "low_bit", "bits": int(weights[1:]), "fit": fit, "narrow": False}
