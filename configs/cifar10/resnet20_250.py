"""Every method on the published ResNet-20, CIFAR-10, two operating points each, at most 250 steps.

The rows of `python -m experiments.reproduce cifar10-resnet20`. All share the float network as
teacher, 8 bits at stem and head, the rate's shape and weight decay; steps are those of training.
BitPruning's settings, TSQ's and the bottleneck's are those of longer configs of this folder, TSQ's
with fewer steps and starts at 2 bits, BitPruning's bits moving faster by as much as there are fewer
steps; the others have BitPruning's rate. Held-out images chose one setting at 250 steps, the rates
at which scales and clips are learned (results/lab_book.md). Bits are learned under uniform's own
BOPs and bytes. What comes behind the file's name is one of POINTS. Results:
results/cifar10-resnet20.md. Command (minutes on 2 cores):
  bitjax train cifar10/resnet20_250:lsq_w4a4 --workdir runs/lsq
"""

from bitjax.configs.cifar10.resnet20_bitpruning import get_config as bitpruning_config
from bitjax.configs.cifar10.resnet20_bottleneck_a3 import get_config as bottleneck_a3_config
from bitjax.configs.cifar10.resnet20_bottleneck_a4 import get_config as bottleneck_a4_config
from bitjax.configs.cifar10.resnet20_float import TRAINING, ends
from bitjax.configs.cifar10.resnet20_float import get_config as float_config
from bitjax.configs.cifar10.resnet20_tsq_a2 import get_config as tsq_config

STEPS = 250
PER_CHANNEL = {"granularity": "per_channel"}
# BOPs and bytes of kernel codes that `uniform` has at 4 and at 3 bits, the ends with theirs.
UNIFORM_COSTS = {"4": (670_081_024.0, 134_704.0), "3": (389_324_800.0, 101_296.0)}
POINTS = (
    "float",
    "float_250",
    "uniform_w4a4",
    "uniform_w3a3",
    "uniform_w8a4",
    "uniform_w8a3",
    "lsq_w4a4",
    "lsq_w3a3",
    "pact_w4a4",
    "pact_w3a3",
    "hwgq_w1a4",
    "hwgq_w1a2",
    "twn_w2a4",
    "twn_w2a2",
    "bitpruning_4",
    "bitpruning_3",
    "tsq_w2a4",
    "tsq_w2a2",
    "bottleneck_w8a4",
    "bottleneck_w8a3",
)


def get_config(point="lsq_w4a4"):
    if point not in POINTS:
        raise ValueError(f"behind the config's name comes one of {', '.join(POINTS)}, got {point}")
    method, _, bits = point.partition("_")
    own = {
        "float": full_precision,
        "bitpruning": bitpruning,
        "tsq": tsq,
        "bottleneck": bottleneck,
    }
    config = own[method](bits) if method in own else fixed_bits(method, bits)
    config.name = f"cifar10/resnet20_250/{point}"
    config.task = {"name": "classification", "kl": True}
    config.checkpoint_every = 50
    return config


def full_precision(steps):
    return float_config(steps or "0")


def fixed_bits(method, bits):
    weight_bits, input_bits = (int(digit) for digit in bits[1:].split("a"))
    ranges = {"name": "uniform", "range": "mse"}
    kernel, inputs = {
        "uniform": (
            {**ranges, **PER_CHANNEL, "bits": weight_bits, "signed": True},
            {**ranges, "bits": input_bits, "signed": False},
        ),
        "lsq": (
            {"name": "lsq", "bits": weight_bits, **PER_CHANNEL},
            {"name": "lsq", "bits": input_bits, "signed": False},
        ),
        "pact": (  # its weights' grid has no learned range
            {"name": "uniform", "range": "minmax", "bits": weight_bits, **PER_CHANNEL},
            {"name": "pact", "bits": input_bits},
        ),
        "hwgq": ({"name": "binary"}, {"name": "hwgq", "bits": input_bits, "fit": "measured"}),
        "twn": (
            {"name": "ternary", "fit": "twn"},
            {"name": "lsq", "bits": input_bits, "signed": False},
        ),
    }[method]
    config = float_config()
    config.method = {"name": method, "steps": STEPS, **TRAINING}
    if method in ("lsq", "twn"):  # inputs, or kernels too, have learned scales
        config.method.update({"range_learning_rate": 0.02})
    config.rules = (*ends(), (".*/kernel", kernel), (".*/input", inputs))
    return config


def bitpruning(limit):
    config = bitpruning_config()
    config.method.update({"steps": STEPS, "bits_learning_rate": 0.035 * 600 / STEPS})
    config.method.range_learning_rate = 0.05
    bops, size = UNIFORM_COSTS[limit]
    config.budgets = ({"metric": "bops", "limit": bops}, {"metric": "bytes", "limit": size})
    return config


def tsq(bits):
    config = tsq_config("a2" if bits == "w2a2" else "a4_tuned")  # the latter trains 200 steps
    if bits == "w2a2":
        config.method.update({"code_steps": 150, "fine_tune_steps": 100, "starts": 1})
    config.rules = (*ends(), *config.rules)
    return config


def bottleneck(bits):
    config = (bottleneck_a4_config if bits == "w8a4" else bottleneck_a3_config)(str(STEPS))
    kernel = {"name": "uniform", "bits": 8, "range": "mse", "signed": True, **PER_CHANNEL}
    config.rules = (*ends(), (".*/kernel", kernel), *config.rules)
    return config
