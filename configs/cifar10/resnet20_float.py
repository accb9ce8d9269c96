"""The published float ResNet-20 on CIFAR-10, evaluated: the start of every config of this folder.

Expected: 91.73 % top-1 (its author's figure, reproduced). Command (20 s on 2 cores):
  python -m experiments.train --config configs/cifar10/resnet20_float.py --workdir runs/r20-float
"""

from configs.base import get_config as base


def get_config():
    config = base()
    config.model.name = "resnet20"
    config.init_from = "pretrained/cifar10_resnet20.npz"
    config.data.name = "cifar10"
    config.data.mean = (0.485, 0.456, 0.406)  # what the published weights were trained with
    config.data.std = (0.229, 0.224, 0.225)
    config.data.augmentation = "crop_flip"
    config.method = {
        "name": "full_precision",
        "steps": 0,
        "learning_rate": 0.01,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "warmup": 10,
    }
    return config
