"""ResNet-18 on ImageNet in float: what the quantized configs start from and are compared with.

The settings of resnet50_float.py, which are torchvision's for both (90 epochs of batch 256, peak
rate 0.1, weight decay 1e-4) but for the rate, which falls as a cosine. torchvision's weights have
69.76 % top-1. Accelerator; ImageNet must be prepared as a TFDS data set. No result yet. Command:
  python -m experiments.train --config configs/imagenet/resnet18_float.py --workdir runs/resnet18
"""

from bitjax.configs.imagenet.resnet50_float import get_config as base_config


def get_config():
    config = base_config()
    config.model = {"name": "resnet18", "num_classes": 1000}
    return config
