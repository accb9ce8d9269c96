"""Four-bit weights, each to the nearest level of a scale per output channel; nothing is trained.

The embedding, which is the head too, stays float. Command (30 s on 2 cores):
  bitjax train stories/uniform_w4 --workdir runs/stories-w4
`:STEPS` after the file's name trains with these bits for so many steps, on drawn text.
"""

from bitjax.configs.stories.float import LONG, on_drawn_text
from bitjax.configs.stories.float import get_config as float_config

TABLE = ("embed/.*", None)  # one table, looked up in front and multiplied at the end


def weights(bits):
    return {
        "name": "uniform",
        "bits": bits,
        "signed": True,
        "range": "mse",
        "granularity": "per_channel",
    }


def get_config(steps="0", bits=4):
    config = float_config()
    config.method = {"name": "uniform", "steps": int(steps), **(LONG if int(steps) else {})}
    config.rules = (TABLE, (".*/kernel", weights(bits)))
    if int(steps):
        on_drawn_text(config)
        config.name = f"stories/uniform_w{bits}_{steps}"
    return config
