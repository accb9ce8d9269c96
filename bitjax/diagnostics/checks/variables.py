"""Findings on variables: weights, statistics of normalisations, what quantizers store."""

from collections.abc import Iterator

import jax
import numpy as np

from bitjax.diagnostics.findings import Found
from bitjax.diagnostics.measure import Measured, read_leaf
from bitjax.program.naming import path_of
from bitjax.rules import quantizer_of
from bitjax.variables import QUANT, STATS, floats_of, read_site

_ABSURD = 1e6  # a variable's size
_STALE = 100.0  # a running variance over the batch's, or the other way round
_FAR = 10.0  # standard deviations between a running mean and the batch's
_MOST_BITS = 32  # of a float


def weights(m: Measured) -> Iterator[Found]:
    """Float variables of absurd size, and kernels of zeros."""
    for keys, leaf in jax.tree_util.tree_leaves_with_path(floats_of(m.variables)):
        if not jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating) or not leaf.size:
            continue
        largest, path = float(np.max(np.abs(leaf))), path_of(keys[1:])
        if largest <= _ABSURD or path.rpartition("/")[0] in m.norms:
            continue
        if keys[0].key == "params":
            message = f"holds weights up to {largest:.3g}: load others, or lower the learning rate"
            yield Found("error", path, message, blocks=True)
        else:
            message = (
                f"holds values up to {largest:.3g}: load others; statistics of a normalisation are "
                "taken anew by bitjax.reestimate_batch_stats"
            )
            yield Found("warning", path, message)
    params = {path_of(p): x for p, x in jax.tree_util.tree_leaves_with_path(m.variables["params"])}
    for site, path in m.program.parameters.items():
        kernel, lengths = np.asarray(params[path]), m.program.sites[site].lengths
        depth = len(lengths) if kernel.shape[: len(lengths)] == lengths else 0
        zero = np.all(kernel == 0, axis=tuple(range(depth, kernel.ndim)))
        if np.any(zero):
            part = "" if np.all(zero) else f" in {np.sum(zero)} of {zero.size} steps of its scan"
            message = (
                f"is all zeros{part} before it is quantized, so that its layer passes on no data "
                "and no gradient: initialise or load it, unless it starts at 0 on purpose"
            )
            yield Found("warning", site, message, blocks=True)


def norms(m: Measured) -> Iterator[Found]:
    """Running statistics that are not those of the data."""
    others = {name: tree for name, tree in floats_of(m.variables).items() if name != "params"}
    for norm, (mean, var) in m.norms.items():
        for tree in others.values():
            kept = read_site(tree, norm, None)
            if kept is None or np.shape(kept.get("var")) != var.shape:
                continue
            ratio = float(np.median(np.asarray(kept["var"]) / np.maximum(var, 1e-12)))
            shift = np.abs(np.asarray(kept.get("mean", mean)) - mean)
            far = float(np.median(shift / np.sqrt(np.maximum(var, 1e-12))))
            if 1.0 / _STALE < ratio < _STALE and far < _FAR:
                continue
            message = (
                f"has running statistics of other data: its variance is {ratio:.3g} times the "
                f"batch's, its mean {far:.2g} standard deviations off: take them anew by "
                "bitjax.reestimate_batch_stats, or load those of these weights"
            )
            yield Found("warning", norm, message)


def stored(m: Measured) -> Iterator[Found]:
    """Leaves of quantizers that no quantizer makes, and ranges that no data made."""
    for site in m.program.sites:
        quantizer = quantizer_of(m.rules, site)
        leaves = read_site(m.variables.get(QUANT, {}), site, None)
        if quantizer is None or leaves is None:
            continue
        own = {name: np.asarray(x) for name, x in leaves.items() if not isinstance(x, dict)}
        for name, leaf in own.items():
            if not np.all(np.isfinite(leaf)):
                message = f"has NaN or inf in {name!r}: fit it anew by bitjax.attach"
                yield Found("error", site, message, blocks=True)
            elif name in ("scale", "clip_max") and np.any(leaf <= 0):
                yield _range_at(site, name, leaf)
            elif name == "bits" and quantizer.traits.learns_bits is None:
                yield from _fixed_bits(site, quantizer, leaf)
        count = read_leaf(m.variables.get(STATS, {}), site, "count")
        is_kernel = m.program.sites[site].role == "kernel"
        if not is_kernel and count is not None and np.any(np.asarray(count) == 0):
            message = (
                "has a range that was never observed: run bitjax.calibrate(model, variables, "
                "batches), or train with quant_stats mutable, before evaluating"
            )
            yield Found("warning", site, message)


def _range_at(site, name, leaf):
    """A step or a clip that is 0 or negative."""
    zero, all_zero = np.sum(leaf == 0), bool(np.all(leaf == 0))
    part = f"in {np.sum(leaf <= 0)} of {leaf.size} blocks " if leaf.size > 1 else ""
    if zero:
        message = f"has {name!r} at 0 {part}where it is above 0, so that all becomes 0"
    else:
        message = (
            f"has {name!r} at {leaf.min():.3g} {part}where it is above 0; its size is taken, and "
            "its gradient has the other sign"
        )
    message += ": fit it anew by bitjax.attach, or lower the learning rate of ranges"
    return Found("error" if all_zero else "warning", site, message, blocks=all_zero)


def _fixed_bits(site, quantizer, bits):
    """Bits that a grid of whole bits cannot have."""
    least, most, whole = bits.min(), bits.max(), np.all(bits == np.rint(bits))
    remedy = f"give whole bits from 1 on (bitjax.with_bits), as {quantizer.name!r} learns none"
    if most > _MOST_BITS or least < 0 or most <= 0:  # 0 bits in some blocks prune them
        odd = most if most > _MOST_BITS else least
        effect = ", so that all becomes 0" if most <= 0 else ""
        yield Found("error", site, f"has {odd:g} bits{effect}: {remedy}", blocks=most <= 0)
    elif not whole:
        odd = bits.ravel()[np.argmax(bits.ravel() != np.rint(bits.ravel()))]
        message = f"has {odd:g} bits and computes with {np.rint(odd):g}: {remedy}"
        yield Found("error", site, message)
