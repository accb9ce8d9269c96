"""Text that a language model draws is documents of its own, the same for the same seed."""

from types import SimpleNamespace

import jax
import numpy as np

from bitjax.models import Llama
from experiments.draw import draw

NET = Llama(vocab_size=4, width=8, layers=1, heads=2, kv_heads=1, hidden=12, context=16)


def test_documents_begin_with_the_only_marker_and_follow_the_seed():
    start = NET.init(jax.random.key(0), np.ones((1, 2), np.int32))
    data = SimpleNamespace(marker=1, vocabulary=4)
    work = SimpleNamespace(model=NET, start=start, dataset=data)
    first, again, other = ([*draw(work, 6, 8, seed)] for seed in (0, 0, 1))
    (documents,) = first
    assert len(documents) == 6 and len({len(d) for d in documents}) > 1
    for document in documents:
        assert document[0] == 1 and not (document[1:] == 1).any() and len(document) <= 8
    text, same, another = (np.concatenate(one[0]).tolist() for one in (first, again, other))
    assert text == same != another
