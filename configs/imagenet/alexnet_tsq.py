"""Two-step quantization of AlexNet on ImageNet: ternary weights, 2-bit activations.

First convolution and head float; from a finished run of alexnet_float.py, 20 epochs with 2-bit
activations, then the layers solved from 12,800 images. The paper's abstract reports a loss of about
0.5 points to float. Accelerator; no result yet. Command:
  python -m experiments.train --config configs/imagenet/alexnet_tsq.py --workdir runs/alexnet-tsq
"""

from bitjax.configs.imagenet.alexnet_float import get_config as float_config
from bitjax.configs.imagenet.resnet50_float import EPOCH


def get_config():
    config = float_config()
    config.name = "imagenet/alexnet_tsq"
    config.init_from = "runs/alexnet"
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
        ("(conv[2-5]|fc[12])/kernel", {"name": "ternary", "fit": "stored"}),
        ("(conv[2-5]|fc[12])/input", {"name": "halfwave", "bits": 2}),
    )
    return config
