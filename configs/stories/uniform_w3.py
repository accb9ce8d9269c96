"""Three-bit weights, each to the nearest level of a scale per output channel; nothing is trained.

Command (30 s on 2 cores): bitjax train stories/uniform_w3 --workdir runs/stories-w3
`:STEPS` after the file's name trains with these bits for so many steps, on drawn text.
"""

from bitjax.configs.stories.uniform_w4 import get_config as uniform_config


def get_config(steps="0"):
    return uniform_config(steps, bits=3)
