"""BitPruning's headline for MobileNetV2 on ImageNet: 4.36 bits on average over all layers.

From a finished run of mobilenet_v2_float.py, with the settings of resnet18_bitpruning.py, which are
ours, but for the weight decay, the float run's. The paper's abstract reports 4.36 bits within 0.5
points of float accuracy. Inputs of `expand` and `last` are signed: they leave linear bottlenecks.
Accelerator; no result yet. Command:
  python -m experiments.train --config configs/imagenet/mobilenet_v2_bitpruning.py \\
      --config.init_from=runs/mobilenet-v2 --workdir runs/mobilenet-v2-bp
"""

from bitjax.configs.imagenet.mobilenet_v2_float import get_config as float_config
from bitjax.configs.imagenet.resnet18_bitpruning import LEARNED, WEIGHTS
from bitjax.configs.imagenet.resnet18_bitpruning import get_config as pruning_config


def get_config():
    config = float_config()
    config.name = "imagenet/mobilenet_v2_bitpruning"
    config.init_from = "runs/mobilenet-v2"
    # What dropout leaves is scaled up: a range learned on that is too wide in evaluation.
    config.model.dropout = 0.0
    config.method = {**pruning_config().method, "weight_decay": 4e-5}
    config.rules = (
        (".*/kernel", WEIGHTS),
        ("(stem|last|.*/expand)/input", {**LEARNED, "signed": True}),
        (".*/input", {**LEARNED, "signed": False}),
    )
    config.budgets = ({"metric": "bits", "limit": 4.36},)
    return config
