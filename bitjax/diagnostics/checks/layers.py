"""Findings on layers: units that are always 0, one range for calls that differ."""

from collections.abc import Iterator, Sequence

import numpy as np

from bitjax.diagnostics.findings import Found
from bitjax.diagnostics.measure import Measured

_DEAD = 0.4  # share of a layer's units
_APART = 8.0  # one call's largest element over another's: three bits
_WORSE = 4.0  # one call's error over another's


def dead_units(m: Measured, before: Sequence[Found]) -> Iterator[Found]:
    """Layers many of whose units are 0 in every example, behind their activation."""
    # Not those behind a finding that explains it: constant data, or a tensor that became 0.
    if not any(np.mean(size == 0) >= _DEAD for size in m.features.values()):
        return
    order = {site.layer: i for i, site in enumerate(m.program.sites.values())}
    own = {name: site.layer for name, site in m.program.sites.items()}
    sources = [own.get(f.site, f.site.rpartition("/")[0]) for f in before if f.blocks]
    first = min((order.get(layer, -1) for layer in sources), default=len(m.program.sites))
    filters = {product.layer: product.filters for product in m.program.products}
    for layer, reader in m.consumers().items():
        size = m.features.get(reader.site or "")
        # Where data are reshaped on the way, a feature is no unit.
        if size is None or size.size != filters.get(layer) or order.get(layer, -1) >= first:
            continue
        dead = int(np.sum(size == 0))
        if dead >= _DEAD * size.size:
            message = (
                f"has {dead} of {size.size} units that are 0 in every example where "
                f"{reader.site} reads them, and learn nothing behind a ReLU: look at its bias and "
                "its normalisation, initialise it anew or lower the learning rate"
            )
            yield Found("warning", layer, message, blocks=dead == size.size)


def calls(m: Measured) -> Iterator[Found]:
    """A layer that is called on tensors of very different size, with one range for all calls."""
    for site, number in m.program.calls.items():
        spots = m.sites.get(site, ())
        if number < 2 or not spots or spots[0].role == "kernel" or "step" in spots[0].place:
            continue
        peaks = [float(s.figures.peak) for s in spots if s.figures.peak > 0]
        errors = [float(s.figures.error) for s in spots if s.figures.peak > 0]
        if len(peaks) < 2 or max(peaks) < _APART * min(peaks):
            continue
        if max(errors) > _WORSE * min(errors):
            message = (
                f"is one range for {len(spots)} calls of a layer whose data reach {min(peaks):.3g} "
                f"and {max(peaks):.3g}, and errs by {100 * max(errors):.0f} % in one call and "
                f"{100 * min(errors):.1f} % in another: give every call a site of its own by "
                'calls="each" of the wrapper, bitjax.Quantized(model, rules, calls="each"), and '
                "attach anew"
            )
            yield Found("warning", site, message)
