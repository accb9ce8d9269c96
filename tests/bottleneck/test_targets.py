"""Distortions that an independent program found, every entry of its table, from a histogram.

SQNR in dB of half-normal and exponential values at k planes of a code of 8, whose full scale is the
peak of the sample. Bounds, its last column, are in `quantizers/test_bounds.py`.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from bitjax.bottleneck import measures
from bitjax.bottleneck.histogram import empty, observe
from bitjax.solvers import free_scales, lasso_path, lloyd_max, select_planes, window_scales

TOLERANCE = 0.3  # dB

# fmt: off
TABLE = {  # by source and column, at 2 to 6 planes
    ("half-normal", "lasso"): [3.3, 4.8, 6.2, 10.7, 15.9],
    ("half-normal", "exact"): [7.35, 11.77, 18.64, 25.37, 32.09],
    ("half-normal", "window"): [13.15, 18.01, 21.38, 27.38, 33.40],
    ("half-normal", "free"): [13.29, 18.90, 24.33, 29.74, 35.15],
    ("half-normal", "lloyd_max"): [13.57, 19.68, 25.76, 31.77, 37.50],
    ("exponential", "lasso"): [1.5, 3.5, 7.5, 10.9, 12.8],
    ("exponential", "exact"): [5.75, 10.23, 13.06, 19.20, 26.13],
    ("exponential", "window"): [10.11, 15.44, 20.51, 24.39, 27.94],
    ("exponential", "free"): [10.82, 15.67, 20.50, 25.40, 30.41],
    ("exponential", "free_refitted"): [10.87, 15.72, 20.53, 25.42, 30.42],
    ("exponential", "lloyd_max"): [11.68, 17.66, 23.65, 29.69, 35.15],
}
# fmt: on
# After 3000 steps Lloyd's iteration from equally likely levels is at 37.55 and 35.28 dB, and from
# evenly spaced ones further off: the table's figures are of an iteration stopped early. On the data
# itself, not the histogram, the levels found here have 37.85 and 35.79 dB.
BETTER_THAN_THE_TABLE = {
    ("half-normal", "lloyd_max", 6): "64 levels: 37.84 dB found, 0.34 above the table's",
    ("exponential", "lloyd_max", 6): "64 levels: 35.76 dB found, 0.61 above the table's",
}


def sources():
    """The table's own sample: this generator gives its peaks, 4.73 and 8.86 times the rms."""
    rng = np.random.default_rng(0)
    x = np.abs(rng.standard_normal(400_000))
    yield "half-normal", 4.73, x / np.sqrt(np.mean(x**2))
    x = rng.exponential(size=400_000)
    yield "exponential", 8.86, x / np.sqrt(np.mean(x**2))


@pytest.fixture(scope="module")
def found():
    """`{(source, column): decibels at 0 to 6 planes}`."""
    table = {}
    for source, peak, x in sources():
        assert x.max() == pytest.approx(peak, abs=0.01)
        # In units of the code's step, with code 255 at the peak.
        u = np.minimum(x / peak, 1.0) * 255
        seen = observe(empty(), jnp.asarray(u, jnp.float32))
        assert seen.width == 1.0
        gram, cross, energy, mean, _ = measures.gram(seen, 8, rounded=True)
        values, weights, within = measures.sample(seen)
        levels = lloyd_max(values, weights, 64).stats["by_levels"]
        errors = {
            "lasso": lasso_path(gram, cross, energy, mean=mean).objective[1:7],
            "exact": select_planes(gram, cross, energy).objective[1:7],
            "window": window_scales(values, weights, 1.0, refit=True).objective[:6] + within,
            "free": free_scales(values, weights).objective[:6] + within,
            "free_refitted": free_scales(values, weights, refit=True).objective[:6] + within,
            "lloyd_max": levels[[1, 3, 7, 15, 31, 63]] + within,
        }
        for column, error in errors.items():
            table[source, column] = 10 * np.log10(energy / np.append(energy, error))
    return table


ENTRIES = [
    pytest.param(
        *key, k, decibel, id=f"{key[0]}-{key[1]}-{k}",
        marks=[pytest.mark.xfail(reason=reason, strict=True)] if reason else [],
    )
    for key, row in TABLE.items()
    for k, decibel in zip(range(2, 7), row, strict=True)
    for reason in [BETTER_THAN_THE_TABLE.get((*key, k))]
]  # fmt: skip


@pytest.mark.parametrize(("source", "column", "planes", "decibel"), ENTRIES)
def test_the_entry_is_reproduced(found, source, column, planes, decibel):
    assert found[source, column][planes] == pytest.approx(decibel, abs=TOLERANCE)


def test_where_the_table_is_beaten_it_is_by_no_more_than_lloyds_iteration_was_short(found):
    assert found["half-normal", "lloyd_max"][6] == pytest.approx(37.84, abs=0.02)
    assert found["exponential", "lloyd_max"][6] == pytest.approx(35.76, abs=0.02)


def test_columns_are_in_the_order_of_the_table(found):
    """From left to right each is better; at 4 exponential planes the window has its refit to it."""
    for source in ("half-normal", "exponential"):
        columns = ("lasso", "exact", "window", "free_refitted", "lloyd_max")
        rows = np.stack([found[source, column][2:] for column in columns])
        assert (np.diff(rows, axis=0) > 0).all()
