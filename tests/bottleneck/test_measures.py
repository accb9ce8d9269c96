"""What a histogram says of data, against the data."""

import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.bottleneck import measures
from bitjax.bottleneck.histogram import empty, observe

SOURCES = {
    "relu": lambda rng: np.maximum(rng.standard_normal(100_000), 0),
    "exponential": lambda rng: rng.exponential(size=100_000),
    "signed": lambda rng: rng.standard_normal(100_000) * 37.0,
    "codes": lambda rng: rng.integers(0, 16, 10_000) * 0.25,
    # Where bins hold two heaps, points between their edges cannot spread as far as they do.
    "heaps": lambda rng: rng.integers(0, 256, 10_000) + rng.choice([0, 0.96875], 10_000),
    "zeros": lambda rng: np.zeros(10),
    "constant": lambda rng: np.full(10, 3.0),
}


@pytest.fixture(params=SOURCES)
def data(request):
    """`(x, its histogram)`; float32 values in float64, so that sums have no error."""
    x = SOURCES[request.param](np.random.default_rng(0)).astype(np.float32)
    return x.astype(np.float64), observe(empty(), jnp.asarray(x))


def quantized(x, scale, bits):
    codes = np.minimum(np.round(np.abs(x) / scale), 2**bits - 1)
    return codes, np.mean((np.abs(x) - scale * codes) ** 2)


def entropy_of(codes):
    p = np.unique(codes, return_counts=True)[1] / codes.size
    return -(p * np.log2(p)).sum()


def test_moments_are_those_of_the_data(data):
    x, seen = data
    found = measures.moments(seen)
    assert found.mean == pytest.approx(np.abs(x).mean(), rel=1e-5)
    assert found.energy == pytest.approx(np.mean(x**2), rel=1e-5)
    assert found.zeros == np.mean(x == 0)
    assert found.negatives == np.mean(x < 0)


@pytest.mark.parametrize("per_bin", [1, 2, 8])
def test_a_sample_has_the_moments_of_every_bin_and_stays_inside_it(data, per_bin):
    _, seen = data
    values, weights, within = measures.sample(seen, per_bin)
    assert (np.diff(values) >= 0).all()
    assert weights.sum() == pytest.approx(1)
    assert values @ weights == pytest.approx(measures.moments(seen).mean, rel=1e-12)
    assert values**2 @ weights + within == pytest.approx(measures.moments(seen).energy, rel=1e-12)
    bins = np.minimum(values / seen.width, 255).astype(int)
    shares = np.bincount(bins, weights, minlength=256) * seen.total
    np.testing.assert_allclose(shares, seen.counts, rtol=1e-9)


@pytest.mark.parametrize("bits", [1, 3, 5])
@pytest.mark.parametrize("bins_per_step", [2, 8, 32])
def test_error_and_entropy_are_exact_where_thresholds_are_edges_of_bins(data, bits, bins_per_step):
    x, seen = data
    scale = bins_per_step * seen.width
    # Elements at a threshold are as far from either level, but have a code of one or the other.
    x = x[np.abs(x) / scale % 1 != 0.5]
    seen = observe(empty(), jnp.asarray(np.append(x, seen.full_scale), jnp.float32))
    codes, error = quantized(np.append(x, seen.full_scale), scale, bits)
    # What is kept of a place is off by up to 1/512 of a width.
    tolerance = 1e-4 * seen.width * scale * 2**bits
    assert measures.grid_distortion(seen, scale, bits) == pytest.approx(
        error, rel=1e-4, abs=tolerance
    )
    assert measures.grid_entropy(seen, scale, bits) == pytest.approx(entropy_of(codes), abs=1e-9)


@pytest.mark.parametrize("source", ["relu", "exponential", "signed"])
@pytest.mark.parametrize("bits", [2, 4, 6])
def test_error_and_entropy_are_close_at_any_scale(source, bits):
    x = SOURCES[source](np.random.default_rng(1)).astype(np.float32).astype(np.float64)
    seen = observe(empty(), jnp.asarray(x, jnp.float32))
    for fraction in (0.31, 0.57, 0.93):
        scale = fraction * np.abs(x).max() / (2**bits - 1)
        codes, error = quantized(x, scale, bits)
        # 0.1 dB; the narrowest step is 0.7 of a bin.
        assert measures.grid_distortion(seen, scale, bits) == pytest.approx(error, rel=0.02)
        assert measures.grid_entropy(seen, scale, bits) == pytest.approx(
            entropy_of(codes), abs=0.02
        )


def test_more_points_to_a_bin_come_nearer_the_data():
    x = np.random.default_rng(0).exponential(size=400_000).astype(np.float32)
    seen = observe(empty(), jnp.asarray(x))
    scale, bits = 3.7 * seen.width, 6
    _, exact = quantized(x.astype(np.float64), scale, bits)

    def off(per_bin):
        values, weights, within = measures.sample(seen, per_bin)
        error = values - scale * np.minimum(np.round(values / scale), 2**bits - 1)
        return abs(weights @ error**2 + within - exact) / exact

    assert off(1) > 0.02 > 0.004 > off(8)


@pytest.mark.parametrize("planes", [1, 3, 8])
@pytest.mark.parametrize("rounded", [False, True])
def test_gram_is_that_of_the_planes_of_the_data(planes, rounded):
    x = SOURCES["relu"](np.random.default_rng(0)).astype(np.float32)
    seen = observe(empty(), jnp.asarray(x))
    step = seen.full_scale / 2**planes
    u = np.abs(x.astype(np.float64)) / step
    codes = np.minimum(np.round(u) if rounded else np.floor(u), 2**planes - 1).astype(int)
    bits = (codes[:, None] >> np.arange(planes) & 1).astype(float)
    found = measures.gram(seen, planes, rounded=rounded)
    # Which half of its bin an element is in is told by the bin's shape, not by the element.
    exact = not rounded or planes < 8
    close = {"rtol": 1e-12} if exact else {"atol": 4e-3}
    np.testing.assert_allclose(found.gram_DxD, bits.T @ bits / len(u), **close)
    close = {"rtol": 1e-5} if exact else {"rtol": 1.5e-2}
    np.testing.assert_allclose(found.cross_D, bits.T @ u / len(u), **close)
    assert found.energy == pytest.approx(np.mean(u**2), rel=1e-5)
    assert found.mean == pytest.approx(np.mean(u), rel=1e-5)
    assert found.step == step


def test_gram_of_a_stream_is_that_of_all_of_it():
    batches = [np.random.default_rng(i).exponential(2.0**i, 10_000) for i in range(3)]
    seen = empty()
    for batch in batches:
        seen = observe(seen, jnp.asarray(batch, jnp.float32))
    stream, whole = map(
        measures.gram, (seen, observe(empty(), jnp.asarray(np.concatenate(batches), jnp.float32)))
    )
    np.testing.assert_array_equal(stream.gram_DxD, whole.gram_DxD)
    np.testing.assert_allclose(stream.cross_D, whole.cross_D, rtol=1e-6)
    assert stream.energy == pytest.approx(whole.energy, rel=1e-6)


def test_what_cannot_be_measured_is_an_error():
    seen = observe(empty(), jnp.ones(3))
    with pytest.raises(ValueError, match="must have seen an element"):
        measures.moments(empty())
    with pytest.raises(ValueError, match=r"`planes` must be in \[1, 8\], got 9"):
        measures.gram(seen, 9)
    with pytest.raises(ValueError, match="`scale` must be a finite number > 0, got 0"):
        measures.grid_distortion(seen, 0.0, 4)
    with pytest.raises(ValueError, match="`bits` must be at least 1, got 0"):
        measures.grid_entropy(seen, 1.0, 0)
    with pytest.raises(ValueError, match="`per_bin` must be at least 1, got 0"):
        measures.sample(seen, 0)
