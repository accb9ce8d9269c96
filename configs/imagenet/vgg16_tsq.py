"""Two-step quantization of VGG-16 on ImageNet: ternary weights, 2-bit activations.

First convolution and head float; from a finished run of vgg16_float.py, 20 epochs with 2-bit
activations, then the layers solved from 12,800 images. No figure of the paper is known for certain.
Accelerator; no result yet. Command:
  python -m experiments.train --config configs/imagenet/vgg16_tsq.py --workdir runs/vgg16-tsq
"""

from bitjax.configs.imagenet.resnet50_float import EPOCH
from bitjax.configs.imagenet.vgg16_float import get_config as float_config


def get_config():
    config = float_config()
    config.name = "imagenet/vgg16_tsq"
    config.init_from = "runs/vgg16"
    config.method = {
        "name": "tsq",
        "code_steps": 20 * EPOCH,
        "learning_rate": 0.01,
        "weight_decay": 5e-4,
        "warmup": 500,
        "calibration_batches": 50,
        "augment": True,
        "positions": 4,
        "ridge": 0.3,
    }
    config.rules = (
        ("(conv(1_2|[2-5]_.)|fc[12])/kernel", {"name": "ternary", "fit": "stored"}),
        ("(conv(1_2|[2-5]_.)|fc[12])/input", {"name": "halfwave", "bits": 2, "fit": "measured"}),
    )
    return config
