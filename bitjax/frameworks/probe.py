"""Reads the tensors of every layer, from inside jit, grad, remat and scans."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from bitjax.frameworks.call import Asked, Model, run
from bitjax.frameworks.models import as_model
from bitjax.frameworks.shapes import one_key
from bitjax.program.state import Leaving, Watch
from bitjax.variables import QUANT, STATS


class Probed(NamedTuple):
    """A model's output and the records of its layers."""

    out: Any  # what the model returned
    updates: dict[str, Any]  # the collections that changed
    # (layer, record) of every product in forward order; a scanned layer is one call
    records: list[tuple[str, Any]]
    unseen: tuple[str, ...]  # layers in loops and branches, which cannot hand anything out


def probe(
    model: Any,
    variables: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    watch: Watch,
    modules: Leaving | None = None,
    *,
    observing: bool = False,
) -> Probed:
    """Runs a model once and hands out the records that `watch` makes at its products."""
    # `modules` makes those of the other modules, by the arrays that leave their scopes.
    # While `observing`, inputs are quantized after this batch has moved their history; otherwise
    # with the history as it stands.
    net, asked = ask_outside(model, variables, args, kwargs)
    ran = run(net, asked, variables, mutable=observing, watch=watch, modules=modules)
    updates = {**ran.changed}
    if observing and STATS in (own := ran.collections(variables)):
        updates[STATS] = own[STATS]
    return Probed(ran.out, updates, ran.records, ran.unseen)


def ask_outside(
    model: Any, variables: Mapping[str, Any], args: tuple, kwargs: Mapping[str, Any]
) -> tuple[Model, Asked]:
    """The program of a call that looks at a model and takes no part in its training."""
    # Whatever training would change may change, so that `train=True` is no special case. The
    # random streams are fixed.
    net = as_model(model)
    mutable = [name for name in variables if name not in ("params", QUANT, STATS)]
    rngs = {**one_key(), QUANT: jax.random.key(0)}
    return net, net.ask(variables, args, kwargs, rngs=rngs, mutable=mutable)
