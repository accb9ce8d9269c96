"""The picture's numbers stand in the order that theory gives them, and the picture is drawn."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.bottleneck.histogram import empty, observe
from bitjax.quantizers.bounds import half_normal_bound
from experiments.rate_distortion import allocation_rows, distortion_value, draw, site_curves


def half_normal(seed, spread=1.0):
    x = spread * jnp.abs(jax.random.normal(jax.random.key(seed), (20_000,)))
    return observe(empty(), x)


@pytest.fixture(scope="module")
def curves():
    return {f"layer{i}/input": site_curves(half_normal(i, 2.0**i), 5) for i in range(3)}


def test_each_way_to_quantize_loses_no_more_than_the_one_before_and_none_beats_the_bound(curves):
    bound = [-10 * np.log10(half_normal_bound(float(k))) for k in range(1, 6)]
    for site in curves.values():
        assert (site["truncated"][1:] < site["window"][1:]).all()
        assert (site["window"] <= site["free"] + 0.02).all()
        assert (site["free"] <= site["Lloyd-Max"] + 0.02).all()
        assert (site["Lloyd-Max"] < bound).all()


def test_the_picture_is_a_png(curves, tmp_path):
    draw(curves, tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes()[:4] == b"\x89PNG"


def test_what_is_kept_for_the_comparison_has_every_quantizer_below_the_bound(curves):
    kept = json.loads(json.dumps(distortion_value(curves)))
    assert kept["rates"] == [1, 2, 3, 4, 5]
    limit = np.array(kept["sqnr"].pop("bound: half-normal"))
    assert set(kept["sqnr"]) == {"free", "window", "truncated", "Lloyd-Max"}
    assert all((np.array(values) < limit).all() for values in kept["sqnr"].values())


def test_an_allocation_saves_loss_where_sites_differ_and_nothing_where_they_do_not():
    alike = {site: half_normal(0) for site in "ab"}
    costs = {site: bj.SiteCost(8, 8, 8, site, site, "input") for site in "ab"}
    for weights, least in (({"a": 1.0, "b": 1.0}, 1.0), ({"a": 1.0, "b": 100.0}, 0.7)):
        rows = allocation_rows(bj.rate_curves(alike), costs, weights, (3.0, 3.5))
        assert [rate for rate, _, _ in rows] == [3.0, 3.5]
        shares = [found / equal for _, equal, found in rows]
        assert shares[0] <= least * (1 + 1e-9) and shares[1] <= 1 + 1e-9
        if least == 1.0:
            assert shares == pytest.approx([1.0, 1.0])
