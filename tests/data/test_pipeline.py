"""Batches: every example once an epoch, the same ones for the same step, shards that add up."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitjax.data import Dataset, batch_indices, eval_batches, train_batch
from bitjax.data.order import seeded_order

sizes = st.integers(1, 60)
batch_sizes = st.integers(1, 80)
seeds = st.integers(0, 2**64 - 1)


def dataset(num_train, num_eval=1):
    """Images whose pixels tell which example they are."""

    def images(count):
        return np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((2, 2, 1), np.uint8)

    def labels(count):
        return np.arange(count, dtype=np.int32)

    return Dataset(
        "numbers",
        images(num_train),
        labels(num_train),
        images(num_eval),
        labels(num_eval),
        "test",
        256,
        (0.5,),
        (0.5,),
        255.0,
    )


@given(sizes, batch_sizes, seeds)
def test_every_example_is_seen_exactly_once_per_epoch(num_examples, batch_size, seed):
    epochs = 3
    steps = -(-epochs * num_examples // batch_size)
    stream = np.concatenate(
        [batch_indices(num_examples, batch_size, step, seed) for step in range(steps)]
    )
    for epoch in range(epochs):
        window = stream[epoch * num_examples : (epoch + 1) * num_examples]
        assert sorted(window.tolist()) == list(range(num_examples))


@given(sizes, batch_sizes, st.integers(0, 10**9), seeds)
def test_a_batch_depends_on_its_arguments_only(num_examples, batch_size, step, seed):
    first = batch_indices(num_examples, batch_size, step, seed)
    for other in range(5):  # Whatever was asked for in between.
        batch_indices(num_examples, batch_size, step + other, seed ^ other)
    again = batch_indices(num_examples, batch_size, np.int64(step), seed)
    assert first.dtype == np.int64 and first.shape == (batch_size,)
    np.testing.assert_array_equal(first, again)


def test_the_caller_may_change_a_batch_without_changing_the_next():
    first = batch_indices(6, 6, 0, seed=0)
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(batch_indices(6, 6, 0, seed=0), kept)


def test_epochs_and_seeds_have_different_orders():
    orders = [
        tuple(batch_indices(50, 50, step, seed).tolist()) for step in range(3) for seed in range(3)
    ]
    assert len(set(orders)) == 9


def test_the_order_of_seed_0_never_changes():
    # Golden: a change here changes every experiment's batches.
    assert seeded_order(8, seed=0, stream=0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 8), st.integers(0, 50), seeds)
def test_shards_partition_the_batch(num_examples, per_shard, count, step, seed):
    data, batch_size = dataset(num_examples), per_shard * count
    whole = train_batch(data, batch_size, step, seed)
    shards = [train_batch(data, batch_size, step, seed, shard=(i, count)) for i in range(count)]
    for key in ("image", "label"):
        np.testing.assert_array_equal(np.concatenate([part[key] for part in shards]), whole[key])
    assert {len(part["label"]) for part in shards} == {per_shard}


def test_images_stay_with_their_labels():
    batch = train_batch(dataset(40), 16, step=3, seed=1)
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])
    assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32


@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 5))
def test_evaluation_counts_every_example_once_in_batches_of_one_shape(num_eval, per_shard, count):
    data, batch_size = dataset(1, num_eval), per_shard * count
    hosts = [list(eval_batches(data, batch_size, shard=(i, count))) for i in range(count)]
    assert {len(host) for host in hosts} == {-(-num_eval // batch_size)}
    batches = list(itertools.chain(*hosts))
    assert {batch["image"].shape for batch in batches} == {(per_shard, 2, 2, 1)}
    assert {batch["label"].shape for batch in batches} == {(per_shard,)}
    assert {str(batch["mask"].dtype) for batch in batches} == {"float32"}
    counted = [
        (int(label), int(pixel))
        for batch in batches
        for label, pixel, mask in zip(
            batch["label"], batch["image"][:, 0, 0, 0], batch["mask"], strict=True
        )
        if mask == 1
    ]
    assert sorted(counted) == [(i, i) for i in range(num_eval)]
    assert sum(float(batch["mask"].sum()) for batch in batches) == num_eval


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8, 0, 0), "`num_examples` must be at least 1, got 0"),
        ((8, 0, 0, 0), "`batch_size` must be an integer of 1 or more, got 0"),
        ((8, 8, -1, 0), "`step` must be an integer of 0 or more, got -1"),
        ((8, 8, 0, -1), r"`seed` must be an integer in \[0, .*\], got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        batch_indices(*arguments)


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ((2, 2), "0 <= index < count"),
        ((-1, 2), "`shard` must be a list of 2 to 2, each an integer of 0 or more"),
        ((0, 3), "multiple of the 3 shards, got 8; use 6"),
        ((0, 9), "multiple of the 9 shards, got 8; use 9"),
    ],
)
def test_shards_that_do_not_divide_the_batch_are_refused(shard, message):
    with pytest.raises(ValueError, match=message):
        train_batch(dataset(9), 8, 0, 0, shard=shard)
    with pytest.raises(ValueError, match=message):
        eval_batches(dataset(9), 8, shard=shard)


def test_evaluation_is_refused_at_the_call_and_not_at_the_first_batch():
    with pytest.raises(ValueError, match="no evaluation examples"):
        eval_batches(dataset(1, 0), 8)
    with pytest.raises(ValueError, match="`batch_size` must be an integer of 1 or more"):
        eval_batches(dataset(1, 1), 0)
