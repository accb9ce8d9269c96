"""The published 260 k-parameter Llama on TinyStories, evaluated: where this folder's configs start.

The figure is the perplexity of the first 120 test documents, each alone, its first 512 tokens.
Expected: 3.7922 (by an independent program). Command (20 s on 2 cores):
  bitjax train stories/float --workdir runs/stories-float
"""

from bitjax.configs.base import get_config as base

STEPS = 2000
# Text that the float network draws itself, which it knows; most of the file's documents are of
# another kind. Made by: python -m experiments.draw stories/float --out=runs/drawn-stories.npz
DRAWN = "runs/drawn-stories.npz"
# The float network teaches: 353,000 tokens of text are too few to learn a language from. It would
# teach itself nothing, so that the float control of these steps is the published network.
TRAINING = {"optimizer": "adamw", "learning_rate": 2e-3, "warmup": 20, "distill": 1.0}
LONG = {**TRAINING, "learning_rate": 1e-3}


def get_config():
    config = base()
    config.model = {"name": "llama"}
    config.init_from = "stories/llama_260k.npz"
    config.data.name = "tokens:stories/tokens.npz"
    config.data.context = 512
    config.data.train_context = 256  # attention costs a quarter
    config.data.eval_limit = 120
    config.data.batch_size = 8
    config.data.eval_batch_size = 8
    config.calibration_size = 32
    config.method = {"name": "full_precision", "steps": 0}
    return config


def on_drawn_text(config):
    """Training on documents that the float network draws, long enough for all but a few."""
    config.data.train_from = DRAWN
    config.data.train_context = 384
    config.data.batch_size = 5  # about as many tokens as 8 documents of 256
    return config
