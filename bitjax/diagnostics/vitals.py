"""Health figures of a quantized tensor: zeros, saturation, cut values, unused codes."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.frameworks.models import compile_quickly
from bitjax.program.state import Seen
from bitjax.program.values import Product
from bitjax.quantizers.base import Params, Quantizer, Stats
from bitjax.quantizers.grid import steps, widen
from bitjax.rules import Rules, quantizer_of

# Share of the squared error from which on the range is to blame. At the best range it is about a
# half, and at 2 bits that leaves more than 5 % of the elements outside.
_CLIPPING_ERROR = 0.8


class Vitals(NamedTuple):
    """Figures of one tensor; scalars, or a leading axis over the layers of a scan."""

    zeros: jax.Array  # share of zeros among the elements that were none before quantization
    # share beyond the outer levels by over half a step, if most of the error is there; else 0
    saturated: jax.Array
    cut: jax.Array  # share of elements below 0 where no level is
    half_used: jax.Array  # whether no element is below 0 though about half of the levels are
    moved: jax.Array  # share of elements that were exactly 0 and are not any more


def vitals(
    quantizer: Quantizer, params: Params, stats: Stats, x: jax.Array, train: bool = False
) -> Vitals:
    """The figures of one tensor and its quantizer."""
    # The ends of the levels are found by quantizing numbers far outside.
    x = widen(x)
    if quantizer.traits.rectifies:  # what is below 0 is not its error, as behind a ReLU
        x = jnp.maximum(x, 0.0)

    def quantize(x):
        return quantizer.apply(params, stats, x, train=train, key=jax.random.key(0))

    far = jnp.full_like(x, 1e3 * jnp.max(jnp.abs(x)) + 1.0)
    x_hat, low, high = quantize(x), quantize(-far), quantize(far)
    bits = jnp.clip(jnp.rint(params["bits"]), 0, 16)
    step = (high - low) / jnp.maximum(steps(jnp.max(bits)), 1.0)
    outside = (x < low - step / 2) | (x > high + step / 2)
    error = jnp.square(x_hat - x)
    to_blame = jnp.sum(jnp.where(outside, error, 0.0)) / jnp.maximum(jnp.sum(error), 1e-30)
    # Where nothing is clipped there are no ends to compare.
    two_sided = (high > 0) & (low <= -0.4 * high) & (high < far / 2)
    return Vitals(
        zeros=jnp.sum((x_hat == 0) & (x != 0)) / jnp.maximum(jnp.sum(x != 0), 1),
        saturated=jnp.mean(outside) * (to_blame > _CLIPPING_ERROR),
        cut=jnp.mean((x < 0) & (low >= 0) & (high > 0)),
        half_used=(jnp.min(x) >= 0) & (jnp.max(x) > 0) & jnp.all(two_sided),
        moved=jnp.mean((x == 0) & (x_hat != 0)),
    )


def hand_out(seen: Seen) -> dict[str, Any]:
    """The leaves and tensors of a layer's call that `site_vitals` needs, by site, for `probe`."""
    # The tensors are handed out whole: sites of one shape and quantizer then share one compilation,
    # and the program that is differentiated stays as small as it is. But a kernel that all steps of
    # a scan share would be handed out by each of them: of that one, the figures.
    found: dict[str, Any] = {}
    for role, use in seen.uses.items():
        given = jax.lax.stop_gradient((use.params, use.stats, use.x))
        shared = role == "kernel" and _is_shared(seen.product)
        found[seen.site(role)] = vitals(use.quantizer, *given, use.train) if shared else given
    return found


def _is_shared(product: Product) -> bool:
    kernels = [o.site for o in product.operands.values() if o.role == "kernel"]
    return any(product.times > math.prod(site.lengths) for site in kernels)


def site_vitals(
    records: list[tuple[str, Mapping[str, Any], int]], rules: Rules, train: bool
) -> dict[str, Vitals]:
    """The vitals of every quantized site, from (layer, `hand_out`'s record, scans around it)."""
    compiled: dict[tuple[int, int], Any] = {}
    found = {}
    for _, uses, depth in records:
        for site, use in uses.items():
            if isinstance(use, Vitals):
                found[site] = jax.tree.map(np.asarray, use)
                continue
            quantizer = quantizer_of(rules, site)
            assert quantizer is not None, "a site in use has a quantizer"
            key = id(quantizer), depth
            if key not in compiled:
                compiled[key] = _compiled(quantizer, depth, train)
            found[site] = jax.tree.map(np.asarray, compiled[key](*use))
    return found


def _compiled(quantizer, depth, train):
    def function(params, stats, x):
        return vitals(quantizer, params, stats, x, train)

    for _ in range(depth):
        function = jax.vmap(function)
    return jax.jit(function, **compile_quickly())
