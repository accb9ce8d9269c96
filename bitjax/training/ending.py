"""The end of a run: its model as it is taken away, whose figures are the run's."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bitjax.export.deploy import Deployed
from bitjax.training.work import Variables, Work


class Ending(NamedTuple):
    """A run's model as it is taken away, or why it cannot be."""

    deployed: Deployed
    why_not: str = ""  # the last stage's own model is then what is reported


def ending(work: Work, variables: Variables) -> Ending:
    """What a run leaves; a model that no file can hold stays as training left it."""
    try:
        return Ending(work.deployed(variables))
    except ValueError as error:
        return Ending(Deployed(work.wrap(work.method.stages[-1]), dict(variables)), str(error))


class Figures:
    """The task's figures of deployed models; those of one form share a program."""

    def __init__(self) -> None:
        self._evaluators: dict[Any, Callable[[Variables], dict[str, float]]] = {}

    def __call__(self, work: Work, deployed: Deployed) -> Mapping[str, float]:
        """The figures over the evaluation examples."""
        model, variables = deployed
        key = tuple((rule.pattern, id(rule.quantizer)) for rule in model.rules)
        if key not in self._evaluators:
            self._evaluators[key] = work.evaluator(model)
        return self._evaluators[key](variables)
