"""Two-step quantization on ImageNet: ternary weights, 2-bit activations.

`:MODEL` behind the file's name is one of LAYERS, alexnet without. First convolution and head
float; from a finished run of float.py, 20 epochs with 2-bit activations, then the layers solved
from 12,800 images. For AlexNet the paper's abstract reports a loss of about 0.5 points to float; no
figure for VGG-16 is known for certain. Accelerator; no result yet. Command:
  bitjax train imagenet/tsq:alexnet --config.init_from=runs/alexnet --workdir runs/alexnet-tsq
"""

from bitjax.configs.imagenet.float import EPOCH, check
from bitjax.configs.imagenet.float import get_config as float_config

LAYERS = {"alexnet": "(conv[2-5]|fc[12])", "vgg16": "(conv(1_2|[2-5]_.)|fc[12])"}
# VGG-16's levels are measured; AlexNet's are a unit Gaussian's.
INPUTS = {"alexnet": {}, "vgg16": {"fit": "measured"}}


def get_config(model="alexnet"):
    check(model, LAYERS)
    config = float_config(model)
    config.name = f"imagenet/{model}_tsq"
    config.init_from = f"runs/{model}"
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
        (f"{LAYERS[model]}/kernel", {"name": "ternary", "fit": "stored"}),
        (f"{LAYERS[model]}/input", {"name": "halfwave", "bits": 2, **INPUTS[model]}),
    )
    return config
