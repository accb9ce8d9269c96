"""Methods as lists of stages, each one plain data; one loop runs them all."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import optax

from bitjax.costs.site import Costs
from bitjax.rules import Rules

Variables = Mapping[str, Any]
Controls = Mapping[str, jax.Array]


class Context(NamedTuple):
    """What a stage's preparation may use.

    Attributes:
      model: the `Quantized` model under this stage's rules.
      previous_model: under the previous stage's rules; None in the first stage.
      previous: the variables that the previous stage ended with, or the run started from.
      batches: `(count, augment) -> iterator of model inputs`, the same ones at every call.
      costs: the costs of every site, from `site_costs`.
      key: the stage's own key for randomness.
      log: takes a line of text.
      weights: `(count, augment) -> iterator of arrays [n, positions]`, how much each position of
        the same batches counts; None where all count alike.
    """

    model: Any
    previous_model: Any
    previous: Variables
    batches: Callable[[int, bool], Iterator[Any]]
    costs: Costs
    key: jax.Array
    log: Callable[[str], None]
    weights: Callable[[int, bool], Iterator[Any]] | None = None


class Stage(NamedTuple):
    """One stage of a method.

    Attributes:
      name: `learn_bits`, `freeze_bits`, ...
      rules: the sites' quantizers while the stage lasts.
      steps: steps of training; a stage of 0 only prepares.
      prepare: `(context, variables, start) -> iterator of variables`, one per unit of work, from
        unit `start` on; the runner saves each and resumes behind the last one saved.
      labels: `(trained) -> tree of labels` for {'params': ..., 'quant': ...}.
      optimizers: an optimizer for each label; leaves whose label is not here are frozen.
      controls: traced state by name: strengths, where budgets began, a temperature; of a tree the
        function of variables that starts it.
      penalty: `(quant, costs, controls, progress) -> scalar` added to the loss; `progress` is the
        share of the stage's steps that are done.
      loss: `(task_loss, outputs, teacher_outputs, weights) -> scalar` instead of the task's own
        loss; `weights` say how much each prediction counts, None: all alike.
      teacher: whether `loss` reads the outputs of the float model that the run started from.
      anneal: `(rules, costs, progress) -> rules`, traced: the quantizers of a training step, made
        of the stage's, with the same leaves.
      steer: `(grads, quant, costs, controls, progress) -> grads`, traced: what becomes of the
        gradient by `quant` before the optimizers take it.
      after_step: `(variables, controls, costs, step) -> (variables, controls)`, traced; step counts
        from 1.
      every: `(steps, function)`: the function `(context, variables) -> variables` runs on the host
        each so many steps.
      check: `(costs) -> anything`, a ValueError where the model's sites do not go with the stage;
        every stage is asked before the first one starts.
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
    anneal: Callable[[Rules, Costs, jax.Array], Rules] | None = None
    steer: Callable[..., Any] | None = None
    after_step: Callable[..., tuple[Variables, Controls]] | None = None
    every: tuple[int, Callable[[Context, Variables], Variables]] | None = None
    check: Callable[[Costs], Any] | None = None


class Method(NamedTuple):
    """A name and its stages, in order."""

    name: str
    stages: tuple[Stage, ...]
