"""Every quantized tensor of a run with its figures, by call of its layer and step of a scan."""

import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bitjax.diagnostics.vitals import Response, Vitals, figures_of, respond, vitals
from bitjax.frameworks.compiled import compile_quickly, jit_each
from bitjax.program.state import Seen
from bitjax.program.values import Product, Site
from bitjax.quantizers.base import Quantizer
from bitjax.rules import Rules, quantizer_of


class Spot(NamedTuple):
    """The figures of one call of a site, or of one step of a scan."""

    site: str
    role: str
    quantizer: Quantizer
    figures: Vitals  # scalars
    place: str  # which call or step it is; empty where there is only one


def hand_out(seen: Seen) -> dict[str, Any]:
    """The leaves and tensors of a layer's call that `site_vitals` needs, by site, for `probe`."""
    # The tensors are handed out whole: sites of one shape and quantizer then share one compilation,
    # and the program that is differentiated stays as small as it is. But a kernel that all steps of
    # a scan share would be handed out by each of them: of that one, the figures.
    found: dict[str, Any] = {}
    for role, use in seen.uses.items():
        site = site_of(seen.product, role)
        given = jax.lax.stop_gradient((use.params, use.stats, use.x))
        shared = role == "kernel" and _is_shared(seen.product)
        found[site.name] = given
        if shared:
            found[site.name] = vitals(use.quantizer, *given, use.train, site)
    return found


def site_of(product: Product, role: str) -> Site:
    """The site of a product's role."""
    return next(o.site for o in product.operands.values() if o.role == role)


def _is_shared(product: Product) -> bool:
    kernels = [o.site for o in product.operands.values() if o.role == "kernel"]
    return any(product.times > math.prod(site.lengths) for site in kernels)


def site_vitals(
    records: Iterable[tuple[Mapping[str, Any], int]],
    rules: Rules,
    sites: Mapping[str, Site],
    train: bool,
) -> dict[str, tuple[Spot, ...]]:
    """Every quantized site's calls and steps, from (`hand_out`'s record, scans around it)."""
    records = list(records)
    uses = {(i, name): use for i, (found, _) in enumerate(records) for name, use in found.items()}

    def call(i, name, use):
        # Sites that differ in their names alone share a program.
        site = sites[name]
        kind = Site("", "", site.role, (0,) * len(site.shape), None, site.axes)
        return (_quantizer(rules, name), records[i][1], train, kind), use

    asked = {k: call(*k, use) for k, use in uses.items() if not isinstance(use, Vitals)}
    responses = jit_each(_responds, asked, **compile_quickly())
    calls: dict[str, list[list[Vitals]]] = {}
    for (i, name), use in uses.items():
        if isinstance(use, Vitals):
            steps = _unstacked(jax.tree.map(np.asarray, use), use.peak.shape)
        else:
            seen = responses.pop((i, name))  # one after the other, since they are large
            both = jax.tree.map(np.asarray, (Response(*seen), use[0]["bits"]))
            with np.errstate(all="ignore"):  # numbers near the end of float32 have findings
                steps = [
                    figures_of(np, _quantizer(rules, name), own, response, sites[name])
                    for response, own in _unstacked(both, both[0].x.shape[: records[i][1]])
                ]
        calls.setdefault(name, []).append(steps)
    return {name: tuple(_spots(name, found, rules, sites[name])) for name, found in calls.items()}


def _quantizer(rules, site):
    quantizer = quantizer_of(rules, site)
    assert quantizer is not None, "a site in use has a quantizer"
    return quantizer


def _unstacked(tree, lengths):
    """A tree for each entry of the leading axes."""
    return [jax.tree.map(operator.itemgetter(i), tree) for i in np.ndindex(lengths)]


def _spots(name, calls, rules, site):
    """A spot for every call and step."""
    for i, steps in enumerate(calls):
        for j, figures in enumerate(steps):
            place = [f"call {i + 1} of {len(calls)}"] if len(calls) > 1 else []
            place += [f"step {j + 1} of {len(steps)} of its scan"] if len(steps) > 1 else []
            yield Spot(name, site.role, _quantizer(rules, name), figures, ", ".join(place))


def _responds(quantizer, depth, train, site, params, stats, x):
    def function(params, stats, x):
        return respond(quantizer, params, stats, x, train, site)

    for _ in range(depth):
        function = jax.vmap(function)
    return function(params, stats, x)
