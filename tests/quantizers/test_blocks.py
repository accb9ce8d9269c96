"""Granularity: which entry of a parameter serves which elements of a tensor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.quantizers import Axes
from bitjax.quantizers.blocks import block_shape, flatten, fold, split, spread

KERNEL = (3, 3, 16, 32)


@pytest.mark.parametrize(
    ("axes", "granularity", "group_size", "expected"),
    [
        (Axes((-1,), -2), "per_tensor", None, ()),
        (Axes((-1,), -2), "per_channel", None, (1, 1, 1, 32)),
        (Axes((-2,), -1), "per_channel", None, (1, 1, 16, 1)),
        (Axes((-2, -1), -3), "per_channel", None, (1, 1, 16, 32)),
        (Axes((-1,), -2), "per_group", 4, (1, 1, 4, 32)),
        (Axes((-1,), -2), "per_group", 16, (1, 1, 1, 32)),
        (Axes((-1,), -1), "per_group", 8, (1, 1, 1, 4)),
    ],
)
def test_the_shape_of_a_parameter_follows_from_granularity_and_axes(
    axes, granularity, group_size, expected
):
    assert block_shape(KERNEL, axes, granularity, group_size) == expected


def test_a_group_that_does_not_divide_its_axis_is_an_error():
    with pytest.raises(ValueError, match="`group_size` must divide the 16 elements of axis 2.*5"):
        block_shape(KERNEL, Axes((-1,), -2), "per_group", 5)


@pytest.mark.parametrize(
    ("shape", "block"), [((6, 4), (1, 4)), ((6, 4), (3, 2)), ((4, 1, 6), (4, 1, 1)), ((6,), (2,))]
)
def test_fold_sums_what_spread_repeats(shape, block):
    rng = np.random.default_rng(0)
    x, param = rng.integers(-9, 9, shape), rng.integers(-9, 9, block)
    served = np.broadcast_to(jax.jit(lambda p: spread(p, shape))(param), shape)
    # The entry that serves each index, along each axis.
    entry = [np.arange(n) // (n // b) for n, b in zip(shape, block, strict=True)]
    np.testing.assert_array_equal(served, param[np.ix_(*entry)])
    folded = np.asarray(jax.jit(fold)(x, param, True))
    assert np.sum(folded * param) == np.sum(x * served)


def test_flatten_has_a_row_per_block():
    x = jnp.arange(24).reshape(4, 6)
    rows = flatten(x, (2, 1))
    np.testing.assert_array_equal(rows, [np.arange(12), np.arange(12, 24)])
    assert flatten(x, ()).shape == (1, 24)
    cut, inner = split(x, (2, 3))
    assert jax.tree.map(int, cut.sum(inner).shape) == (2, 3)
