"""Four-bit weights solved layer by layer from 96 training documents; nothing is trained.

Codes -8 .. 7 and a scale per output channel; the embedding, which is the head too, stays float.
Target: at most GPTQ's 4.097 (by an independent program); float 3.792.
Command (5 minutes of one core): bitjax train stories/solved_w4 --workdir runs/stories-solved-w4
`:gptq` after the file's name is GPTQ by the same interface: its own codes, as they are.
"""

from bitjax.configs.stories.float import get_config as float_config
from bitjax.configs.stories.uniform_w4 import TABLE

# What the solver adds is left out: GPTQ targets the float kernel's output behind what is quantized.
GPTQ = {"start": "gptq", "correction": 0.0, "ridge": 0.0, "max_sweeps": 0}


def get_config(variant="", bits=4):
    if variant not in ("", "gptq"):
        raise ValueError(f"behind the config's name comes `gptq` or nothing, got {variant!r}")
    config = float_config()
    config.data.train_context = 0  # all of the 512 tokens that are evaluated
    config.method = {"name": "solved", "calibration_batches": 12, "positions": 512, "ridge": 0.3}
    if variant:
        config.method = {**config.method, **GPTQ}
        config.name = f"stories/gptq_w{bits}"
    kernel = {"name": "low_bit", "bits": bits, "fit": "stored", "narrow": False}
    config.rules = (TABLE, (".*/kernel", kernel))
    return config
