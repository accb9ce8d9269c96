"""Where ranges begin and end, against NumPy, and how their history moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.quantizers import Axes, reduce_batch, uniform
from bitjax.quantizers.ranges import as_batch, calibrate, init_stats, read_range, update_stats

X = np.random.default_rng(0).normal(0.3, 1.0, (60, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("method", "signed", "expected"),
    [
        ("minmax", None, lambda x: (x.min(), x.max())),
        ("minmax", True, lambda x: (-abs(x).max(), abs(x).max())),
        ("minmax", False, lambda x: (0.0, x.max())),
        ("absmax", None, lambda x: (-abs(x).max(), abs(x).max())),
        ("absmax", False, lambda x: (0.0, x.max())),
        ("percentile", None, lambda x: tuple(np.percentile(x, [1.0, 99.0]))),
        ("percentile", False, lambda x: (0.0, np.percentile(x, 99.0))),
    ],
)
def test_each_method_agrees_with_numpy_on_every_block(method, signed, expected):
    low, high = calibrate(jnp.asarray(X), (), method, signed=signed, percentile=99.0)
    np.testing.assert_allclose((low, high), expected(X), rtol=1e-6)
    low, high = calibrate(jnp.asarray(X), (1, 8), method, signed=signed, percentile=99.0)
    by_channel = np.array([expected(column) for column in X.T])
    np.testing.assert_allclose(low[0], by_channel[:, 0], rtol=1e-5)
    np.testing.assert_allclose(high[0], by_channel[:, 1], rtol=1e-5)


def test_the_range_of_least_error_beats_every_other_shrinkage():
    q = uniform(3, range="mse", zero_on_grid=False)
    x = jnp.asarray(X)
    params, stats = q.init(x, Axes())

    @jax.jit
    def error(factor):
        shrunk = {k: v * factor for k, v in init_stats(x.min(), x.max()).items()}
        return jnp.mean((q.apply(params, shrunk, x) - x) ** 2)

    slow = [float(error(k / 80)) for k in range(1, 81)]
    chosen = float(jnp.mean((q.apply(params, stats, x) - x) ** 2))
    assert chosen == pytest.approx(min(slow), rel=1e-5)
    assert min(slow) < 0.9 * slow[-1]


def test_a_percentile_of_a_large_tensor_is_taken_from_a_part_of_it():
    x = jnp.linspace(0.0, 1.0, 1 << 20)
    low, high = calibrate(x, (), "percentile", percentile=90.0)
    np.testing.assert_allclose((low, high), (0.1, 0.9), atol=1e-4)


def test_an_outlier_moves_a_percentile_little():
    x = jnp.asarray(np.append(X.reshape(-1), 1e4))
    assert float(calibrate(x, (), "percentile", percentile=99.0)[1]) < 4


def test_the_first_batch_replaces_the_start_and_later_ones_move_the_average():
    stats = init_stats(jnp.float32(-7.0), jnp.float32(7.0))
    batches = [(-1.0, 2.0), (-3.0, 4.0), (0.0, 1.0)]
    low = high = None
    for b_low, b_high in batches:
        batch = as_batch(jnp.float32(b_low), jnp.float32(b_high), "minmax")
        stats = update_stats(stats, batch, 0.9)
        low = b_low if low is None else 0.9 * low + 0.1 * b_low
        high = b_high if high is None else 0.9 * high + 0.1 * b_high
        np.testing.assert_allclose(read_range(stats, train=False), (low, high), rtol=1e-6)
        np.testing.assert_array_equal(read_range(stats, train=True), (b_low, b_high))
    assert float(stats["count"]) == 3


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_shards_merge_by_their_declared_reduction(method):
    q = uniform(4, range=method)
    params, stats = q.init(jnp.asarray(X), Axes())
    shards = jnp.asarray(X).reshape(4, 15, 8)

    def merged(x):
        return q.update(stats, reduce_batch(q.measure(params, stats, x), "data"))

    together = jax.jit(jax.vmap(merged, axis_name="data"))(shards)
    measure = jax.jit(lambda x: q.measure(params, stats, x))
    alone = [measure(x) for x in shards]
    whole = q.update(stats, measure(jnp.asarray(X)))
    for end in ("clip_min", "clip_max"):
        assert len(set(np.asarray(together[end]).tolist())) == 1  # replicas agree
        if method == "minmax":
            assert float(together[end][0]) == float(whole[end])
        else:
            mean = np.mean([b.mean[end] for b in alone])
            assert float(together[end][0]) == pytest.approx(mean, rel=1e-5)
