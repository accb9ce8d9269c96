"""PACT on the digits: learned clips on activations, weights on their own range, from scratch.

W3A3, all layers: the average of digits/bitpruning.py. Results: results/README.md. Command:
  bitjax train digits/pact --workdir runs/digits-pact
"""

from bitjax.configs.digits.float import get_config as float_config


def get_config():
    config = float_config()
    config.method = {**config.method, "name": "pact"}
    config.rules = (
        (".*/kernel", {"name": "uniform", "bits": 3, "range": "minmax"}),
        ("conv1/input", {"name": "pact", "bits": 3, "signed": True}),  # the normalised image
        (".*/input", {"name": "pact", "bits": 3}),
    )
    return config
