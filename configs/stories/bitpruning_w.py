"""BitPruning of the weights: 3.0 bits on average over the 35 kernels, learned per kernel.

The embedding stays float, as in the other configs of this folder; `uniform_w3:600` has the same
bits fixed and the same steps. Target: at most 1.10 of float's perplexity (4.17). Command:
  bitjax train stories/bitpruning_w --workdir runs/stories-bp
"""

from bitjax.configs.stories.float import STEPS, TRAINING
from bitjax.configs.stories.float import get_config as float_config
from bitjax.configs.stories.uniform_w4 import TABLE


def get_config():
    config = float_config()
    config.method = {
        "name": "bitpruning",
        "steps": STEPS,
        "fine_tune": 0.6,
        "rounding": "budget",
        **TRAINING,
        "bits_learning_rate": 0.02,
        "range_learning_rate": 0.005,
    }
    learned = {
        "name": "bitlength",
        "init": 3.5,
        "min_bits": 2.0,
        "range": "learned",
        "clip_bits": 4.0,
        "range_granularity": "per_channel",
        "zero_on_grid": True,
    }
    config.rules = (TABLE, (".*/kernel", learned))
    config.budgets = ({"metric": "bits", "limit": 3.0, "sites": "layers_.*/kernel"},)
    return config
