"""Ternary weight networks on the digits, with 2-bit activations, trained from scratch.

The layers and the steps of tsq.py; the weights' codes follow them at every step. Results:
results/README.md. Command:
  bitjax train digits/twn --workdir runs/digits-twn
"""

from bitjax.configs.digits.float import SCHEDULE
from bitjax.configs.digits.tsq import get_config as tsq_config


def get_config():
    config = tsq_config()
    config.method = {"name": "twn", "steps": 1200, **SCHEDULE}
    image, ends, _, inputs = config.rules
    config.rules = (image, ends, (".*/kernel", {"name": "ternary", "fit": "twn"}), inputs)
    return config
