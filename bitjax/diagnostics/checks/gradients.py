"""Findings on gradients: to kernels, to bits, and where they are lost."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from bitjax.diagnostics.findings import Found
from bitjax.diagnostics.measure import Measured, read_leaf
from bitjax.program.naming import path_of
from bitjax.rules import quantizer_of
from bitjax.variables import QUANT


def bits(m: Measured, unused: frozenset[str]) -> Iterator[Found]:
    """Learned bits that cannot move, or not further."""
    for name, site in m.program.sites.items():
        quantizer = quantizer_of(m.rules, name) if name in m.sites else None
        if quantizer is None or quantizer.traits.learns_bits is None or site.layer in unused:
            continue
        value = np.asarray(read_leaf(m.variables[QUANT], name, "bits"))
        least, most = quantizer.traits.learns_bits
        for bound, stuck in (
            (f"min_bits={least:g}", value <= least),
            (f"max_bits={most:g}", value >= most),
        ):
            if np.any(stuck):
                share = "" if np.all(stuck) else f" in {100 * np.mean(stuck):.0f} % of its blocks"
                message = (
                    f"has its bitlength at {bound}{share}: widen the bounds, start "
                    "elsewhere or change the penalty's strength"
                )
                yield Found("warning", name, message)
        gradient = np.asarray(read_leaf(m.gradients[QUANT], name, "bits"))
        if not np.all(np.isfinite(gradient)):
            yield Found("error", name, "gets a NaN or inf gradient to its bits: check the loss")
        elif np.any(_zero(gradient, len(site.lengths))):
            message = (
                "gets no gradient to its bits, so they cannot move: is the layer's output used?"
            )
            yield Found("warning", name, message)


def kernels(m: Measured, before: Sequence[Found], unused: frozenset[str]) -> Iterator[Found]:
    """Kernels without a gradient; the float model is run only where there is one."""
    # What lets no gradient through has been found, and is named here as the cause.
    blocking = [found.site for found in before if found.blocks and found.site != "batch"]
    because = f"see {', '.join(dict.fromkeys(blocking[:3]))}" if blocking else ""
    ours = {path_of(p): x for p, x in jax.tree_util.tree_leaves_with_path(m.gradients["params"])}
    for name, path in m.program.parameters.items():
        site, gradient = m.program.sites[name], np.asarray(ours[path])
        if name in blocking or site.layer in unused:
            continue
        # A parameter that is stacked along another axis is looked at as a whole.
        stacked = gradient.shape[: len(site.lengths)] == site.lengths
        depth = len(site.lengths) if stacked else 0
        dead = _zero(gradient, depth)
        if not np.all(np.isfinite(gradient)):
            yield Found("error", name, "gets a NaN or inf gradient: check the loss and the data")
        elif np.any(dead):
            part = "" if np.all(dead) else f" in {np.sum(dead)} of {dead.size} steps of its scan"
            if np.any(dead & ~_zero(m.float_gradients()[path], depth)):
                why = because or (
                    "a quantizer before or behind it gives only zeros or clips all: more bits or "
                    "another range help"
                )
                message = f"gets no gradient{part}, which the float model gives it: {why}"
                yield Found("error", name, message)
            else:
                why = because or "is its output used, or scaled by an initial 0?"
                message = f"gets no gradient{part}, without quantization either: {why}"
                yield Found("warning", name, message)


def _zero(gradient, depth):
    """Whether a gradient is all zeros, for each layer of a scan of the given depth."""
    gradient = np.asarray(gradient)
    return np.all(gradient == 0, axis=tuple(range(depth, gradient.ndim)))
