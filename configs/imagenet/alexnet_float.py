"""AlexNet with batch norms on ImageNet in float: the start of quantized ones and their comparison.

320,000 steps, peak rate 0.02 and weight decay 5e-4 as HWGQ trains its AlexNet, falling as a cosine
rather than a line; batches of 256 and crops of 227x227 as in TSQ's demonstration. Accelerator;
ImageNet must be prepared as a TFDS data set. No result yet. Command:
  python -m experiments.train --config configs/imagenet/alexnet_float.py --workdir runs/alexnet
"""

from bitjax.configs.imagenet.resnet50_float import EPOCH
from bitjax.configs.imagenet.resnet50_float import get_config as base_config


def get_config():
    config = base_config()
    config.model = {"name": "alexnet_bn", "num_classes": 1000}
    config.data.image_size = 227
    config.method = {
        "name": "full_precision",
        "steps": 320_000,
        "learning_rate": 0.02,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "warmup": EPOCH,
    }
    return config
