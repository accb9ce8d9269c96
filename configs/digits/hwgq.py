"""HWGQ on the digits: binary weights and 2-bit half-wave activations, trained from scratch.

The layers and the steps of tsq.py. Levels are measured on the data, since the network's batch
normalisation has a scale and a shift. Results: results/README.md. Command:
  bitjax train digits/hwgq --workdir runs/digits-hwgq
"""

from bitjax.configs.digits.float import SCHEDULE
from bitjax.configs.digits.tsq import get_config as tsq_config


def get_config():
    config = tsq_config()
    config.method = {"name": "hwgq", "steps": 1200, **SCHEDULE}
    image, ends, _, _ = config.rules
    binary = (".*/kernel", {"name": "binary"})
    config.rules = (
        image,
        ends,
        binary,
        (".*/input", {"name": "hwgq", "bits": 2, "fit": "measured"}),
    )
    return config
