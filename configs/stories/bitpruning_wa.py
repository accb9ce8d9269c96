"""BitPruning of weights and inputs: 4.0 bits on average over the 35 kernels, 6.0 over their inputs.

Every kernel and every input of a layer has a bitlength of its own; what the attention multiplies
stays float. Command: bitjax train stories/bitpruning_wa --workdir runs/stories-bp-wa
"""

from bitjax.configs.stories.bitpruning_w import LEARNED
from bitjax.configs.stories.float import TRAINING
from bitjax.configs.stories.float import get_config as float_config


def get_config():
    config = float_config()
    config.method = {
        "name": "bitpruning",
        "steps": 600,
        "fine_tune": 0.7,
        "rounding": "budget",
        **TRAINING,
        "bits_learning_rate": 0.02,
        "range_learning_rate": 0.005,
    }
    weights, inputs = "layers_.*/kernel", "layers_.*/input"
    kernel = {**LEARNED, "init": 4.5, "clip_bits": 5.0, "range_granularity": "per_channel"}
    config.rules = (
        (weights, kernel),
        (inputs, {**LEARNED, "init": 6.5, "clip_bits": 7.0}),
    )
    config.budgets = (
        {"metric": "bits", "limit": 4.0, "sites": weights},
        {"metric": "bits", "limit": 6.0, "sites": inputs},
    )
    return config
