"""Two-step quantization on the digits: 2-bit activations from scratch, then ternary weights solved.

Inner layers ternary with 2-bit inputs, the first kernel and the head's at 8 bits; float.py's 1200
steps, the last 200 with the ternary codes held: no gradient step changes those weights. Target:
within 1.0 point of float. Results: results/README.md. Command:
  bitjax train digits/tsq --workdir runs/digits-tsq
"""

from bitjax.configs.digits.float import SCHEDULE
from bitjax.configs.digits.float import get_config as float_config


def get_config():
    config = float_config()
    config.method = {
        "name": "tsq",
        "code_steps": 1000,
        "fine_tune_steps": 200,
        **SCHEDULE,
        "calibration_batches": 11,
        "positions": 16,
    }
    ends = {"name": "uniform", "bits": 8, "granularity": "per_channel"}
    config.rules = (
        ("conv1/input", {"name": "uniform", "bits": 8}),  # the normalised image
        ("(conv1|head)/kernel", ends),
        (".*/kernel", {"name": "ternary", "fit": "stored"}),
        (".*/input", {"name": "lsq", "bits": 2, "signed": False}),
    )
    return config
