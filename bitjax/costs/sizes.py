"""The size of what is stored: a packed model, and what each token adds to its caches.

1 kB is 1024 bytes.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bitjax.checks import checked
from bitjax.costs.bits import bits_of
from bitjax.costs.measures import kernel_bytes, site_bits
from bitjax.costs.site import SITE_COSTS, Costs
from bitjax.variables import QUANT, STATS, VARIABLES, floats_of


@checked(variables=VARIABLES, costs=SITE_COSTS)
def model_bytes(variables: Mapping[str, Any], costs: Costs) -> float:
    """Bytes of the packed model without a header: codes, scales, bit tables and float leaves.

    A code counts its bits, an entry of a table of bits one byte. Everything else counts four bytes:
    a quantizer's other leaves, the ends or the scale of an observed range, parameters without a
    site and the running statistics of normalisations. Ends that all are opposites, or all start at
    0, are one number each. A kernel that is made of fewer parameters, as
    a product of two, counts itself.

    Args:
      variables: all collections of a model, quantized or not.
      costs: the costs of the sites, from `site_costs`.

    Example:
      >>> import jax.numpy as jnp
      >>> from bitjax.costs.site import SiteCost
      >>> params = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
      >>> model_bytes({"params": params}, {"kernel": SiteCost(12, 12, 4, "kernel", "", "kernel")})
      64.0
    """

    tables = jax.tree_util.tree_leaves_with_path(variables.get(QUANT, {}))
    codes = float(kernel_bytes(bits_of(variables), costs))
    kernels = sum(cost.elements for cost in costs.values() if cost.role == "kernel")
    floats = sum(np.size(x) for x in jax.tree.leaves(floats_of(variables)))
    numbers = sum(np.size(x) * (1 if path[-1].key == "bits" else 4) for path, x in tables)
    ranges = _numbers_of_ranges(variables.get(STATS, {}))
    return codes + 4.0 * max(0, floats - kernels) + numbers + 4.0 * ranges


def _numbers_of_ranges(stats):
    """How many numbers observed ranges need."""
    found = 0
    for leaf, x in (leaves := dict(jax.tree_util.tree_leaves_with_path(stats))).items():
        low = leaves.get((*leaf[:-1], jax.tree_util.DictKey("clip_min")))
        if leaf[-1].key == "clip_max" and low is not None:
            # The start follows from the end where all blocks say so.
            follows = np.array_equal(low, -np.asarray(x)) or not np.any(low)
            found += np.size(x) * (1 if follows else 2)
        elif leaf[-1].key == "scale":
            found += np.size(x)
    return found


@checked(variables=VARIABLES, costs=SITE_COSTS)
def cache_bytes(variables: Mapping[str, Any], costs: Costs) -> float:
    """Bytes of the codes that each token adds to the caches of a model.

    The sum over caches of elements of a token * bits / 8; a float cache counts 4 bytes an element.
    Scales are none of a token's: ranges are fixed.

    Args:
      variables: all collections of a model, quantized or not.
      costs: the costs of the sites, from `site_costs`.

    Example:
      >>> import jax.numpy as jnp
      >>> from bitjax.costs.site import SiteCost
      >>> costs = {"key_cache": SiteCost(0, 96, 32, "key_cache", "key_cache", "cache")}
      >>> quant = {"key_cache": {"bits": jnp.float32(4.0)}}
      >>> cache_bytes({}, costs), cache_bytes({"quant": quant}, costs)
      (128.0, 16.0)
    """
    caches = {site: cost for site, cost in costs.items() if cost.role == "cache"}
    mean = site_bits(bits_of(variables), caches)
    return sum(float(mean[site].sum()) * cost.filters / 8 for site, cost in caches.items())
