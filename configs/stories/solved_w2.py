"""Two-bit weights solved layer by layer from 96 training documents; nothing is trained.

Perplexity 14.84; float 3.79.
Command (5 minutes of one core): bitjax train stories/solved_w2 --workdir runs/stories-solved-w2
`:gptq` after the file's name is GPTQ by the same interface.
"""

from bitjax.configs.stories.solved_w4 import get_config as solved_config


def get_config(variant=""):
    return solved_config(variant, bits=2)
