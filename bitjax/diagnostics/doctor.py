"""Runs one batch forward and backward and finds what would spoil a run."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from bitjax.checks import ARRAY, FUNCTION, NONE, check_one, checked, either
from bitjax.diagnostics.checks import data, gradients, layers, ranges, rules
from bitjax.diagnostics.checks import variables as kept
from bitjax.diagnostics.findings import Findings, Found
from bitjax.diagnostics.measure import Measured, measure
from bitjax.frameworks.arguments import check_inputs
from bitjax.frameworks.finite import first_nonfinite
from bitjax.frameworks.later import later_call
from bitjax.frameworks.models import unboxed
from bitjax.frameworks.probe import ask_outside
from bitjax.frameworks.shapes import one_key
from bitjax.variables import VARIABLES, as_call

# What one run shows, in any order; what they find may be why a gradient is missing.
CHECKS: tuple[Callable[[Measured], Iterator[Found]], ...] = (
    data.batch,
    data.labels,
    kept.weights,
    kept.norms,
    kept.stored,
    layers.calls,
    ranges.ranges,
)


@checked(variables=VARIABLES, loss=either(NONE, FUNCTION))
def doctor(
    model: Any,
    variables: Mapping[str, Any],
    batch: Any,
    labels: Any = None,
    loss: Callable[[Any, Any], jax.Array] | None = None,
    **kwargs: Any,
) -> Findings:
    """Runs one batch forward and backward and looks at every site.

    Errors are what training cannot work with: NaN or inf, a rule that does nothing, labels that are
    no class, a tensor quantized to zeros, pruned weights that come back, a gradient that a
    quantizer takes away or turns round. What may be meant is a warning. Each finding names the
    site, what was measured and the setting to change; the guide "The doctor" lists them.

    Args:
      model: a Linen module or a function of parameters, wrapped or not.
      variables: all collections of the model; those of a function are `{"params": its parameters}`
        and what quantizers learned and observed.
      batch: an array or a dict, a tuple of the model's arguments, or `bitjax.Inputs`.
      labels: `[N]` integers, for cross entropy; without them the loss is the mean squared output.
      loss: `(output, labels) -> scalar`, in place of these losses; its labels may be any tree.
      **kwargs: keyword arguments of the model; with `train=True` the ranges are the batch's own.

    Returns:
      The findings: rules and data first, then sites in forward order; empty if nothing is wrong.

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp
      >>> import bitjax as bj
      >>> x = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
      >>> model = bj.Quantized(nn.Dense(2), [bj.rule("kernel", bj.uniform(bits=4))])
      >>> doctor(model, model.init(jax.random.key(0), x), x)
      ()
    """
    check_inputs("batch", batch)
    if loss is None and labels is not None:
        check_one("labels", ARRAY, labels)
        kind = np.asarray(labels).dtype
        if np.ndim(labels) != 1 or not np.issubdtype(kind, np.integer):
            raise ValueError(
                f"`labels` must be integers [N], got {kind} {np.shape(labels)}; give a `loss` that "
                "takes others."
            )
    inputs, variables = as_call(batch, kwargs), unboxed(variables)
    args, kwargs = inputs.args, dict(inputs.kwargs)
    net, asked = ask_outside(model, variables, args, kwargs)
    later = later_call(net, asked, variables, args, kwargs, one_key())
    programs = [one.call.program for one in (asked, later) if one is not None]
    good, found = rules.idle_rules(net.rules, programs)
    net = net.with_rules(good)
    found += rules.idle_alternatives(good, programs)
    m = measure(net, asked, variables, args, kwargs, labels, loss)
    if not m.finite:
        found += [*data.labels(m), _nonfinite(net, variables, args, kwargs)]
        return tuple(one.finding for one in found)
    unused = rules.unused_layers(m.program)
    own = [
        Found("warning", name, "is not examined: it runs in a loop or a branch")
        for name in m.unseen
    ]
    found += rules.out_of_reach(m.program) if good else ()
    own += [*rules.unused(unused), *gradients.bits(m, unused)]
    own += [one for check in CHECKS for one in check(m)]
    own += layers.dead_units(m, own)
    own += gradients.kernels(m, own, unused)
    order = {site.layer: i for i, site in enumerate(m.program.sites.values())}

    def place(one):
        layer = one.site.rpartition("/")[0]
        return order.get(one.site, order.get(layer, -1))

    return tuple(one.finding for one in (*found, *sorted(own, key=place)))


def _nonfinite(net, variables, args, kwargs):
    """Where NaN or inf begins."""
    site = first_nonfinite(net, variables, *args, **kwargs)
    if site is None:
        message = "is NaN or inf though the model is not: look at the labels"
        return Found("error", "loss", message)
    bad = data.examples_with_nan(args)
    message = "holds NaN or inf: clean the data, lower the learning rate, or load other weights"
    if bad:
        message = f"holds NaN or inf, as do {bad}: clean the data"
    return Found("error", site, message)
