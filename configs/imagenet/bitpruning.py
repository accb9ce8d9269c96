"""BitPruning's headlines on ImageNet: the fewest bits on average over all layers.

`:MODEL` behind the file's name is one of LIMITS, resnet18 without. From a finished run of float.py:
30 epochs, of which the last fifth with the bits frozen. One bitlength per tensor, weights and
inputs of every layer, first and last too; the budget is hard and holds on integers. The paper's
abstract reports 3.76 bits for ResNet-18 and 4.36 for MobileNetV2, within 0.5 points of float
accuracy, and 4.13 for AlexNet (which one, it does not say) within 2.0 points. Its schedule is not
known to us; this one is ours, with learned clips (weights' per channel) in place of its ranges from
minimum to maximum. Accelerator; no result yet. Command:
  bitjax train imagenet/bitpruning:resnet18 --config.init_from=runs/resnet18 --workdir runs/r18-bp
"""

from bitjax.configs.imagenet.float import EPOCH, check
from bitjax.configs.imagenet.float import get_config as float_config

LIMITS = {"resnet18": 3.76, "alexnet_torch": 4.13, "mobilenet_v2": 4.36}
SIGNED = {
    "resnet18": "stem/input",
    "alexnet_torch": "conv1/input",
    "mobilenet_v2": "(stem|last|.*/expand)/input",  # these leave linear bottlenecks
}
# Without batch norms a tenth of the rate; MobileNetV2's weight decay is its float run's.
CHANGES = {"alexnet_torch": {"learning_rate": 1e-3}, "mobilenet_v2": {"weight_decay": 4e-5}}
# 0.0 is a code from the start, so that the freeze moves no level.
LEARNED = {
    "name": "bitlength",
    "init": 6.0,
    "range": "learned",
    "clip_bits": 5.0,
    "zero_on_grid": True,
    "min_bits": 2.0,
}


def get_config(model="resnet18"):
    check(model, LIMITS)
    config = float_config(model)
    config.name = f"imagenet/{model.removesuffix('_torch')}_bitpruning"
    config.init_from = f"runs/{model.replace('_', '-')}"
    if "dropout" in config.model:
        # What dropout leaves is scaled up: a range learned on that is too wide in evaluation.
        config.model.dropout = 0.0
    config.method = {
        "name": "bitpruning",
        "steps": 30 * EPOCH,
        "fine_tune": 0.2,
        "settle": 0.05,
        "gamma": 0.0,  # the budget alone moves the bits
        "rounding": "budget",
        "learning_rate": 0.01,
        "warmup": 500,
        "weight_decay": 1e-4,
        "bits_learning_rate": 1e-3,
        "range_learning_rate": 1e-3,
        **CHANGES.get(model, {}),
    }
    config.rules = (
        (".*/kernel", {**LEARNED, "range_granularity": "per_channel"}),
        (SIGNED[model], {**LEARNED, "signed": True}),
        (".*/input", {**LEARNED, "signed": False}),
    )
    config.budgets = ({"metric": "bits", "limit": LIMITS[model]},)
    return config
