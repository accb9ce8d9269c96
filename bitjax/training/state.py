"""The state that a training step carries to the next one: one tree of arrays."""

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from bitjax.methods.base import Stage
from bitjax.methods.labels import FROZEN, default_labels
from bitjax.variables import QUANT, STATS


class TrainState(NamedTuple):
    """The state of a stage.

    Attributes:
      params: the model's.
      quant: what quantizers learn.
      quant_stats: what they observe.
      other: the remaining collections, `batch_stats` among them.
      opt_state: the state of the stage's optimizers.
      controls: the stage's traced values: strengths, where budgets began.
      step: int32, steps of the stage that are done.
      offset: int32, steps of the run before the stage.
      key: raw PRNG key of the run.
      bad_step: int32, the first step of the stage that was not finite, from 0; -1 if none.
        From it on the state stands still.
      teacher: variables of the float model, where the stage's loss reads it.
    """

    params: Any
    quant: Any
    quant_stats: Any
    other: Any
    opt_state: Any
    controls: Any
    step: jax.Array
    offset: jax.Array
    key: jax.Array
    bad_step: jax.Array
    teacher: Any


def optimizer(stage: Stage) -> optax.GradientTransformation:
    """The stage's optimizers as one; leaves whose label has none are frozen."""
    labels = stage.labels or default_labels
    known: dict[Hashable, optax.GradientTransformation] = {
        **stage.optimizers,
        FROZEN: optax.set_to_zero(),
    }

    def choose(trained):
        return jax.tree.map(lambda label: label if label in known else FROZEN, labels(trained))

    return optax.partition(known, choose)


def moving(stage: Stage, trained: Mapping[str, Any]) -> Any:
    """A tree of bools: whether one of the stage's optimizers moves the leaf."""
    labels = (stage.labels or default_labels)(trained)
    return jax.tree.map(lambda label: label in stage.optimizers, labels)


def initial_state(
    stage: Stage,
    variables: Mapping[str, Any],
    *,
    key: jax.Array,
    offset: int = 0,
    teacher: Mapping[str, Any] | None = None,
) -> TrainState:
    """The state in which a stage starts, with its optimizers fresh."""
    parts = _parts(variables)
    return TrainState(
        **parts,
        opt_state=optimizer(stage).init({"params": parts["params"], QUANT: parts["quant"]}),
        controls={
            name: jax.device_put(v(variables)) if callable(v) else _put(v, np.float32)
            for name, v in stage.controls.items()
        },
        step=_put(0, np.int32),
        offset=_put(offset, np.int32),
        key=key,
        bad_step=_put(-1, np.int32),
        teacher=dict(teacher or {}) if stage.teacher else {},
    )


def _put(value, dtype):
    """An array of a number or a few; `jnp` would compile a program for it."""
    return value.astype(dtype) if isinstance(value, jax.Array) else jax.device_put(dtype(value))


def variables_of(state: TrainState) -> dict[str, Any]:
    """The model's variables, as `apply` takes them."""
    found = {"params": state.params, **state.other}
    for name, tree in ((QUANT, state.quant), (STATS, state.quant_stats)):
        if tree:
            found[name] = tree
    return found


def with_variables(state: TrainState, variables: Mapping[str, Any]) -> TrainState:
    """The state with other variables and everything else as it is."""
    return state._replace(**_parts(variables))


def _parts(variables: Mapping[str, Any]) -> dict[str, Any]:
    """A model's variables by the fields of a state that hold them."""
    known = {"params": "params", QUANT: "quant", STATS: "quant_stats"}
    found = {field: variables.get(name, {}) for name, field in known.items()}
    return {**found, "other": {n: tree for n, tree in variables.items() if n not in known}}
