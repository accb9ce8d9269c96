"""The published float ResNet-20 on CIFAR-10, evaluated: the start of every config of this folder.

Expected: 91.73 % top-1 (its author's figure, reproduced). Command (20 s on 2 cores):
  bitjax train cifar10/resnet20_float --workdir runs/r20-float
`:600` after the file's name is the control of the quantized ones: their 600 steps and loss, float.
"""

from bitjax.configs.base import get_config as base

SHAPE = {"learning_rate": 0.01, "warmup": 10, "weight_decay": 1e-4}
TRAINING = {**SHAPE, "distill": 1.0, "temperature": 4.0}  # the float network teaches


def ends():
    """The first and the last layer have 8 bits whatever the others have."""
    eight = {"name": "uniform", "bits": 8}
    return (
        ("(stem|head)/kernel", {**eight, "signed": True, "granularity": "per_channel"}),
        ("stem/input", eight),  # the normalised image
        ("head/input", {**eight, "signed": False}),
    )


def get_config(steps="0"):
    config = base()
    config.model.name = "resnet20"
    config.init_from = "pretrained/cifar10_resnet20.npz"
    config.data.name = "cifar10"
    config.data.mean = (0.485, 0.456, 0.406)  # what the published weights were trained with
    config.data.std = (0.229, 0.224, 0.225)
    config.data.augmentation = "crop_flip"
    config.method = {
        "name": "full_precision",
        "steps": int(steps),
        "momentum": 0.9,
        **(TRAINING if int(steps) else SHAPE),
    }
    if int(steps):
        config.name = f"cifar10/resnet20_float_{steps}"
    return config
