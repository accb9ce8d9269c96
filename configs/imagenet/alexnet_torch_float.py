"""torchvision's AlexNet on ImageNet in float: the start of alexnet_bitpruning.py, its comparison.

Not the network of alexnet_float.py, which has batch norms and wider layers. torchvision's settings:
90 epochs of batch 256, rate 0.01, weight decay 1e-4, dropout before the two hidden dense layers;
the rate falls as a cosine, theirs by steps. torchvision's weights have 56.52 % top-1. Accelerator;
ImageNet must be prepared as a TFDS data set. No result yet. Command:
  python -m experiments.train --config configs/imagenet/alexnet_torch_float.py \\
      --workdir runs/alexnet-torch
"""

from bitjax.configs.imagenet.resnet50_float import EPOCH
from bitjax.configs.imagenet.resnet50_float import get_config as base_config


def get_config():
    config = base_config()
    config.model = {"name": "alexnet", "num_classes": 1000, "dropout": 0.5}
    config.method = {
        "name": "full_precision",
        "steps": 90 * EPOCH,
        "learning_rate": 0.01,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "warmup": 5 * EPOCH,
    }
    return config
