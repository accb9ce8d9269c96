"""A stream that a tiny decoder can learn, and that decoder."""

import numpy as np

from bitjax.data import token_dataset
from bitjax.models import Llama

SIZES = {"vocab_size": 16, "width": 8, "layers": 1, "heads": 2, "kv_heads": 1, "hidden": 12}
DECODER = Llama(**SIZES, context=8)


def documents(count, seed):
    """Documents that begin with 1 and count upwards from somewhere, of 4 to 12 tokens."""
    rng = np.random.default_rng(seed)
    each = [
        np.r_[1, 2 + (rng.integers(14) + np.arange(rng.integers(3, 12))) % 14] for _ in range(count)
    ]
    return np.concatenate(each).astype(np.uint16)


def counting(seed=0):
    """64 documents to train on and 20 to evaluate, of which the first 8 tokens are seen."""
    return token_dataset("counting", documents(64, seed), documents(20, 7), context=8, marker=1)
