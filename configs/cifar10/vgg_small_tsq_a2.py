"""Two-step quantization of VGG-small on CIFAR-10: ternary weights, 2-bit half-wave activations.

The paper's setting, as far as it is known: first convolution and head float, levels of a unit
Gaussian, from a float run of vgg_small_float.py. Accelerator; no result yet. Command:
  bitjax train cifar10/vgg_small_tsq_a2 --workdir runs/vgg-tsq
`:w32` after the file's name is a quarter of the width, 400 steps of step 1 from the float run's
1,000, for a CPU: 69.33 % after step 1, 68.54 % with ternary weights (float 68.53 %).
"""

from bitjax.configs.cifar10.vgg_small_float import EPOCH
from bitjax.configs.cifar10.vgg_small_float import get_config as float_config


def get_config(arg="w128"):
    config = float_config(arg)
    short = config.model.width < 128
    config.name = config.name.replace("float", "tsq_a2")
    config.init_from = "runs/vgg-small-w32" if short else "runs/vgg-small"
    config.method = {
        "name": "tsq",
        "code_steps": 400 if short else 100 * EPOCH,
        "learning_rate": 0.01,
        "weight_decay": 5e-4,
        "warmup": 20,
        "calibration_batches": 20,
        "augment": True,
        "positions": 10,
        "ridge": 0.3,
        "reestimate_batches": 0,
    }
    config.rules = (
        ("conv[2-6]/kernel", {"name": "ternary", "fit": "stored"}),
        ("conv[2-6]/input", {"name": "halfwave", "bits": 2}),
    )
    return config
