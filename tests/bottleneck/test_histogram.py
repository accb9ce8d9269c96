"""Histograms against NumPy's, and batch by batch against all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitjax.bottleneck.counts import BINS, LOWEST, count
from bitjax.bottleneck.histogram import empty, gather, merge, observe


def observed(*batches, stride=1):
    seen = empty()
    for batch in batches:
        seen = observe(seen, jnp.asarray(batch, jnp.float32), stride=stride)
    return seen


def assert_same(one, other):
    for field, a, b in zip(one._fields, one, other, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=field)


def by_hand(x):
    """Counts and sums of |x| per bin, in float64, of values that float32 holds."""
    u = np.abs(np.asarray(x, np.float32).astype(np.float64).ravel())
    full_scale = 2.0 ** np.ceil(np.log2(u.max()))
    bins = np.minimum(u / full_scale * BINS, BINS - 1).astype(int)
    return full_scale, *(np.bincount(bins, w, minlength=BINS) for w in (np.ones_like(u), u, u * u))


# Powers of two are at the end of a full scale.
INTEGERS = st.integers(-(2**14), 2**14) | st.sampled_from([0, 1, 2, 64, -256, 2**14])
BATCHES = st.lists(st.lists(INTEGERS, min_size=1, max_size=30), min_size=1, max_size=4)


@given(BATCHES)
def test_integers_are_counted_and_summed_exactly(batches):
    seen = observed(*batches)
    x = np.concatenate([np.array(batch) for batch in batches])
    if not x.any():
        assert seen.counts[0] == seen.zeros == x.size
        return
    full_scale, counts, sums, energies = by_hand(x)
    assert seen.full_scale == full_scale
    np.testing.assert_array_equal(seen.counts, counts)
    np.testing.assert_array_equal(seen.sums, sums)
    np.testing.assert_array_equal(seen.energies, energies)
    assert (seen.zeros, seen.negatives) == ((x == 0).sum(), (x < 0).sum())
    assert (seen.low, seen.high) == (x.min(), x.max())
    assert (seen.negatives > 0) == (x.min() < 0)


@given(BATCHES)
def test_a_stream_is_what_one_batch_of_all_of_it_is(batches):
    assert_same(observed(*batches), observed([x for batch in batches for x in batch]))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 3e4])
def test_merging_real_numbers_is_exact_in_any_order_and_any_grouping(scale):
    rng = np.random.default_rng(0)
    a, b, c = (observed(scale * s * rng.standard_normal(50_000)) for s in (0.1, 1.0, 7.0))
    assert a.exponent < b.exponent < c.exponent
    whole = merge(merge(a, b), c)
    assert_same(whole, merge(a, merge(b, c)))
    assert_same(whole, merge(merge(c, a), b))
    assert_same(whole, merge(whole, empty()))


def test_a_real_number_is_off_by_at_most_a_five_hundredth_of_the_width_it_was_seen_at():
    x = np.random.default_rng(0).exponential(size=200_000).astype(np.float32)
    seen = observed(x)
    full_scale, counts, sums, _ = by_hand(x)
    assert seen.full_scale == full_scale
    np.testing.assert_array_equal(seen.counts, counts)
    np.testing.assert_array_less(np.abs(seen.sums - sums), (counts + 1) * seen.width / 512)
    # Taken all together, errors up and down cancel.
    assert seen.sums.sum() == pytest.approx(sums.sum(), rel=1e-6)


def test_what_is_at_full_scale_is_in_the_last_bin_and_at_its_upper_edge():
    seen = observed([4.0, 4.0])
    assert seen.full_scale == 4.0
    assert seen.counts[-1] == 2
    assert seen.sums[-1] == 8.0
    # A bin further down holds its lower edge and not its upper one, also once the scale has grown.
    for later in (8.0, 1024.0, 2.0**15):
        assert_same(observed([4.0, 4.0, 1.0], [later]), observed([4.0, 1.0, later, 4.0]))


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 1e-30, 1e-37, 3e38])
def test_a_constant_is_one_bin(value):
    seen = observed(np.full((2, 3, 5), value), np.full(7, value))
    assert seen.counts.max() == seen.total == 37
    assert seen.zeros == (37 if value == 0 else 0)
    exact = float(np.float32(value))
    assert seen.low == seen.high == exact
    assert seen.sums.sum() == pytest.approx(37 * abs(exact), rel=2**-16, abs=37 * 2.0**LOWEST)


def test_zeros_before_the_first_number_cost_no_precision():
    assert_same(observed(np.zeros(5), [1e-4, 1e-5]), observed([1e-4, 1e-5, *np.zeros(5)]))


def test_a_sample_reaches_every_channel():
    x = np.tile(np.arange(64.0), (1000, 1))
    seen = observed(x, stride=8)  # 8 divides 64: every 8th element would be of 8 channels only
    assert np.count_nonzero(seen.counts) == 64
    assert seen.total == pytest.approx(x.size / 9, rel=0.01)
    assert observed(np.ones(3), stride=3).total == 1


def test_bfloat16_and_integers_are_welcome():
    for dtype in (jnp.bfloat16, jnp.float16, jnp.int8):
        assert observe(empty(), jnp.array([1, 2, 3], dtype)).sums.sum() == 6.0


def test_counting_works_inside_a_program_and_over_layers():
    x = np.random.default_rng(0).normal(size=(3, 100)).astype(np.float32)
    stacked = jax.jit(jax.vmap(lambda row: count(row, 2)))(x)
    for i, row in enumerate(x):
        assert_same(gather(jax.tree.map(lambda leaf, i=i: leaf[i], stacked)), gather(count(row, 2)))


def test_a_batch_may_be_counted_at_a_larger_scale_than_its_own_but_at_no_smaller_one():
    x = jnp.array([0.25, 1.5, 3.0])
    for exponent, taken in ((5, 5), (1, 2)):
        seen = gather(count(x, exponent))
        assert seen.exponent == taken
        assert_same(seen, merge(gather(count(x)), empty()._replace(exponent=taken)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_an_error_that_says_where_to_look(bad):
    with pytest.raises(ValueError, match=r"must be finite.*first_nonfinite"):
        observed([1.0, bad, 2.0])


def test_an_empty_batch_and_a_stride_of_nothing_are_errors():
    with pytest.raises(ValueError, match="must have an element"):
        observed([])
    with pytest.raises(ValueError, match="`stride` must be at least 1, got 0"):
        observed([1.0], stride=0)
