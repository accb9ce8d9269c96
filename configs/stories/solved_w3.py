"""Three-bit weights solved layer by layer from 96 training documents; nothing is trained.

Perplexity 4.92; GPTQ by the same interface 5.83 (by an independent program 5.99), float 3.79.
Command (5 minutes of one core): bitjax train stories/solved_w3 --workdir runs/stories-solved-w3
`:gptq` after the file's name is GPTQ by the same interface.
"""

from bitjax.configs.stories.solved_w4 import get_config as solved_config


def get_config(variant=""):
    return solved_config(variant, bits=3)
