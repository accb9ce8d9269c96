"""BitPruning on the digits: bits of every weight and activation learned, the average at most 3.0.

The main job of `make demo`: trains from scratch under the schedule of digits/float.py, learns one
bitlength per tensor under a hard budget, rounds, freezes, fine-tunes. Target: within 0.5 points of
float at an average of at most 3.0 bits, all layers counted. Command:
  bitjax train digits/bitpruning --workdir runs/digits-bitpruning
`:costs` behind the file's name limits what 3 bits cost instead, as digits/uniform.py has them: bit
operations and the kernels' bytes. That is the table's row: results/digits.md.
"""

from bitjax.configs.digits.float import SCHEDULE
from bitjax.configs.digits.float import get_config as float_config


def get_config(budget="bits"):
    budgets = {
        "bits": ({"metric": "bits", "limit": 3.0},),
        "costs": ({"metric": "bops", "limit": 1_433_088.0}, {"metric": "bytes", "limit": 9_654.0}),
    }
    if budget not in budgets:
        raise ValueError(f"behind the config's name comes bits or costs, got {budget}")
    config = float_config()
    config.method = {
        "name": "bitpruning",
        "steps": 1200,
        **SCHEDULE,
        "fine_tune": 0.4,
        "settle": 0.2,
        "rounding": "budget",
        "bits_learning_rate": 0.03,
        "range_learning_rate": 0.005,
    }
    # 0.0 is a code from the start, so that the freeze moves no level.
    learned = {"name": "bitlength", "range": "learned", "clip_bits": 4.0, "zero_on_grid": True}
    config.rules = (
        (".*/kernel", {**learned, "min_bits": 2.0}),
        ("conv1/input", {**learned, "signed": True}),  # the normalised image
        (".*/input", {**learned, "signed": False}),  # after a ReLU
    )
    config.budgets = budgets[budget]
    if budget == "costs":
        config.name = "digits/bitpruning_costs"
    return config
