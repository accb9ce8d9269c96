"""Streams: the same batches as from memory, whoever reads them and wherever a run was stopped."""

import contextlib
import dataclasses
import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitjax.data import Dataset, StreamedDataset, eval_batches, load, train_batch, train_batches
from bitjax.data.images import centre_crop
from bitjax.data.prefetch import in_background, to_device
from bitjax.data.records import Records
from bitjax.data.stream import crop_words
from tests.data.sets import encoded, picture, write_folder


def in_turn(count, height=6, width=5, split="train"):
    """Records whose label is their number."""
    images = [encoded(picture(i, height + i % 3 * 9, width + i % 2 * 7)) for i in range(count)]
    return Records(
        split,
        lambda number: (images[number], number),
        lambda number: f"record {number}",
        np.arange(count),
        None,
        "",
    )


def stream(num_train, num_eval=3, **changes):
    """A streamed set of images of different sizes, cropped to 4x4."""
    dataset = StreamedDataset(
        name="numbers",
        train=in_turn(num_train),
        evaluation=in_turn(num_eval, split="test"),
        image_shape=(4, 4, 3),
        shorter=5,
        random_crop=True,
        eval_split="test",
        num_classes=1000,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        threads=2,
    )
    return dataset._replace(**changes)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BITJAX_CACHE_DIR", str(tmp_path / "cache"))
    write_folder(tmp_path / "set", "train", (5, 6, 7))
    write_folder(tmp_path / "set", "test", (2, 3, 2), start=100)
    return f"folder:{tmp_path / 'set'}"


def assert_same(one, two):
    assert one.keys() == two.keys()
    for key in one:
        assert one[key].dtype == two[key].dtype
        np.testing.assert_array_equal(one[key], two[key])


def take(batches, count):
    with contextlib.closing(batches):
        return list(itertools.islice(batches, count))


@pytest.mark.parametrize("validation", [0, 4])
def test_a_streamed_set_gives_the_batches_of_the_same_set_in_memory(folder, validation):
    memory = load(folder, validation=validation)
    streamed = load(folder, validation=validation, memory_limit=0)
    assert isinstance(memory, Dataset) and isinstance(streamed, StreamedDataset)
    for name in ("num_train", "num_eval", "image_shape", "num_classes", "eval_split"):
        assert getattr(memory, name) == getattr(streamed, name)
    assert_same(memory.eval_sample(2), streamed.eval_sample(2))
    assert memory.specs(3) == streamed.specs(3)
    for shard in ((0, 1), (1, 2)):
        pairs = (take(train_batches(d, 4, 3, 9, shard=shard), 6) for d in (memory, streamed))
        for step, (one, two) in enumerate(zip(*pairs, strict=True), 3):
            assert_same(one, two)
            assert_same(one, train_batch(streamed, 4, step, 9, shard=shard))
        pairs = (list(eval_batches(d, 4, shard=shard)) for d in (memory, streamed))
        for one, two in zip(*pairs, strict=True):
            assert_same(one, two)


@settings(max_examples=8)  # each starts grain's threads some ten times
@given(st.integers(1, 30), st.data())
def test_hosts_that_come_and_go_see_every_example_once_per_epoch(num_examples, data):
    """A run is stopped and goes on with another number of hosts, at any step, again and again."""
    dataset, batch_size, seed, seen, step = stream(num_examples), 12, 5, [], 0
    while len(seen) < 2 * num_examples:
        count = data.draw(st.sampled_from([1, 2, 3, 4, 6]), "hosts")
        steps = data.draw(st.integers(1, 3), "steps")
        hosts = [
            take(train_batches(dataset, batch_size, step, seed, shard=(i, count)), steps)
            for i in range(count)
        ]
        for batches in zip(*hosts, strict=True):
            seen += np.concatenate([batch["label"] for batch in batches]).tolist()
        step += steps
    for epoch in range(2):
        window = seen[epoch * num_examples : (epoch + 1) * num_examples]
        assert sorted(window) == list(range(num_examples))


def test_random_crops_depend_on_seed_and_position_only():
    whole = take(train_batches(stream(10), 12, 0, seed=3), 4)
    for threads in (0, 1, 7):
        for one, two in zip(
            whole, take(train_batches(stream(10, threads=threads), 12, 0, 3), 4), strict=True
        ):
            assert_same(one, two)
    # Three hosts that start at step 2, and other batch sizes: the same stream of examples.
    parts = [take(train_batches(stream(10), 12, 2, 3, shard=(i, 3)), 1)[0] for i in range(3)]
    for key, value in whole[2].items():
        np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), value)
    halves = take(train_batches(stream(10), 6, 0, 3), 2)
    np.testing.assert_array_equal(
        np.concatenate([half["image"] for half in halves]), whole[0]["image"]
    )
    one, other = (train_batch(stream(1), 6, 0, seed)["image"] for seed in (3, 4))
    assert (one != other).any(axis=(1, 2, 3)).all()


def test_an_example_is_cropped_in_another_way_in_every_epoch():
    first, second = take(train_batches(stream(6), 6, 0, 0), 2)
    order, other = np.argsort(first["label"]), np.argsort(second["label"])
    differ = first["image"][order] != second["image"][other]
    assert differ.any(axis=(1, 2, 3)).all()


def test_without_augmentation_training_images_are_what_evaluation_would_see():
    dataset = stream(6)
    batch = train_batch(dataset, 6, 0, 0, augment=False)
    for image, label in zip(batch["image"], batch["label"], strict=True):
        number = int(label)
        from PIL import Image

        source = Image.fromarray(picture(number, 6 + number % 3 * 9, 5 + number % 2 * 7))
        np.testing.assert_array_equal(image, centre_crop(source, 5, 4, 4, 3))
    plain = train_batch(stream(6, random_crop=False), 6, 0, 0)
    assert_same(batch, plain)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_every_evaluation_example_of_a_stream_counts_once(size):
    for count in (1, 2):
        hosts = [
            list(eval_batches(stream(1, 7), size * count, shard=(i, count))) for i in range(count)
        ]
        assert {len(host) for host in hosts} == {-(-7 // (size * count))}
        labels = [
            int(label)
            for batch in itertools.chain(*hosts)
            for label, mask in zip(batch["label"], batch["mask"], strict=True)
            if mask
        ]
        assert sorted(labels) == list(range(7))
        assert {batch["image"].shape for batch in itertools.chain(*hosts)} == {(size, 4, 4, 3)}


def threads_left(before):
    """The threads that were not there before, after half a second in which they may end."""
    for _ in range(50):
        left = set(threading.enumerate()) - before
        if not left:
            break
        time.sleep(0.01)
    return left


def test_batches_that_are_left_early_leave_no_thread_behind(folder):
    before = set(threading.enumerate())
    for dataset in (load(folder), load(folder, memory_limit=0)):
        with contextlib.closing(train_batches(dataset, 4, 0, 0)) as batches:
            next(batches)
            assert set(threading.enumerate()) - before
        assert not threads_left(before)
        with contextlib.closing(to_device(train_batches(dataset, 4, 0, 0), dict)) as batches:
            next(batches)
        assert not threads_left(before)
        with contextlib.closing(eval_batches(dataset, 2)) as batches:
            next(batches)
        assert len(take(train_batches(dataset, 4, 2, 0, stop=5), 9)) == 3
        assert take(train_batches(dataset, 4, 5, 0, stop=5), 9) == []
        train_batches(dataset, 4, 0, 0)  # never started
        assert not threads_left(before)


def test_closing_waits_for_the_batch_in_the_making_and_closes_what_it_reads():
    before = set(threading.enumerate())
    batches = in_background(lambda step: time.sleep(0.05 * step), 0, None)
    next(batches)
    batches.close()
    assert set(threading.enumerate()) == before

    class Source(list):
        closed = 0

        def __iter__(self):
            return self

        def __next__(self):
            return self.pop()

        def close(self):
            self.closed += 1

    source = Source(range(9))
    with contextlib.closing(to_device(source, str)) as moved:
        assert next(moved) == "8"
    assert source.closed == 1


def test_an_error_in_the_background_is_raised_where_the_batch_is_taken():
    def make(step):
        if step == 2:
            raise ValueError("no batch 2")
        return step

    before = set(threading.enumerate())
    batches = to_device(in_background(make, 0, None), lambda x: x, ahead=0)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(ValueError, match="no batch 2"):
        next(batches)
    assert not threads_left(before)


def test_batches_are_moved_ahead_of_the_step_and_in_order():
    moved = []
    batches = to_device(iter(range(6)), lambda x: moved.append(x) or x, ahead=2)
    assert next(batches) == 0 and moved == [0, 1, 2]
    assert next(batches) == 1 and moved == [0, 1, 2, 3]
    assert list(batches) == [2, 3, 4, 5]


def test_a_damaged_record_is_named():
    dataset = stream(9)
    good = dataset.train.read

    def read(number):
        content, label = good(number)
        return (content[:60] if number == 4 else content), label

    damaged = dataclasses.replace(dataset.train, read=read)
    with pytest.raises(ValueError, match=r"^record 4 is damaged \(\w+: .*copy it again"):
        take(train_batches(dataset._replace(train=damaged), 4, 0, 0), 9)
    unlabelled = dataclasses.replace(dataset.train, read=lambda number: (good(number)[0], -1))
    with pytest.raises(ValueError, match=r"has the class -1, expected \[0, 1000\)"):
        train_batch(dataset._replace(train=unlabelled), 4, 0, 0)


def test_the_words_of_crops_never_change_and_are_not_those_of_the_order():
    # Golden: a change here changes every experiment's crops.
    assert crop_words(0, 0)[:2].tolist() == [12293675903137025871, 12529424201248961830]
    assert crop_words(0, 0)[0] != np.random.Philox(key=np.zeros(2, np.uint64)).random_raw()


def test_arguments_out_of_range_are_refused_at_the_call():
    for dataset in (stream(5), stream(5)):
        with pytest.raises(ValueError, match="multiple of the 3 shards"):
            train_batches(dataset, 8, 0, 0, shard=(0, 3))
        with pytest.raises(ValueError, match="`start` must be an integer of 0 or more"):
            train_batches(dataset, 8, -1, 0)
        with pytest.raises(ValueError, match="`batch_size` must be an integer of 1 or more"):
            eval_batches(dataset, 0)
    with pytest.raises(ValueError, match="nothing to train on"):
        train_batches(stream(5)._replace(train=stream(5).train.subset(slice(0))), 8, 0, 0)
