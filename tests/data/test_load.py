"""`load`: splits that never overlap, on digits; and what a data set has to be."""

import numpy as np
import pytest

from bitjax.data import check_dataset, held_out, load


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def rows(images):
    return [image.tobytes() for image in images]


def test_digits_are_1437_and_360_with_36_test_images_of_each_class(digits):
    assert digits.images.shape == (1437, 8, 8, 1) and digits.eval_images.shape == (360, 8, 8, 1)
    assert np.bincount(digits.eval_labels).tolist() == [36] * 10
    assert digits.images.dtype == np.uint8 and digits.labels.dtype == np.int32


def test_training_and_test_digits_together_are_scikit_learns(digits):
    from sklearn.datasets import load_digits

    source = load_digits()
    together = rows(digits.images) + rows(digits.eval_images)
    assert sorted(together) == sorted(rows(source.images.astype(np.uint8)))
    labels = np.concatenate([digits.labels, digits.eval_labels])
    label_of = dict(zip(rows(source.images.astype(np.uint8)), source.target, strict=True))
    assert [label_of[row] for row in together] == labels.tolist()


def test_digits_statistics_are_those_of_the_training_images(digits):
    values = digits.images / digits.max_value
    assert digits.mean == pytest.approx([values.mean()], abs=1e-6)
    assert digits.std == pytest.approx([values.std()], abs=1e-6)


def test_digits_split_never_changes(digits):
    # Golden: a change here makes results on digits incomparable with earlier ones.
    assert int(np.dot(digits.eval_labels, np.arange(360))) == 300366
    assert int(digits.images.sum()) == 448732


@pytest.mark.parametrize("validation", [1, 10, 137])
def test_held_out_digits_are_never_trained_on_whichever_split_is_evaluated(digits, validation):
    tuned = load("digits", validation=validation, eval_split="validation")
    reported = load("digits", validation=validation, eval_split="test")
    assert (tuned.eval_split, reported.eval_split) == ("validation", "test")
    np.testing.assert_array_equal(tuned.images, reported.images)
    np.testing.assert_array_equal(reported.eval_images, digits.eval_images)
    assert sorted(rows(tuned.images) + rows(tuned.eval_images)) == sorted(rows(digits.images))
    assert len(tuned.eval_labels) == validation
    counts = np.bincount(tuned.eval_labels, minlength=10)
    assert counts.max() - counts.min() <= 1


def test_a_larger_validation_split_contains_the_smaller_one():
    labels = np.arange(200) % 10
    small, large = (held_out(labels, count, 10, seed=3) for count in (30, 60))
    assert small.sum() == 30 and large.sum() == 60 and not np.any(small & ~large)


def test_holding_out_more_of_a_class_than_there_is_is_refused():
    with pytest.raises(ValueError, match="takes more of class 1 than its 1; hold out at most 3"):
        held_out(np.array([0, 0, 0, 0, 1]), 4, num_classes=2, seed=0)


def test_limit_keeps_the_first_examples_of_both_splits(digits):
    few = load("digits", limit=20)
    np.testing.assert_array_equal(few.images, digits.images[:20])
    np.testing.assert_array_equal(few.eval_labels, digits.eval_labels[:20])


def test_without_training_the_evaluation_examples_are_the_same():
    for options in ({}, {"validation": 50, "eval_split": "validation"}):
        data, full = load("digits", train=False, **options), load("digits", **options)
        assert data.images.shape == (0, 8, 8, 1) and data.labels.shape == (0,)
        np.testing.assert_array_equal(data.eval_images, full.eval_images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mnist"}, "one of 'digits', 'cifar10', 'fashion_mnist', got 'mnist'"),
        ({"eval_split": "train"}, "'test' or 'validation', got 'train'"),
        ({"eval_split": "validation"}, "`validation` is 0; set `validation`"),
        ({"validation": -1}, "`validation` must be at least 0, got -1"),
        ({"validation": 1437}, "less than the 1437 training examples of digits, got 1437"),
        ({"limit": 0}, "`limit` must be at least 1 or None, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load(**{"name": "digits", **options})


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("images", lambda x: x.astype(np.float32), "`images` of digits must be uint8"),
        ("eval_images", lambda x: x[..., 0], "`eval_images` of digits must be uint8"),
        ("labels", lambda x: x[:-1], r"`labels` of digits must be int32 \[1437\]"),
        ("eval_labels", lambda x: x.astype(np.int64), "`eval_labels` of digits must be int32"),
        ("labels", lambda x: x - 1, r"`labels` of digits must be in \[0, 10\), got \[-1, 8\]"),
        ("images", lambda x: x + np.uint8(1), "at most 16.0, got 17; correct `max_value`"),
        ("mean", lambda x: x * 3, "must have 1 numbers"),
        ("mean", lambda x: (float("nan"),), "must be finite"),
        ("std", lambda x: (0.0,), "`std` positive"),
    ],
)
def test_a_data_set_that_breaks_a_promise_is_refused(digits, field, change, message):
    with pytest.raises(ValueError, match=message):
        check_dataset(digits._replace(**{field: change(getattr(digits, field))}))
