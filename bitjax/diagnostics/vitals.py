"""How a quantizer and the tensor that it is given get on, in a few figures."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.linen.probe import Seen, compile_quickly
from bitjax.quantizers.base import Params, Quantizer, Stats
from bitjax.quantizers.grid import steps, widen
from bitjax.rules import Rules, quantizer_of

_CLIPPING_ERROR = 0.8  # share of the squared error; about a half where the range is the best one


class Vitals(NamedTuple):
    """Figures of one tensor; scalars, or a leading axis over the layers of a scan.

    Attributes:
      zeros: share of zeros after quantization among the elements that were none before.
      saturated: share of elements beyond the lowest or the highest level by more than half the
        mean distance between levels, where these also cause most of the squared error; else 0. At
        2 bits the best range leaves more than 5 % outside, with half of the error.
      cut: share of elements below 0 where no level is.
      half_used: whether no element is below 0 though about half of the levels are.
    """

    zeros: jax.Array
    saturated: jax.Array
    cut: jax.Array
    half_used: jax.Array


def vitals(
    quantizer: Quantizer, params: Params, stats: Stats, x: jax.Array, train: bool = False
) -> Vitals:
    """Looks at one tensor; the ends of the levels are what numbers far outside are quantized to.

    Example:
      >>> from bitjax.quantizers.base import Axes
      >>> from bitjax.quantizers.uniform import pact
      >>> q = pact(bits=2, init_clip=3.0)
      >>> x = jnp.array([-1.0, 1.0, 9.0, 9.0])
      >>> found = vitals(q, *q.init(x, Axes()), x)
      >>> float(found.saturated), float(found.cut)
      (0.75, 0.25)
    """
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
    )


def hand_out(seen: Seen) -> dict[str, Any]:
    """What `site_vitals` needs of a layer's call, for `probe`.

    The tensors are handed out whole: sites of one shape and quantizer then share one compilation,
    and the program that is differentiated stays as small as it is.
    """
    uses = {role: (use.params, use.stats, use.x) for role, use in seen.uses.items()}
    return jax.lax.stop_gradient(uses)


def site_vitals(
    records: list[tuple[str, Mapping[str, Any], int]], rules: Rules, train: bool
) -> dict[str, Vitals]:
    """The vitals of every quantized site, as NumPy arrays.

    Args:
      records: (layer, what `hand_out` gave, number of scans around the layer).
      rules: that the model was called with.
      train: whether it was called in training.

    Example:
      >>> site_vitals([("conv", {}, 0)], (), False)
      {}
    """
    compiled: dict[tuple[int, int], Any] = {}
    found = {}
    for name, uses, depth in records:
        for role, use in uses.items():
            site = f"{name}/{role}" if name else role
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
