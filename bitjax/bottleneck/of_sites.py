"""Makes a histogram of |x| at every site in one pass over batches, with O(1) memory."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.bottleneck.counts import Counts, count
from bitjax.bottleneck.histogram import Histogram, empty, gather, merge
from bitjax.checks import BATCHES, PATTERN, SWITCH, checked, integer
from bitjax.frameworks.calibrate import numbered, raise_nonfinite
from bitjax.frameworks.compiled import jit_arrays
from bitjax.frameworks.probe import probe
from bitjax.program.kept import Told
from bitjax.program.state import Seen
from bitjax.variables import VARIABLES, as_call


@checked(variables=VARIABLES, batches=BATCHES, sites=PATTERN, stride=integer(1), per_example=SWITCH)
def site_histograms(
    model: Any,
    variables: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    sites: str = ".*/input",
    stride: int = 1,
    per_example: bool = False,
    **kwargs: Any,
) -> dict[str, Histogram]:
    """Counts the values of every site before its quantizer, while the model runs as it stands.

    Args:
      model: a Linen module or a function of parameters; in a wrapped one, the sites see the
        outputs of quantized layers.
      variables: all collections of the model.
      batches: arrays, tuples of the model's arguments, or `bitjax.Inputs`.
      sites: a regular expression, matched in full against the sites' names.
      stride: n counts only every n-th run of 4096 elements.
      per_example: whether to count x / max|x| over the example, as the paper's codes do; an example
        of zeros stays as it is.
      **kwargs: keyword arguments of the model, but not `train=True`.

    Returns:
      `{site: Histogram}` in forward order.

    Raises:
      ValueError: there are no batches, the pattern matches no site (the sites are listed), or a
        tensor holds NaN or inf (which names its site); or the sites are in loops or branches.

    Example:
      >>> import flax.linen as nn
      >>> x = jax.numpy.array([[0.0, 1.0], [2.0, 4.0]])
      >>> variables = nn.Dense(3).init(jax.random.key(0), x)
      >>> found = site_histograms(nn.Dense(3), variables, [x], sites="input")
      >>> found["input"].total, found["input"].full_scale
      (4, 4.0)
    """
    total: dict[str, Histogram] = {}
    every, unseen, static = (), (), (model, sites, stride, per_example)
    for index, inputs in numbered(batches, "site_histograms"):
        call = as_call(inputs, kwargs)
        told, records = jit_arrays(_counts, variables, *call, static=static)
        every, unseen = told.value
        for record in jax.device_get(records):
            for site, counts in record.items():
                try:
                    for one in _layers(counts):
                        total[site] = merge(total.get(site, empty()), gather(one))
                except ValueError:
                    raise_nonfinite(f"batch {index}", model, variables, *call, site)
    if unseen and not total:
        raise ValueError(
            f"`sites` {sites!r} matches only sites in loops and branches, whose tensors cannot be "
            "handed out: give other sites, or write the loop as a scan."
        )
    if not total:
        raise ValueError(f"`sites` {sites!r} matches no site in full. Sites: {', '.join(every)}.")
    return total


def _counts(model, sites, stride, per_example, variables, args, kwargs):
    """The counts of the sites that a pattern matches; all sites, and the layers without any."""
    wanted = re.compile(sites)
    every: dict[str, None] = {}

    def on_layer(seen: Seen):
        names = {role: seen.site(role) for role in seen.tensors}
        every.update(dict.fromkeys(names.values()))
        chosen = {n: seen.raw(role) for role, n in names.items() if wanted.fullmatch(n)}
        if per_example:
            chosen = {n: _over_its_peak(x) for n, x in chosen.items()}
        return {n: count(x, stride=stride) for n, x in chosen.items()} or None

    probed = probe(model, variables, args, kwargs, on_layer)
    return Told((tuple(every), tuple(probed.unseen))), [found for _, found in probed.records]


def _over_its_peak(x):
    peak = jnp.max(jnp.abs(x), axis=tuple(range(min(1, x.ndim - 1), x.ndim)), keepdims=True)
    return x / jnp.where(peak > 0, peak, 1)


def _layers(counts: Counts) -> list[Counts]:
    """The counts of each step of the scans around a layer, or of the one layer."""
    depth = counts.low.ndim
    flat = [np.reshape(leaf, (-1, *np.shape(leaf)[depth:])) for leaf in counts]
    return [Counts(*leaves) for leaves in zip(*flat, strict=True)]
