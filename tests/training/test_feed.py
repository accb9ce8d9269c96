"""Feeding: what may stay on a device is every example as its batch would have it."""

import numpy as np

from bitjax.data import token_dataset, train_batch
from bitjax.training.feed import feed, resident
from bitjax.training.parallel import placement
from bitjax.training.settings import Settings

STREAM = np.array([0, 1, 2, 0, 3, 4, 5, 6, 0, 7], np.uint8)


def test_documents_stay_on_an_accelerator_and_windows_which_are_shifted_do_not():
    place = placement("none", 1)._replace(accelerator=True)
    data = token_dataset("own", STREAM, context=4, marker=0)
    rows = resident(data, place, 1)
    assert {key: value.shape for key, value in rows.items()} == {
        key: spec.shape for key, spec in data.specs(3).items()
    }
    settings = Settings(batch_size=2)
    for step, (_, batch) in enumerate(feed(data, settings, place, range(4), indices=True)):
        whole = train_batch(data, 2, step, settings.seed)
        for key, value in rows.items():
            np.testing.assert_array_equal(value[batch["index"]], whole[key])
    assert resident(data, place._replace(accelerator=False), 1) == {}
    assert resident(data, place, 0) == {}
    assert resident(token_dataset("own", STREAM, context=4), place, 1) == {}
