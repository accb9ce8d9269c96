"""LSQ on the digits: fixed bits, learned scales, trained from scratch under float's schedule.

W3A3, all layers: the average of digits/bitpruning.py. Results: results/README.md. Command:
  bitjax train digits/lsq --workdir runs/digits-lsq
"""

from bitjax.configs.digits.float import get_config as float_config


def get_config():
    config = float_config()
    config.method = {**config.method, "name": "lsq"}
    learned = {"name": "lsq", "bits": 3}
    config.rules = (
        (".*/kernel", learned),
        ("conv1/input", learned),  # the normalised image
        (".*/input", {**learned, "signed": False}),  # after a ReLU
    )
    return config
