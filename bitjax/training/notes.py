"""What a checkpoint notes beside its state: where it stands, and what the run was until then."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bitjax.files.reading import reason_of
from bitjax.runs.results import StageResult

_PHASES = ("enter", "prepare", "train")
_WRONG = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)


class Notes(NamedTuple):
    """What a run must know of the processes before it.

    Attributes:
      run: what tells the run from others; older versions noted nothing.
      stages: how the stages that are over have ended.
      learned: bits by site before rounding.
      seconds: seconds that the run has taken.
      stage_began: seconds that it had taken when its stage began.
      best: index of the stage and score of the variables in `best/`.
      commits: the commits that made it, in turn.
    """

    run: Mapping[str, Any]
    stages: list[StageResult]
    learned: dict[str, np.ndarray]
    seconds: float
    stage_began: float
    best: tuple[float, float]
    commits: list[str]


def read_notes(notes: Mapping[str, Any]) -> Notes:
    """The notes in a checkpoint, which may hold anything."""
    try:
        best = notes.get("best", (-1, -1.0))
        return Notes(
            {**notes.get("run", {})},
            [StageResult.of_json(stage) for stage in notes["stages"]],
            {site: np.asarray(n, np.float32) for site, n in notes["fractional"].items()},
            float(notes["seconds"]),
            float(notes["stage_began"]),
            (int(best[0]), float(best[1])),
            [str(commit) for commit in notes.get("commits", ())],
        )
    except _WRONG as error:
        raise other_notes(error) from error


def read_place(place: Any, stages: int) -> tuple[int, str, int]:
    """The stage, the phase and the unit where a checkpoint stands in a method of some stages."""
    try:
        stage, phase, unit = place
        if phase in _PHASES and unit >= 0 and 0 <= stage <= stages - (phase != "enter"):
            return int(stage), phase, int(unit)
        raise ValueError(f"there is no place {place}")
    except _WRONG as error:
        raise other_notes(error) from error


def other_notes(error: Exception) -> ValueError:
    """The error to raise from `error` where a checkpoint does not note what it must."""
    return ValueError(
        f"the checkpoint's notes are not those of this version of bitjax ({reason_of(error)}). Go "
        "on with the version that wrote them, or remove the checkpoint."
    )
