"""Float control on the digits: the small CNN that every digits config starts from or compares with.

Expected: see results/README.md. Command:
  bitjax train digits/float --workdir runs/digits-float
"""

from bitjax.configs.base import get_config as base

SCHEDULE = {"learning_rate": 0.05, "weight_decay": 5e-4, "warmup": 20}  # every method's


def get_config():
    config = base()
    config.model.name = "small_cnn"
    config.data.name = "digits"
    config.data.augmentation = "shift"
    config.method = {
        "name": "full_precision",
        "steps": 1200,
        "momentum": 0.9,
        **SCHEDULE,
    }
    config.log_every = 50
    config.checkpoint_every = 400
    return config
