"""The plain baseline on the digits: fixed bits, min-max ranges, trained under float's schedule.

W3A3, all layers: the average of digits/bitpruning.py. Results: results/README.md. Command:
  bitjax train digits/uniform --workdir runs/digits-uniform
"""

from bitjax.configs.digits.float import get_config as float_config


def get_config():
    config = float_config()
    config.method = {**config.method, "name": "uniform"}
    config.rules = ((".*", {"name": "uniform", "bits": 3, "range": "minmax"}),)
    return config
