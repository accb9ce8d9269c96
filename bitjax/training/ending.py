"""The end of a run: its model as it is taken away, whose figures are the run's."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bitjax.export.deploy import Deployed
from bitjax.export.packed import ABOUT, save_packed
from bitjax.files.reading import one_line
from bitjax.training.work import Variables, Work

MODEL = "model.safetensors"  # in a run's folder


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


def write_model(folder: Path, work: Work, end: Ending, commit: str) -> dict[str, Any]:
    """Writes the packed file of a run's model; what `result.json` says of it."""
    if end.why_not:
        return {"left_out": end.why_not}
    args, kwargs = work.input_shapes()
    about = about_model(work, commit)
    try:
        size = save_packed(folder / MODEL, end.deployed, *args, about=about, **kwargs)
    except ValueError as error:  # leaves that no packed file holds
        return {"left_out": one_line(error)}
    return {"path": MODEL, "bytes": size.payload + size.header, "payload": size.payload}


def about_model(work: Work, commit: str) -> dict[str, Any]:
    """What a packed file says of a run's model."""
    data: Any = work.dataset
    classes = {"classes": data.num_classes} if work.task.name == "classification" else {}
    said = {**data.about, "task": work.task.name, "commit": commit, **classes}
    notes = {key: value for key, value in said.items() if key not in ABOUT}
    known = {key: value for key, value in said.items() if key in ABOUT}
    return {**known, "notes": notes} if notes else known


class Figures:
    """The task's figures of deployed models; those of one form share a program."""

    def __init__(self) -> None:
        self._evaluators: dict[Any, Callable[..., dict[str, float]]] = {}

    def __call__(self, work: Work, deployed: Deployed) -> Mapping[str, float]:
        """The figures over the evaluation examples."""
        model, variables = deployed
        key = tuple((rule.pattern, id(rule.quantizer)) for rule in model.rules)
        if key not in self._evaluators:
            self._evaluators[key] = work.evaluator(model)
        return self._evaluators[key](variables, work.start)
