"""Tokens: every window once an epoch, documents cut and filled up, shards and steps that add up."""

import contextlib
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitjax.data import (
    check_dataset,
    decode,
    eval_batches,
    fingerprint,
    token_dataset,
    train_batch,
    train_batches,
)
from bitjax.data.token_streams import hold_out

lengths = st.integers(2, 90)
contexts = st.integers(2, 9)
seeds = st.integers(0, 2**64 - 1)


def numbers(length, context, evaluation=2, **options):
    """Windows of a stream whose tokens tell where they stand."""
    tokens = np.arange(length, dtype=np.uint16)
    return token_dataset("numbers", tokens, tokens[:evaluation], context=context, **options)


def documents(counts, context, evaluation=(2,)):
    """Documents of so many tokens: a 0, and then the document's number again and again."""

    def stream(counts):
        parts = [np.r_[0, np.full(n - 1, i + 1)] for i, n in enumerate(counts)]
        return np.concatenate(parts).astype(np.uint16)

    return token_dataset(
        "documents", stream(counts), stream(evaluation), context=context, marker=0, vocabulary=99
    )


def epoch_of(dataset, epoch, seed, batch_size=3):
    """Everything that one epoch shows, in its order."""
    first = epoch * dataset.num_train
    last = first + dataset.num_train
    steps = range(first // batch_size, -(-last // batch_size))
    batches = [train_batch(dataset, batch_size, step, seed) for step in steps]
    rows = np.concatenate([batch["tokens"] for batch in batches])
    begin = first - steps.start * batch_size
    return rows[begin : begin + dataset.num_train]


@given(lengths, contexts, st.integers(0, 5), seeds)
def test_an_epoch_shows_windows_that_follow_each_other_from_its_shift_on(
    length, context, epoch, seed
):
    if length < context:
        return
    data = numbers(length, context)
    rows = epoch_of(data, epoch, seed)
    rows = rows[np.argsort(rows[:, 0])]
    # One after the other without a gap, so that none overlaps another and none comes twice.
    start = rows[0, 0]
    np.testing.assert_array_equal(rows.reshape(-1), start + np.arange(rows.size))
    assert 0 <= start <= length - rows.size


def test_every_token_is_reached_and_every_shift_comes():
    data = numbers(23, context=5)
    rows = [epoch_of(data, epoch, seed=0) for epoch in range(60)]
    assert set(np.concatenate(rows).reshape(-1)) == set(range(23))
    assert {int(each.min()) for each in rows} == set(range(23 - 5 * data.num_train + 1))
    starts = [int(epoch_of(data, epoch, seed=1).min()) for epoch in range(60)]
    assert starts != [int(each.min()) for each in rows]


def test_the_windows_of_seed_0_never_change():
    # Golden: a change here changes every experiment's batches.
    data = numbers(40, context=4)
    assert data.num_train == 9
    assert train_batch(data, 3, 0, 0)["tokens"][:, 0].tolist() == [1, 9, 5]
    assert train_batch(data, 3, 5, 0)["tokens"][:, 0].tolist() == [7, 3, 27]


@given(lengths, contexts, st.integers(1, 4), st.integers(1, 4), st.integers(0, 40), seeds)
def test_shards_partition_the_batch(length, context, per_shard, count, step, seed):
    data = numbers(max(length, context), context)
    batch_size = per_shard * count
    whole = train_batch(data, batch_size, step, seed)
    shards = [train_batch(data, batch_size, step, seed, shard=(i, count)) for i in range(count)]
    for key, spec in data.specs(batch_size).items():
        assert (whole[key].shape, whole[key].dtype) == (spec.shape, spec.dtype)
        np.testing.assert_array_equal(np.concatenate([part[key] for part in shards]), whole[key])


@pytest.mark.parametrize("form", ["documents", "windows"])
def test_a_run_that_goes_on_at_a_step_sees_what_it_would_have_seen(form):
    data = documents((5, 7, 9, 4, 6, 3, 8), 5) if form == "documents" else numbers(50, 4)
    with contextlib.closing(train_batches(data, 4, 0, seed=3)) as whole:
        whole = list(itertools.islice(whole, 9))
    for start in (1, 5):
        with contextlib.closing(train_batches(data, 4, start, seed=3, stop=9)) as later:
            for one, other in zip(whole[start:], later, strict=True):
                np.testing.assert_array_equal(one["tokens"], other["tokens"])


@given(st.lists(st.integers(2, 12), min_size=1, max_size=9), contexts, seeds)
def test_an_epoch_shows_every_document_once_from_its_marker_on(counts, context, seed):
    data = documents(counts, context)
    rows = epoch_of(data, 1, seed)
    assert (rows[:, 0] == 0).all()
    assert sorted(rows[:, 1].tolist()) == list(range(1, len(counts) + 1))
    for row in rows:
        kept = min(counts[row[1] - 1], context)
        np.testing.assert_array_equal(row, [0] + [row[1]] * (kept - 1) + [0] * (context - kept))


@given(st.lists(st.integers(2, 12), min_size=1, max_size=9), contexts)
def test_what_counts_of_a_document_is_what_the_tokens_before_predict(counts, context):
    data = documents(counts, context, evaluation=counts)
    (batch,) = eval_batches(data, len(counts) + 2)
    assert batch["mask"].tolist() == [1.0] * len(counts) + [0.0] * 2
    expected = [[0 < t < n for t in range(context)] for n in counts] + [[False] * context] * 2
    np.testing.assert_array_equal(batch["scored"], np.array(expected, np.float32))
    assert data.about["eval_left_out"] == sum(max(n - context, 0) for n in counts)
    assert data.about["eval_tokens"] == sum(min(n, context) for n in counts)


@given(st.integers(1, 60), contexts, st.integers(1, 3), st.integers(1, 3))
def test_evaluation_in_windows_shows_every_token_once_but_a_last_one_alone(
    length, context, per_shard, count
):
    tokens = np.arange(length)
    data = token_dataset("own", np.arange(9), tokens, context=context, vocabulary=99)
    alone = length % context == 1
    assert data.num_eval == (length - alone + context - 1) // context
    assert data.about["eval_left_out"] == alone
    if not data.num_eval:
        return
    size = per_shard * count
    hosts = [eval_batches(data, size, shard=(i, count)) for i in range(count)]
    parts = [part for step in zip(*hosts, strict=True) for part in step]
    shown, scored, mask = (
        np.concatenate([part[key] for part in parts]) for key in ("tokens", "scored", "mask")
    )
    lengths = scored.sum(1).astype(int) + 1  # all but an example's first token count
    rows = [row[:n] for row, n, there in zip(shown, lengths, mask, strict=True) if there]
    np.testing.assert_array_equal(np.concatenate(rows), tokens[: length - alone])
    assert mask.sum() == data.num_eval and (scored[:, 0] == 0).all()


@given(lengths, contexts, st.integers(1, 8), st.integers(0, 4), seeds)
def test_no_window_of_training_shows_what_is_held_out(length, context, count, epoch, seed):
    data = numbers(length, context)
    if count >= length // context or length - count * context < context:
        return
    split = hold_out(data, count, "validation")
    held = np.concatenate([batch["tokens"] for batch in eval_batches(split, count)])
    assert held.shape == (count, context) and split.num_eval == count
    shown = epoch_of(split, epoch, seed)
    assert not {*held.reshape(-1).tolist()} & {*shown.reshape(-1).tolist()}
    assert len({*shown.reshape(-1).tolist()}) == shown.size
    # The training examples are the same ones, whichever split is evaluated.
    other = hold_out(data, count, "test")
    np.testing.assert_array_equal(epoch_of(other, epoch, seed), shown)
    assert other.num_eval == data.num_eval


def test_documents_are_held_out_whole():
    data = documents((3, 4, 5, 6, 7), 8)
    split = hold_out(data, 2, "validation")
    (batch,) = eval_batches(split, 2)
    held, shown = {*batch["tokens"][:, 1].tolist()}, {*epoch_of(split, 0, 0)[:, 1].tolist()}
    assert len(held) == 2 and held | shown == {1, 2, 3, 4, 5} and not held & shown
    assert {*eval_batches(hold_out(data, 3, "validation"), 3).__next__()["tokens"][:, 1]} > held


@pytest.mark.parametrize("form", ["documents", "windows"])
@pytest.mark.parametrize(("train", "evaluation"), [(2, 1), (None, 2), (0, 3), (50, 50)])
def test_a_limit_keeps_the_first_examples(form, train, evaluation):
    counts = (3, 4, 5, 6)
    data = documents(counts, 4, counts) if form == "documents" else numbers(23, 4, 17)
    kept = data.first(train, evaluation)
    assert kept.num_train == min(data.num_train, 99 if train is None else train)
    assert kept.num_eval == min(data.num_eval, evaluation)
    for key, rows in kept.eval_sample(99).items():
        np.testing.assert_array_equal(rows, data.eval_sample(99)[key][:evaluation])


def test_a_document_of_its_marker_alone_is_left_out():
    tokens = np.array([7, 7, 1, 2, 7, 3, 7])
    data = token_dataset("own", tokens, context=4, marker=7)
    assert data.spans.tolist() == [[1, 4], [4, 6]]


def test_windows_may_begin_anywhere_in_documents_that_have_markers():
    data = token_dataset("own", np.array([4, 7, 1, 2]), context=2, marker=7, form="windows")
    assert (data.num_train, data.about["marker"], data.fixed) == (1, 7, False)


def test_a_fingerprint_tells_how_and_what_is_cut():
    tokens = np.arange(60, dtype=np.uint16)
    base = {"train": tokens, "evaluation": tokens[:9], "context": 4}
    changes = [
        {},
        {"context": 5},
        {"vocabulary": 99},
        {"train": tokens[::-1]},
        {"evaluation": tokens[1:10]},
        {"marker": 0},
        {"marker": 0, "form": "windows"},
    ]
    prints = [fingerprint(token_dataset("own", **base | change)) for change in changes]
    whole = token_dataset("own", **base)
    prints += [fingerprint(hold_out(whole, n, "test")) for n in (1, 2)]
    assert len({str(found) for found in prints}) == len(prints)
    again = {**base, "train": tokens.copy()}
    assert fingerprint(token_dataset("another name", **again)) == prints[0]


STREAM = np.array([1, 5, 6, 1, 7])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": STREAM / 2}, r"`train` of own must be integers \[N\], got float64 \(5,\); give"),
        ({"train": STREAM - 2}, r"`train` of own must be tokens in \[0, 2\*\*31\), got -1; give"),
        ({"train": STREAM + 2**40}, r"must be tokens in \[0, 2\*\*31\), got 1099511627783; give"),
        ({"train": STREAM[None]}, r"`train` of own must be integers \[N\], got int64 \(1, 5\)"),
        ({"train": STREAM[:0]}, "`train` of own is an empty stream; give tokens"),
        (
            {"evaluation": STREAM[:0]},
            "`evaluation` of own is an empty stream; leave it out, or give",
        ),
        ({"vocabulary": 7}, "`train` of own has the token 7, beyond the vocabulary of 7; give"),
        ({"pieces": ("a",) * 7}, "`train` of own has the token 7, beyond the vocabulary of 7"),
        ({"pieces": ("a",) * 9, "vocabulary": 8}, "`pieces` of own must be the text of each of"),
        ({"marker": 9}, "must begin with the marker 9 of documents, which is nowhere in it; set"),
        ({"train": STREAM[1:]}, "must begin with the marker 1 of documents, which is first at 2"),
        ({"marker": 9, "form": "windows"}, "`marker` of own must be one of the 8 tokens, got 9"),
        ({"marker": None, "form": "documents"}, "`marker` of own must be the token that begins a"),
        ({"train": np.ones(3, int)}, "`train` of own has no document of more than its marker"),
        ({"context": 1}, "`context` must be at least 2, got 1"),
        (
            {"form": "windows", "context": 6},
            "`train` of own has 5 tokens, fewer than a window of 6; set `context` to at most 5",
        ),
        (
            {"form": "windows", "context": 9, "train_context": 6},
            "fewer than a window of 6; set `train_context` to at most 5",
        ),
    ],
)
def test_streams_that_are_wrong_are_refused_with_what_to_do(changes, message):
    given = {"train": STREAM, "evaluation": STREAM, "marker": 1, **changes}
    with pytest.raises(ValueError, match=message) as caught:
        token_dataset("own", **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"form": "lines"},
            "`form` of own must be 'windows', or 'documents' where there is a mark",
        ),
        ({"marker": None}, "got 'documents' with the marker None"),
        ({"context": 1}, "`context` of own must be at least 2, got 1"),
        ({"tokens": STREAM / 2}, r"`tokens` of own must be integers \[N\], got float64"),
        ({"eval_spans": np.array([[0, 6]])}, r"`eval_spans` of own .* parts of 5 tokens in order"),
        ({"spans": np.array([[3, 5], [0, 3]])}, r"`spans` of own must be int64 \[K, 2\], parts of"),
        ({"spans": np.array([0, 3])}, r"`spans` of own .* got int64 \(2,\); let `token_dataset`"),
        ({"vocabulary": 7, "origin": ""}, r"`tokens` of own must be in \[0, 7\), got \[1, 7\]"),
    ],
)
def test_a_set_that_was_put_together_by_hand_is_checked(changes, message):
    data = token_dataset("own", STREAM, STREAM, marker=1)
    check_dataset(data)
    check_dataset(data._replace(origin=""))
    with pytest.raises(ValueError, match=message):
        check_dataset(data._replace(**changes))


@pytest.mark.parametrize("count", [4, 5])
def test_what_is_held_out_leaves_something_to_train_on(count):
    assert hold_out(numbers(16, 4), 3, "test").num_train == 1
    with pytest.raises(ValueError, match="`validation` must be less than the 4 training windows"):
        hold_out(numbers(19, 4), count, "validation")


def test_tokens_are_text_again():
    pieces = ("<unk>", "\n<s>\n", " once", "<0x0A>", "<0xC3>", "<0xA9>", "\xc3\xa9", " ünicode…")
    data = token_dataset("own", np.arange(8), marker=1, pieces=pieces, form="windows", context=2)
    assert decode(data, np.array([1, 2, 4, 5, 6, 3, 2])) == "onceéé\n once"
    assert decode(data, np.array([2, 1, 2, 1])) == " once\nonce\n"
    assert decode(data, np.array([4, 7])) == "\ufffd ünicode…"
    assert decode(data, np.zeros(0, int)) == ""
    for wrong in (np.zeros((1, 2), int), np.ones(2)):
        with pytest.raises(ValueError, match=r"`tokens` must be integers \[N\], got"):
            decode(data, wrong)
    for wrong in (-1, 8):
        with pytest.raises(ValueError, match=rf"`tokens` must be in \[0, 8\), got {wrong}"):
            decode(data, np.array([2, wrong]))
    with pytest.raises(ValueError, match="own knows no text of its tokens; put vocabulary.json"):
        decode(data._replace(pieces=()), np.array([2]))


@pytest.mark.parametrize("form", ["documents", "windows"])
def test_training_examples_may_be_shorter_than_those_of_evaluation(form):
    stream = np.tile(np.array([9, 1, 2, 3, 4, 5]), 4)
    data = token_dataset("own", stream, stream, context=4, train_context=3, marker=9, form=form)
    assert train_batch(data, 2, step=0, seed=0)["tokens"].shape == (2, 3)
    assert data.eval_sample(2)["tokens"].shape == (2, 4) == data.specs(2)["tokens"].shape
    for wrong in (1, 5):
        with pytest.raises(ValueError, match=rf"`train_context` must be in \[2, 4\], got {wrong}"):
            token_dataset("own", stream, context=4, train_context=wrong)
