"""Averages observed ranges and batch normalisations' statistics over batches."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from bitjax.checks import BATCHES, checked
from bitjax.frameworks.arguments import check_inputs
from bitjax.frameworks.call import Model, run
from bitjax.frameworks.compiled import jit_arrays
from bitjax.frameworks.finite import finite_flags, first_nonfinite, is_finite
from bitjax.frameworks.linen import Quantized
from bitjax.frameworks.models import as_model
from bitjax.frameworks.norms import BatchStatistics
from bitjax.frameworks.probe import probe
from bitjax.frameworks.shapes import one_key
from bitjax.quantizers.base import Quantizer
from bitjax.variables import STATS, VARIABLES, Inputs, as_call

Variables = dict[str, Any]


@checked(variables=VARIABLES, batches=BATCHES)
def calibrate(
    model: Model,
    variables: Mapping[str, Any],
    batches: Iterable[Any],
    **kwargs: Any,
) -> Variables:
    """Sets observed ranges to their averages over batches.

    The history starts anew, and every batch counts the same whatever the quantizers' decay is.
    Layers see inputs that are quantized with the averages so far.

    Args:
      model: the wrapped model.
      variables: all collections of the model.
      batches: arrays, tuples of the model's arguments, or `bitjax.Inputs`.
      **kwargs: keyword arguments of the model, but not `train=True`.

    Returns:
      The variables with a new `quant_stats`.

    Raises:
      ValueError: there are no batches, or a tensor holds NaN or inf (which names its site).

    Example:
      >>> import flax.linen as nn
      >>> import bitjax as bj
      >>> model = bj.Quantized(nn.Dense(2), [bj.rule("input", bj.uniform(signed=False))])
      >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
      >>> batches = [jnp.full((1, 3), 2.0), jnp.full((1, 3), 4.0)]
      >>> stats = calibrate(model, variables, batches)["quant_stats"]["input"]
      >>> float(stats["clip_max"]), float(stats["count"])
      (3.0, 2.0)
    """
    return averages(model, variables, batches, kwargs)


def averages(
    model: Any, variables: Mapping[str, Any], batches: Iterable[Any], kwargs: Mapping[str, Any]
) -> Variables:
    """As `calibrate`, unchecked; `kwargs` are those of the model."""
    net = as_model(model)
    others = {name: tree for name, tree in variables.items() if name != STATS}
    before = dict(variables.get(STATS, {}))

    def restart(path, leaf):
        return np.zeros(leaf.shape, leaf.dtype) if path[-1].key == "count" else leaf

    def keep(path, old, new):
        # Of a site that no batch reached, the history stays: only the training call may have it.
        if path[-1].key != "count":
            return new
        return jax.device_put(np.where(np.asarray(new) > 0, new, old))

    stats = jax.tree_util.tree_map_with_path(restart, before)
    for index, inputs in numbered(batches, "calibrate"):
        call = as_call(inputs, kwargs)
        updated, finite = jit_arrays(_averaged, others, stats, *call, static=(net,))
        if not finite:
            raise_nonfinite(f"batch {index}", model, {**others, STATS: stats}, *call)
        stats = updated
    if not stats:
        return dict(variables)
    return {**variables, STATS: jax.tree_util.tree_map_with_path(keep, before, stats)}


def _averaged(net, others, stats, args, kwargs):
    """As `observe`, with the plain mean over batches as every history."""
    rules = [r._replace(quantizer=r.quantizer and _averaging(r.quantizer)) for r in net.rules]
    return observe(net.with_rules(rules), {**others, STATS: stats}, args, kwargs)


@checked(variables=VARIABLES, batches=BATCHES)
def reestimate_batch_stats(
    model: Any, variables: Mapping[str, Any], batches: Iterable[Any], **kwargs: Any
) -> Variables:
    """Sets batch normalisations' statistics to plain averages over batches.

    Mean and variance are each the average of the batches' own, of all calls of a layer that is
    called several times (in NNX, of the last one). The model runs as in evaluation, without
    dropout and with inputs quantized by their observed ranges, so the statistics are those of the
    network that will be evaluated. Only `BatchNorm` uses the batch.

    Args:
      model: a Linen module, wrapped in `Quantized` or not, or an NNX model's function.
      variables: all collections of the model.
      batches: arrays, tuples of the model's arguments, or `bitjax.Inputs`.
      **kwargs: keyword arguments of the model, but not `train=True`.

    Returns:
      The variables with a new `batch_stats`; unchanged if the model has none.

    Raises:
      ValueError: there are no batches, or a statistic came out NaN or inf.

    Example:
      >>> import flax.linen as nn
      >>> norm = nn.BatchNorm(use_running_average=True)
      >>> variables = norm.init(jax.random.key(0), jnp.ones((1, 1)))
      >>> batches = [jnp.array([[0.0], [2.0]]), jnp.array([[4.0], [8.0]])]
      >>> stats = reestimate_batch_stats(norm, variables, batches)["batch_stats"]
      >>> float(stats["mean"][0]), float(stats["var"][0])
      (3.5, 2.5)
    """
    before = variables.get("batch_stats", {})
    others = {name: tree for name, tree in variables.items() if name != "batch_stats"}
    net = as_model(model)
    plain = net.with_rules(net.rules)
    if hasattr(plain, "normalising"):
        plain = plain.normalising()
    elif before and not isinstance(plain, Quantized):
        raise TypeError("reestimate_batch_stats knows the normalisations of Linen and NNX only.")

    mean = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), before)
    for index, inputs in numbered(batches, "reestimate_batch_stats"):
        if not before:
            return dict(variables)
        share, call = np.float32(1.0 / (index + 1)), as_call(inputs, kwargs)
        mean = jit_arrays(_renormed, others, before, mean, share, *call, static=(plain,))
    if not is_finite(mean):
        call = as_call(inputs, kwargs)
        before = jax.tree.map(jnp.nan_to_num, before)
        raise_nonfinite("the last batch", model, {**others, "batch_stats": before}, *call)
    return {**variables, "batch_stats": mean}


def _renormed(net, others, before, mean, share, args, kwargs):
    """The mean of a batch's statistics and of those before it, of which it is a `share`."""

    # The old statistics are multiplied by a momentum of 0, and 0 * NaN is NaN.
    before = jax.tree.map(jnp.nan_to_num, before)

    def kept(start, **around) -> dict[Any, Any]:
        given = {**others, "batch_stats": start}
        asked = net.ask(given, args, kwargs, rngs=one_key(), mutable=["batch_stats"], **around)
        return flatten_dict(run(net, asked, others).changed.get("batch_stats", {}))

    # What no normalisation changes stays.
    changed = _over_calls(kept, before) if isinstance(net, Quantized) else kept(before)
    new = unflatten_dict({**flatten_dict(before), **changed})
    return jax.tree.map(lambda m, new: m + (new - m) * share, mean, new)


def _over_calls(kept, before):
    """The mean over the calls of each normalisation of Linen."""
    old: dict[Any, Any] = flatten_dict(before)
    adding, counting = BatchStatistics(counting=False), BatchStatistics(counting=True)
    jax.eval_shape(lambda: kept(before, around=adding))  # for `paths`
    ours = {path for path in old if path[:-1] in adding.paths}
    start = {path: jnp.zeros_like(x) if path in ours else x for path, x in old.items()}
    start = unflatten_dict(start)
    new = kept(start, around=adding)
    calls = kept(start, around=counting)

    def mean(path):
        often = calls[path]
        return jnp.where(often > 0, new[path] / jnp.maximum(often, 1.0), old[path])

    return {path: mean(path) if path in ours else x for path, x in new.items()}


def observe(model, variables, args, kwargs):
    """`quant_stats` after a batch, and whether every tensor of the forward pass was finite."""
    seen = probe(model, variables, args, kwargs, finite_flags, observing=True)
    stats = seen.updates.get(STATS, {})
    flags = [jnp.all(flag) for _, record in seen.records for flag in jax.tree.leaves(record)]
    return stats, jnp.all(jnp.array([is_finite((stats, seen.out)), *flags]))


def _averaging(quantizer: Quantizer) -> Quantizer:
    """The quantizer with the plain mean over batches as its history."""
    update = quantizer.update
    if update is None:
        return quantizer

    def mean(stats, batch):
        if "count" not in stats:
            return update(stats, batch)
        count = stats["count"]
        own = update({**stats, "count": jnp.zeros_like(count)}, batch)

        def merge(name, new):
            if name.startswith("batch_"):
                return new  # the last batch's own range
            # The first batch replaces the old value, even if that is NaN.
            return jnp.where(count > 0, stats[name] + (new - stats[name]) / (count + 1.0), new)

        return {**{name: merge(name, new) for name, new in own.items()}, "count": count + 1.0}

    return quantizer._replace(update=mean)


def numbered(batches: Iterable[Any], who: str) -> Iterator[tuple[int, Inputs]]:
    """Every batch with its number, as what the model takes; a ValueError if there is none."""
    empty = True
    for index, batch in enumerate(batches):
        empty = False
        check_inputs(f"batches[{index}]", batch)
        yield index, as_call(batch)
    if empty:
        raise ValueError(f"{who} needs at least one batch, got none: is the iterator used up?")


def raise_nonfinite(what, model, variables, args, kwargs, otherwise="a batch normalisation"):
    """Raises a ValueError that names the first site with NaN or inf; `what` is the batch."""
    site = first_nonfinite(model, variables, *args, **kwargs) or otherwise
    raise ValueError(
        f"{what} gives NaN or inf first at {site}: clean the data, or load other parameters."
    )
