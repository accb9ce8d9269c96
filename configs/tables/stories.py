"""A pretrained language model with few bits. Command (minutes on 2 cores):

python -m experiments.reproduce stories
"""

from bitjax.configs.stories.float import STEPS

NAMES = (
    "float",
    f"float:{STEPS}",
    "uniform_w4",
    "uniform_w3",
    "solved_w4",
    "solved_w3",
    "solved_w2",
    f"uniform_w3:{STEPS}",
    "bitpruning_w",
    "bitpruning_wa",
    "cache_4",
)
