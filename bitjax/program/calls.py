"""One range for all calls of a layer: merges what they measure within a batch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bitjax.program.values import Site
from bitjax.quantizers.base import Batch, Params, Quantizer, Stats

_WIDEST = {"clip_max": jnp.maximum, "clip_min": jnp.minimum}


class Pending(NamedTuple):
    """What the calls of a batch measured so far."""

    weight: jax.Array  # elements seen, scalar float32
    batch: Batch


def nothing(quantizer: Quantizer, params: Params, stats: Stats, site: Site) -> Pending:
    """Before the first call."""
    assert quantizer.measure is not None
    x = jax.ShapeDtypeStruct(site.shape, jnp.promote_types(site.dtype, jnp.bfloat16))
    shapes = jax.eval_shape(quantizer.measure, params, stats, x)

    def full(value):
        return lambda leaf: jnp.full(leaf.shape, value, leaf.dtype)

    empty = (-jnp.inf, jnp.inf, 0.0, 0.0)
    batch = (jax.tree.map(full(v), part) for v, part in zip(empty, shapes, strict=True))
    return Pending(jnp.float32(0.0), Batch(*batch))


def merge(before: Pending, batch: Batch, elements: int) -> Pending:
    """With one more call; means count by their elements, and ranges are as wide as the widest."""
    weight = before.weight + elements
    old, new = before.batch, batch

    def mean(path, a, b):
        # Devices see parts of one distribution, calls do not: the mean of two fitted ranges would
        # cut off most of a call that is much wider than the others.
        widest = _WIDEST.get(path[-1].key)
        if widest is not None:
            return jnp.where(before.weight > 0, widest(a, b), b)
        return a + (b - a) * (elements / weight)

    merged = Batch(
        jax.tree.map(jnp.maximum, old.max, new.max),
        jax.tree.map(jnp.minimum, old.min, new.min),
        jax.tree.map(jnp.add, old.sum, new.sum),
        jax.tree_util.tree_map_with_path(mean, old.mean, new.mean),
    )
    return Pending(weight, merged)


def updated(quantizer: Quantizer, stats: Stats, pending: Pending) -> Stats:
    """The statistics after a batch; as they were if no call was made."""
    assert quantizer.update is not None
    new = quantizer.update(stats, pending.batch)
    return jax.tree.map(lambda a, b: jnp.where(pending.weight > 0, a, b), new, stats)


def together(site: Site, calls: list[jax.Array]) -> jax.Array:
    """What several calls read, as one array of the site's rank for a quantizer to start from."""
    if len({(x.ndim, x.shape[1:]) for x in calls}) == 1 and calls[0].ndim > 1:
        return jnp.concatenate(calls)
    rank, channels = max(2, len(site.shape)), len(site.axes.channel)
    if channels > 1:  # of a cache, the last axes
        kept = calls[0].shape[-channels:]
        rows = [x.reshape(-1, *(1,) * (rank - 1 - channels), *kept) for x in calls]
        return jnp.concatenate(rows)
    # Every call has the same features, because they meet the same kernel.
    axis = site.axes.group
    rows = [jnp.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]) for x in calls]
    whole = jnp.concatenate(rows)
    wide = whole.reshape(len(whole), *(1,) * (rank - 2), -1)
    return jnp.moveaxis(wide, -1, axis)


def wider(a: jax.Array, b: jax.Array) -> jax.Array:
    """That one of two calls which has the largest element."""
    return jnp.where(jnp.max(jnp.abs(b)) > jnp.max(jnp.abs(a)), b, a)


def flat_steps(site: Site, x: Any, inner: int = 0) -> jax.Array:
    """The calls of all steps of a scan, as those of one call of a larger batch."""
    # `inner` axes in front are those of scans inside this one whose steps have their own variables.
    x = jnp.moveaxis(x, 0, inner)
    if x.ndim - inner <= max(2, len(site.shape)):
        return x
    return x.reshape(*x.shape[:inner], -1, *x.shape[inner + 2 :])
