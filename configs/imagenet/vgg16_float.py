"""VGG-16 with batch norms on ImageNet in float: the start of quantized ones and their comparison.

torchvision's settings for its `vgg16_bn` (90 epochs of batch 256, peak rate 0.1, weight decay
1e-4), which are those of resnet50_float.py; the rate falls as a cosine, and there is no dropout.
torchvision's weights have 73.36 % top-1. Accelerator; ImageNet must be prepared as a TFDS data set.
No result yet. Command:
  python -m experiments.train --config configs/imagenet/vgg16_float.py --workdir runs/vgg16
"""

from bitjax.configs.imagenet.resnet50_float import get_config as base_config


def get_config():
    config = base_config()
    config.model = {"name": "vgg16", "num_classes": 1000}
    return config
