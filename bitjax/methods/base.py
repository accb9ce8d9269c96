"""What a method is: a list of stages, each one plain data. One runner runs them all."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bitjax.rules import Rules, quantizer_of
from bitjax.sites import Costs

Variables = Mapping[str, Any]
Controls = Mapping[str, jax.Array]


class Context(NamedTuple):
    """What a stage's preparation may use.

    Attributes:
      model: the `Quantized` model under this stage's rules.
      previous_model: under the previous stage's rules; None in the first stage.
      previous: the variables that the previous stage ended with, or the run started from.
      batches: `(count, augment) -> iterator of model inputs`, the same ones at every call.
      costs: from `site_costs`.
      key: for randomness, the stage's own.
      log: takes a line of text.
    """

    model: Any
    previous_model: Any
    previous: Variables
    batches: Callable[[int, bool], Iterator[jax.Array]]
    costs: Costs
    key: jax.Array
    log: Callable[[str], None]


class Stage(NamedTuple):
    """One stage of a method.

    Attributes:
      name: `learn_bits`, `freeze_bits`, ...
      rules: which quantizer each site has while the stage lasts.
      steps: of training; 0 only prepares.
      prepare: `(context, variables, start) -> iterator of variables`, one per unit of work, from
        unit `start` on; the runner saves each and resumes behind the last one saved.
      labels: `(trained) -> tree of labels` for {'params': ..., 'quant': ...}.
      optimizers: by label; leaves whose label is not here are frozen.
      controls: traced state by name: strengths, multipliers, a temperature.
      penalty: `(quant, costs, controls, progress) -> scalar` added to the loss; `progress` is the
        share of the stage's steps that are done.
      loss: `(logits, labels, teacher_logits) -> scalar` instead of cross entropy.
      teacher: whether `loss` reads the logits of the float model that the run started from.
      after_step: `(variables, controls, costs, step) -> (variables, controls)`, traced; step counts
        from 1.
      every: `(steps, function)`: the function `(context, variables) -> variables` runs on the host
        each so many steps.
    """

    name: str
    rules: Rules
    steps: int = 0
    prepare: Callable[[Context, Variables, int], Iterator[Variables]] | None = None
    labels: Callable[[Variables], Any] | None = None
    optimizers: Mapping[str, optax.GradientTransformation] = {}
    controls: Mapping[str, Any] = {}
    penalty: Callable[..., jax.Array] | None = None
    loss: Callable[..., jax.Array] | None = None
    teacher: bool = False
    after_step: Callable[..., tuple[Variables, Controls]] | None = None
    every: tuple[int, Callable[[Context, Variables], Variables]] | None = None


class Method(NamedTuple):
    """A name and its stages, in order."""

    name: str
    stages: tuple[Stage, ...]


FROZEN = "frozen"
_RANGES = ("scale", "clip_max", "clip_min", "log_clip_max", "coefficients")


def default_labels(trained: Variables) -> Any:
    """`weights` for parameters, `bits` and `ranges` for what quantizers learn, else `frozen`.

    Example:
      >>> default_labels({"params": {"w": 0.0}, "quant": {"kernel": {"bits": 4.0, "scale": 1.0}}})
      {'params': {'w': 'weights'}, 'quant': {'kernel': {'bits': 'bits', 'scale': 'ranges'}}}
    """

    def label(path, leaf):
        del leaf
        if path[0].key == "params":
            return "weights"
        name = path[-1].key
        return "bits" if name == "bits" else "ranges" if name in _RANGES else FROZEN

    return jax.tree_util.tree_map_with_path(label, trained)


def learned_labels(rules: Rules) -> Callable[[Any], Any]:
    """`default_labels`, with the bits of sites whose quantizer has them fixed frozen.

    A penalty or a budget reaches every `bits` leaf, also those of fixed bits.

    Example:
      >>> from bitjax.quantizers import uniform
      >>> from bitjax.rules import rule
      >>> labels = learned_labels([rule(".*", uniform(bits=8))])
      >>> labels({"quant": {"head": {"kernel": {"bits": 8.0}}}})
      {'quant': {'head': {'kernel': {'bits': 'frozen'}}}}
    """

    def label(path, name):
        site = "/".join(key.key for key in path[1:-1])
        quantizer = quantizer_of(rules, site) if name == "bits" else None
        return FROZEN if quantizer is not None and "min_bits" not in quantizer.form else name

    return lambda trained: jax.tree_util.tree_map_with_path(label, default_labels(trained))


class ScheduledState(NamedTuple):
    """The learning rate's peak as a leaf, so that changing it recompiles nothing."""

    learning_rate: jax.Array
    count: jax.Array
    inner: Any


def scheduled(
    direction: optax.GradientTransformation,
    learning_rate: float,
    steps: int,
    *,
    warmup: int = 0,
    decay: str = "cosine",
    end: float = 0.0,
) -> optax.GradientTransformation:
    """Steps of -learning_rate * shape(count) along `direction`, with the rate a leaf of the state.

    Args:
      direction: such as `optax.trace(0.9)` or `optax.scale_by_adam()`.
      learning_rate: the peak.
      steps: over which the shape runs; it stays at its end after them.
      warmup: steps of linear rise from 0.
      decay: `cosine` falls to `end`, `constant` does not.
      end: share of the peak at the end.

    Raises:
      ValueError: an unknown decay.

    Example:
      >>> tx = scheduled(optax.identity(), 0.5, steps=10, decay="constant")
      >>> updates, state = tx.update({"w": jnp.float32(1.0)}, tx.init({"w": jnp.float32(0.0)}))
      >>> float(updates["w"])
      -0.5
    """
    if decay not in ("cosine", "constant"):
        raise ValueError(f"`decay` must be 'cosine' or 'constant', got {decay!r}.")

    def shape(count):
        rise = jnp.minimum(1.0, (count + 1.0) / (warmup + 1.0))
        if decay == "constant":
            return rise
        share = jnp.clip((count - warmup) / max(1, steps - warmup), 0.0, 1.0)
        return rise * (end + (1.0 - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * share)))

    def init(params):
        zero = jnp.zeros((), jnp.int32)
        return ScheduledState(jnp.float32(learning_rate), zero, direction.init(params))

    def update(updates, state, params=None):
        updates, inner = direction.update(updates, state.inner, params)
        rate = state.learning_rate * shape(state.count.astype(jnp.float32))
        updates = jax.tree.map(lambda u: -rate.astype(u.dtype) * u, updates)
        return updates, ScheduledState(state.learning_rate, state.count + 1, inner)

    return optax.GradientTransformation(init, update)


def sgd(momentum: float = 0.9, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """The direction of SGD with momentum, decay added to the gradient as PyTorch does.

    Example:
      >>> direction = sgd(momentum=0.0, weight_decay=0.1)
      >>> state = direction.init({"w": jnp.float32(1.0)})
      >>> updates, _ = direction.update({"w": jnp.float32(1.0)}, state, {"w": jnp.float32(1.0)})
      >>> round(float(updates["w"]), 3)
      1.1
    """
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(momentum))


def adam() -> optax.GradientTransformation:
    """The direction of Adam, for the many small leaves of quantizers, as one vector.

    A step then compiles a handful of operations instead of twenty for every leaf.

    Example:
      >>> direction = adam()
      >>> updates, _ = direction.update({"n": jnp.ones(())}, direction.init({"n": jnp.ones(())}))
      >>> round(float(updates["n"]), 3)
      1.0
    """
    one, none = optax.flatten(optax.scale_by_adam()), optax.scale_by_adam()

    def choose(tree):
        return one if jax.tree.leaves(tree) else none  # nothing cannot be joined to a vector

    return optax.GradientTransformation(
        lambda params: choose(params).init(params),
        lambda updates, state, params=None: choose(updates).update(updates, state, params),
    )


def tie(pattern: str = ".*") -> optax.GradientTransformation:
    """Sums the gradient of all `bits` leaves whose site matches, so that they move as one.

    Chained before the optimizer of bits it gives one bitlength per network, or per group of sites;
    they must start equal.

    Args:
      pattern: a regular expression, matched in full against `layer/path/role`.

    Example:
      >>> grads = {"quant": {r: {"bits": jnp.float32(1.0)} for r in ("kernel", "input")}}
      >>> tied, _ = tie().update(grads, tie().init(grads))
      >>> float(tied["quant"]["kernel"]["bits"])
      2.0
    """

    def chosen(path):
        names = [str(p.key) for p in path if hasattr(p, "key")]
        site = "/".join(n for n in names[:-1] if n != "quant")
        return bool(names) and names[-1] == "bits" and re.fullmatch(pattern, site) is not None

    def update(updates, state, params=None):
        del params
        leaves = jax.tree_util.tree_leaves_with_path(updates)
        total = sum((jnp.sum(g) for path, g in leaves if chosen(path)), jnp.float32(0.0))

        def share(path, g):
            return jnp.full_like(g, total) if chosen(path) else g

        return jax.tree_util.tree_map_with_path(share, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def distillation(temperature: float = 1.0, share: float = 1.0) -> Callable[..., jax.Array]:
    """A loss that mixes the float teacher's soft labels with the true ones.

    share * T^2 * KL(teacher / T || student / T) + (1 - share) * cross entropy, mean over examples.

    Example:
      >>> logits = jnp.array([[1.0, 2.0]])
      >>> round(float(distillation()(logits, jnp.array([1]), logits)), 6)
      0.0

    Source: Hinton et al., arXiv 1503.02531.
    """

    def loss(logits, labels, teacher_logits):
        log_p = jax.nn.log_softmax(teacher_logits / temperature)
        log_q = jax.nn.log_softmax(logits / temperature)
        soft = jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)) * temperature**2
        hard = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        return share * soft + (1.0 - share) * hard

    return loss


def bit_limits(rules: Rules, costs: Costs) -> dict[str, tuple[float, float]]:
    """(least, most) bits of every site whose quantizer learns its bits.

    Example:
      >>> from bitjax.quantizers.bitlength import bitlength
      >>> from bitjax.rules import rule
      >>> from bitjax.sites import SiteCost
      >>> rules = [rule(".*", bitlength(max_bits=8.0))]
      >>> bit_limits(rules, {"kernel": SiteCost(1, 1, 1, "", "", "kernel")})
      {'kernel': (1.0, 8.0)}
    """
    found = {}
    for site in costs:
        quantizer = quantizer_of(rules, site)
        if quantizer is not None and "min_bits" in quantizer.form:
            found[site] = (quantizer.form["min_bits"], quantizer.form["max_bits"])
    return found


def reestimate(rules: Rules, batches: int) -> Stage:
    """A stage without training: batch normalisation's statistics from augmented training images.

    Example:
      >>> reestimate((), 20).steps
      0
    """

    def prepare(context, variables, start):
        from bitjax.calibrate import reestimate_batch_stats

        if start == 0:
            yield reestimate_batch_stats(context.model, variables, context.batches(batches, True))

    return Stage("reestimate_batch_stats", rules, prepare=prepare)
