"""The bitwise bottleneck on the digits: float training, planes under a rate, fine-tuning.

Inputs of all layers behind a ReLU at 3 planes on average, weights at 8 bits, under the steps of
digits/float.py. Results: results/README.md. Command:
  bitjax train digits/bottleneck --workdir runs/digits-bottleneck
"""

from bitjax.configs.digits.float import SCHEDULE
from bitjax.configs.digits.float import get_config as float_config


def get_config():
    config = float_config()
    config.method = {
        "name": "bottleneck",
        "rate": 3.0,
        "float_steps": 800,
        "float_learning_rate": 0.05,
        "steps": 400,
        **SCHEDULE,
        "learning_rate": 0.01,
    }
    config.rules = (
        ("conv1/input", {"name": "uniform", "bits": 8}),  # the normalised image
        (".*/kernel", {"name": "uniform", "bits": 8, "granularity": "per_channel"}),
        (".*/input", {"name": "bitplane", "bits": 8}),
    )
    return config
