"""BitPruning's headline for ResNet-18 on ImageNet: 3.76 bits on average over all layers.

From a finished run of resnet18_float.py: 30 epochs, of which the last fifth with the bits frozen.
One bitlength per tensor, weights and inputs of every layer, first and last too; the budget is hard
and holds on integers. The paper's abstract reports 3.76 bits within 0.5 points of float accuracy.
Its schedule is not known to us; this one is ours, with learned clips (weights' per channel) in
place of its ranges from minimum to maximum. Accelerator; no result yet. Command:
  python -m experiments.train --config configs/imagenet/resnet18_bitpruning.py \\
      --config.init_from=runs/resnet18 --workdir runs/resnet18-bp
"""

from bitjax.configs.imagenet.resnet18_float import get_config as float_config
from bitjax.configs.imagenet.resnet50_float import EPOCH

# 0.0 is a code from the start, so that the freeze moves no level.
LEARNED = {
    "name": "bitlength",
    "init": 6.0,
    "range": "learned",
    "clip_bits": 5.0,
    "zero_on_grid": True,
    "min_bits": 2.0,
}
WEIGHTS = {**LEARNED, "range_granularity": "per_channel"}


def get_config():
    config = float_config()
    config.name = "imagenet/resnet18_bitpruning"
    config.init_from = "runs/resnet18"
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
    }
    config.rules = (
        (".*/kernel", WEIGHTS),
        ("stem/input", {**LEARNED, "signed": True}),
        (".*/input", {**LEARNED, "signed": False}),
    )
    config.budgets = ({"metric": "bits", "limit": 3.76},)
    return config
