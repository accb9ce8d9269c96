"""BitPruning's headline for AlexNet on ImageNet: 4.13 bits on average over all layers.

torchvision's AlexNet, from a finished run of alexnet_torch_float.py, with the settings of
resnet18_bitpruning.py, which are ours, at a tenth of the rate: there are no batch norms. The
paper's abstract reports 4.13 bits within 2.0 points of float accuracy; which AlexNet it is, it does
not say. Accelerator; no result yet. Command:
  python -m experiments.train --config configs/imagenet/alexnet_bitpruning.py \\
      --config.init_from=runs/alexnet-torch --workdir runs/alexnet-torch-bp
"""

from bitjax.configs.imagenet.alexnet_torch_float import get_config as float_config
from bitjax.configs.imagenet.resnet18_bitpruning import LEARNED, WEIGHTS
from bitjax.configs.imagenet.resnet18_bitpruning import get_config as pruning_config


def get_config():
    config = float_config()
    config.name = "imagenet/alexnet_bitpruning"
    config.init_from = "runs/alexnet-torch"
    # What dropout leaves is scaled up: a range learned on that is too wide in evaluation.
    config.model.dropout = 0.0
    config.method = {**pruning_config().method, "learning_rate": 1e-3}
    config.rules = (
        (".*/kernel", WEIGHTS),
        ("conv1/input", {**LEARNED, "signed": True}),
        (".*/input", {**LEARNED, "signed": False}),
    )
    config.budgets = ({"metric": "bits", "limit": 4.13},)
    return config
