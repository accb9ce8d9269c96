"""Measures how sensitive the loss is to each site: the mean squared gradient of its input."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitjax.bottleneck.outputs import as_weights, logits_of, weighted
from bitjax.checks import BATCHES, NONE, PATTERN, checked, either, integer
from bitjax.frameworks.attach import attach
from bitjax.frameworks.calibrate import numbered
from bitjax.frameworks.call import run
from bitjax.frameworks.compiled import jit_arrays
from bitjax.frameworks.costs import costs_with
from bitjax.frameworks.models import as_model
from bitjax.frameworks.shapes import one_key
from bitjax.quantizers.base import Quantizer, identity
from bitjax.rules import rule
from bitjax.variables import QUANT, VARIABLES, as_call, floats_of


@jax.custom_vjp
def _catch(x, caught):
    del caught
    return x


def _catch_fwd(x, caught):
    return x, caught


def _catch_bwd(caught, g):
    return g, jnp.sum(jnp.square(g.astype(jnp.float32))).astype(caught.dtype)


_catch.defvjp(_catch_fwd, _catch_bwd)


def _catching() -> Quantizer:
    """Changes nothing; the gradient of its leaf `caught` is the sum of x's squared gradients."""

    def init(x, axes):
        del x, axes
        return {"bits": jnp.float32(32.0), "caught": jnp.float32(0.0)}, {}

    def apply(params, stats, x, *, train=False, key=None):
        del stats, train, key
        return _catch(x, params["caught"])

    return identity()._replace(init=init, apply=apply, name="catching")


_CATCHING = _catching()


@checked(
    variables=VARIABLES,
    batches=BATCHES,
    sites=PATTERN,
    weights=either(NONE, BATCHES),
    seed=integer(0, 2**32 - 1),
)
def fisher(
    model: Any,
    variables: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    sites: str = ".*/input",
    weights: Iterable[Any] | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> dict[str, float]:
    """The diagonal Fisher information of each input site, averaged over elements and examples.

    F = E[(d log p(y | x) / d a)^2] over the site's elements a and over labels y that the model
    itself draws, so no labels are needed. To second order, an error of the site's quantizer raises
    the loss of an example, summed over its predictions, by 1/2 * F * elements * distortion.

    Args:
      model: a Linen model or a function of parameters that returns logits [..., classes], one
        prediction an example or several, as one a token; if wrapped, its float model is used.
      variables: all collections of the model.
      batches: arrays, tuples of the model's arguments, or `bitjax.Inputs`; the batch axis first.
      sites: a regular expression for input sites, matched in full.
      weights: what each prediction counts, for every batch an array [...]: 0 where it is padding.
      seed: the seed of the drawn labels.
      **kwargs: keyword arguments of the model, but not `train=True`.

    Returns:
      `{site: F}`, in squared nats per squared unit of the site.

    Raises:
      ValueError: there are no batches, or the pattern matches no site.

    Example:
      >>> import flax.linen as nn
      >>> x = jnp.array([[1.0, -1.0], [0.5, 2.0]])
      >>> weights = fisher(nn.Dense(3), nn.Dense(3).init(jax.random.key(0), x), [x], sites="input")
      >>> list(weights), weights["input"] > 0
      (['input'], True)

    Source: drawn labels make it the true Fisher information and not the empirical one, see Kunstner
      et al., arXiv 1905.12558; as a weight of distortions, Theis et al., arXiv 1801.05787.
    """
    wrapped = as_model(model).with_rules((rule(sites, _CATCHING),))
    floats = floats_of(variables)
    total: dict[str, float] = {}
    elements: dict[str, int] = {}
    quant, examples = None, 0
    for (index, inputs), weight in weighted(numbered(batches, "fisher"), weights):
        call = as_call(inputs, kwargs)
        if quant is None:
            quant = attach(wrapped, floats, *call.args, **call.kwargs)[QUANT]
            elements = {s: c.elements for s, c in costs_with(wrapped, floats, *call).items()}
        key = jax.random.fold_in(jax.random.key(seed), index)
        found = jit_arrays(_caught, quant, floats, call, weight, key, static=(wrapped,))
        for path, leaf in jax.tree_util.tree_leaves_with_path(found):
            if path[-1].key == "caught":
                site = "/".join(key.key for key in path[:-1])
                total[site] = total.get(site, 0.0) + float(np.sum(np.asarray(leaf, np.float64)))
        examples += len(jax.tree.leaves(inputs)[0])
    return {site: value / (examples * elements[site]) for site, value in total.items()}


def _caught(net, quant, floats, call, weight, key):
    """The sums of squared gradients at the sites, for labels that the key draws."""

    def loss(quant):
        given = {**floats, QUANT: quant}
        out = run(net, net.ask(given, *call, rngs=one_key()), given).out
        logits = jnp.asarray(logits_of(out), jnp.float32)
        labels = jax.random.categorical(key, jax.lax.stop_gradient(logits))
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]
        # Squared gradients are summed, so a prediction counts its weight.
        return -jnp.sum(log_p * jnp.sqrt(as_weights(weight, log_p)))

    return jax.grad(loss)(quant)
