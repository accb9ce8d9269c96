"""Ternary weight networks on the digits, with 2-bit activations, trained from scratch.

The layers and the steps of tsq.py; the weights' codes follow them at every step. Results:
results/README.md. Command:
  python -m experiments.train --config configs/digits/twn.py --workdir runs/digits-twn
"""

from bitjax.configs.digits.tsq import get_config as tsq_config


def get_config():
    config = tsq_config()
    config.method = {
        "name": "twn",
        "steps": 1200,
        "learning_rate": 0.05,
        "weight_decay": 5e-4,
        "warmup": 20,
    }
    image, ends, _, inputs = config.rules
    config.rules = (image, ends, (".*/kernel", {"name": "ternary", "fit": "twn"}), inputs)
    return config
