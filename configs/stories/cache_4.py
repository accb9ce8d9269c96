"""Keys and values at 4.0 bits on average as they enter the cache; weights stay as published.

Every channel of a head has a range of its own, fixed after calibration, and bits of its own, which
BitPruning learns from the float network: a rate of 0 holds the weights. Target: at most 1.02 of
float's perplexity (3.868). Results: results/stories.md. Command (4 minutes on 2 cores):
  bitjax train stories/cache_4 --workdir runs/stories-cache
"""

from bitjax.configs.stories.float import TRAINING
from bitjax.configs.stories.float import get_config as float_config

CACHES = ".*_cache"


def get_config(steps="200"):
    config = float_config()
    config.method = {
        "name": "bitpruning",
        "steps": int(steps),
        "fine_tune": 0.0,
        **TRAINING,
        "learning_rate": 0.0,
        "bits_learning_rate": 0.03,
    }
    learned = {
        "name": "bitlength",
        "init": 4.5,
        "min_bits": 2.0,
        "granularity": "per_channel",
        "zero_on_grid": True,
    }
    config.rules = ((CACHES, learned),)
    config.budgets = ({"metric": "bits", "limit": 4.0, "sites": CACHES},)
    return config
