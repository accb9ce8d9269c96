"""What caches cost: bytes of a token, and the work of the products that read them."""

import jax.numpy as jnp
import pytest

from bitjax import average_bits, bops, budget, cache_bytes, macs, penalty, round_bits
from bitjax.costs.budget import budget_sites, exact_cost
from bitjax.costs.measures import activation_bytes, layer_pairs
from bitjax.costs.site import SiteCost

KEYS = "attn/key_cache"
# One cache that two products read, on either side, and one that a kernel absorbs.
COSTS = {
    "attn/k/kernel": SiteCost(80, 16, 4, "attn/k/kernel", "attn/k", "kernel"),
    "attn/k/input": SiteCost(80, 20, 4, "attn/k/input", "attn/k", "input"),
    KEYS: SiteCost(300, 40, 8, KEYS, KEYS, "cache"),
    "attn/product0/left": SiteCost(100, 40, 5, "l", "attn/product0", "left", partner=KEYS),
    "attn/product1/right": SiteCost(200, 40, 5, "r", "attn/product1", "right", partner=KEYS),
    "latent_cache": SiteCost(60, 30, 6, "latent_cache", "latent_cache", "cache", count=3),
    "up/kernel": SiteCost(60, 12, 2, "up/kernel", "up", "kernel", count=3, partner="latent_cache"),
}
BITS = {
    "attn/k/kernel": 2.0,
    "attn/k/input": 8.0,
    KEYS: jnp.array([3.0, 5.0]),  # by channel
    "attn/product0/left": 6.0,
    "attn/product1/right": 7.0,
    "latent_cache": 3.0,
    "up/kernel": 5.0,
}


def test_a_token_adds_its_elements_by_their_bits_in_every_layer():
    quant = {"attn": {"key_cache": {"bits": BITS[KEYS]}}, "latent_cache": {"bits": jnp.ones(3)}}
    assert cache_bytes({"quant": quant}, COSTS) == (8 * 4 + 3 * 6 * 1) / 8
    assert cache_bytes({"params": {}}, COSTS) == 4 * (8 + 3 * 6)
    assert cache_bytes({}, {}) == 0.0


def test_every_product_pairs_its_own_side_with_the_cache():
    assert layer_pairs(COSTS) == {
        "attn/k": ("attn/k/kernel", "attn/k/input"),
        "attn/product0": (KEYS, "attn/product0/left"),
        "attn/product1": (KEYS, "attn/product1/right"),
        "up": ("up/kernel", "latent_cache"),
    }
    assert macs(COSTS) == 80 + 100 + 200 + 60
    expected = 80 * 2 * 8 + 100 * 4 * 6 + 200 * 4 * 7 + 60 * 5 * 3
    assert float(bops(BITS, COSTS)) == expected
    assert float(bops(BITS, COSTS, [KEYS])) == 100 * 4 * 6 + 200 * 4 * 7


def test_an_example_counts_all_its_tokens_and_averages_count_a_cache_as_a_site():
    expected = 20 * 8 + 40 * 4 + 40 * 6 + 40 * 7 + 30 * 3
    assert float(activation_bytes(BITS, COSTS)) == expected / 8
    assert float(average_bits(BITS, COSTS, [KEYS, "latent_cache"])) == (4 + 3 * 3) / 4


def test_budgets_count_caches_where_they_count_what_layers_read():
    assert budget_sites(budget("bits", 4.0, ".*_cache"), COSTS) == [KEYS, "latent_cache"]
    assert budget_sites(budget("activation_bytes", 4.0, ".*_cache"), COSTS) == [
        KEYS, "latent_cache"
    ]  # fmt: skip
    assert budget_sites(budget("bops", 1.0, "attn/(key_cache|product0/left)"), COSTS) == [
        KEYS, "attn/product0/left"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="Sites: attn/k/kernel, attn/key_cache, up/kernel"):
        budget_sites(budget("bops", 1.0, "nothing"), COSTS)


def test_eight_bits_everywhere_are_a_penalty_of_eight():
    def quant(paths):
        tree = {}
        for path in paths:
            node = tree
            for name in path.split("/"):
                node = node.setdefault(name, {})
            node["bits"] = jnp.full(COSTS[path].count, 8.0)
        return tree

    for criterion in ("equal", "macs", "bytes", "bops"):
        assert float(penalty(quant(COSTS), COSTS, criterion)) == pytest.approx(8.0)


@pytest.mark.parametrize("metric", ["bits", "activation_bytes", "bops"])
def test_rounding_meets_a_budget_that_counts_caches(metric):
    bits = {site: jnp.asarray(n, jnp.float32) + 0.4 for site, n in BITS.items()}
    bits["latent_cache"], bits["up/kernel"] = jnp.full(3, 3.4), jnp.full(3, 5.4)
    limit = budget(metric, 0.9 * exact_cost(budget(metric, 1.0), bits, COSTS))
    rounded = round_bits(bits, COSTS, dict.fromkeys(bits, (1.0, 8.0)), "budget", [limit])
    assert exact_cost(limit, {**bits, **rounded}, COSTS) <= limit.limit
