"""The bitwise bottleneck's headline: ResNet-50, W8, activations at 4 planes on average.

From a finished run of float.py:resnet50; 2,048 training images decide on scales and rates, then 5
epochs of fine-tuning as the authors' README has it. The inputs of all layers inside the blocks are
coded; the image, the stem and the head stay float, as theirs do. The README of their program (arXiv
2006.05210) reports float 75.6 % top-1, 5 planes 75.7, 4 planes 74.8, on ResNet-50 v2; this one is
v1.5, so that only differences to its own float compare. `:5` behind the file's name gives 5 planes.
Accelerator; no result yet. Command:
  bitjax train imagenet/bottleneck --config.init_from=runs/resnet50 --workdir runs/resnet50-a4
"""

from bitjax.configs.imagenet.float import EPOCH
from bitjax.configs.imagenet.float import get_config as float_config


def get_config(rate="4"):
    config = float_config()
    config.name = f"imagenet/resnet50_bottleneck_a{float(rate):g}"
    config.init_from = "runs/resnet50"
    config.method = {
        "name": "bottleneck",
        "rate": float(rate),
        "steps": 5 * EPOCH,
        "weighting": "fisher",
        "calibration_batches": 8,
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "warmup": 100,
    }
    config.rules = (
        ("stage.*/kernel", {"name": "uniform", "bits": 8, "granularity": "per_channel"}),
        ("stage.*/input", {"name": "bitplane", "bits": 8}),
    )
    return config
