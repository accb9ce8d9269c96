"""MobileNetV2 on ImageNet in float: what the quantized configs start from and are compared with.

torchvision's settings: 300 epochs of batch 256, peak rate 0.045, weight decay 4e-5; the rate falls
as a cosine, theirs by 2 % every epoch. torchvision's weights have 71.88 % top-1. Accelerator;
ImageNet must be prepared as a TFDS data set. No result yet. Command:
  python -m experiments.train --config configs/imagenet/mobilenet_v2_float.py \\
      --workdir runs/mobilenet-v2
"""

from bitjax.configs.imagenet.resnet50_float import EPOCH
from bitjax.configs.imagenet.resnet50_float import get_config as base_config


def get_config():
    config = base_config()
    config.model = {"name": "mobilenet_v2", "num_classes": 1000, "dropout": 0.2}
    config.method = {
        "name": "full_precision",
        "steps": 300 * EPOCH,
        "learning_rate": 0.045,
        "momentum": 0.9,
        "weight_decay": 4e-5,
        "warmup": 5 * EPOCH,
    }
    return config
