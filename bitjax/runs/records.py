"""Run folders as plain values; whatever cannot be compared is listed with the reason.

`read_runs` never raises because of what a folder holds: a folder is data from elsewhere, perhaps of
a run that was killed, of an older version, or no run at all.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bitjax.files.reading import one_line, printable
from bitjax.runs.exports import ModelFile, read_files
from bitjax.runs.files import (
    SiteBits,
    Unfit,
    check_text,
    is_number,
    number_of,
    other_version,
    read_distortion,
    read_metrics,
    read_object,
    read_sites,
    shown,
    text_of,
)
from bitjax.runs.folder import is_hash_of

_BITS = ("weights", "activations", "all", "inner")
_COSTS = ("model_bytes", "float_model_bytes", "activation_bytes", "bops", "macs")
CACHE = "cache_bytes_per_token"  # a cost of models that keep keys and values
_FILES = ("result.json", "config.json", "metrics.jsonl")
# A format is text from elsewhere, and Python's own could ask for a gigabyte of spaces.
FORM = re.compile(r"\{:\.(\d{1,2})([efg%])\}(?: ?([^{}]{1,16}))?")
_FORMS = {"accuracy": "{:.2%}"}  # of runs that did not say theirs


class Score(NamedTuple):
    """The figure by which a task compares its runs.

    Attributes:
      name: its name, such as `accuracy` or `perplexity`.
      value: that of the final integer model.
      higher_is_better: False for an error, a loss or a perplexity.
      form: its format for people, such as `{:.2%}`.
    """

    name: str
    value: float
    higher_is_better: bool
    form: str

    @property
    def shown(self) -> str:
        """The value in its format."""
        return self.form.format(self.value)


class RunRecord(NamedTuple):
    """A finished run.

    Attributes:
      folder: the run's folder.
      name: the run's name in tables.
      method: name of the method.
      model: name of the model.
      data: name of the data set.
      eval_split: the split on which the score was measured.
      seed: the run's seed.
      config: path of its config file, with the variant behind a colon.
      settings: `config.json`.
      commit: the commit that made the run; `unknown` where git was not there.
      device: the device that the run used.
      versions: versions of Python and the libraries.
      score: the task's figure, on the final integer model.
      figures: all that the task measured of that model, by name; the score is among them.
      steps: steps of training.
      wall_seconds: seconds that the run took.
      stages: `(name, steps, score)` of each stage.
      bits: average bits by `weights`, `activations`, `all`, `inner`: `(fractional, integer)`.
      costs: `model_bytes`, `float_model_bytes`, `activation_bytes`, `bops` and `macs`; with a cache
        of keys and values `cache_bytes_per_token`, too.
      sites: the rows of `bits.csv`, in forward order.
      metrics: the rows of `metrics.jsonl`; empty where the folder has none.
      distortion: content of `distortion.json`, where `experiments.rate_distortion` wrote one:
        `rates`, and `sqnr` in dB by name, medians over sites.
      notes: what is wrong with parts that a comparison can do without.
      files: the files of its model: the one that the run left, and those that were exported.
    """

    folder: str
    name: str
    method: str
    model: str
    data: str
    eval_split: str
    seed: int
    config: str
    settings: Mapping[str, Any]
    commit: str
    device: str
    versions: Mapping[str, str]
    score: Score
    figures: Mapping[str, float]
    steps: int
    wall_seconds: float
    stages: tuple[tuple[str, int, float], ...]
    bits: Mapping[str, tuple[float, float]]
    costs: Mapping[str, float]
    sites: tuple[SiteBits, ...]
    metrics: tuple[Mapping[str, Any], ...] = ()
    distortion: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    files: tuple[ModelFile, ...] = ()


class Skipped(NamedTuple):
    """A folder that is not compared, and why."""

    folder: str
    reason: str


def read_runs(paths: Iterable[str | os.PathLike]) -> tuple[list[RunRecord], list[Skipped]]:
    """Reads run folders, and those that lie in folders which are no runs themselves.

    Args:
      paths: folders; one that is named twice is read once.

    Returns:
      The finished runs, in the order given, and the folders that are none.

    Example:
      >>> read_runs(["no/such/folder"])
      ([], [Skipped(folder='no/such/folder', reason='does not exist')])
    """
    records: list[RunRecord] = []
    skipped: list[Skipped] = []
    seen: set[str] = set()
    for given in paths:
        for folder in _folders(Path(given)):
            try:
                place = os.path.realpath(folder)
                if place in seen:
                    continue
                seen.add(place)
                records.append(read_run(folder))
            except (Unfit, ValueError, OSError) as error:
                skipped.append(Skipped(printable(_name(folder)), one_line(error)))
    return records, skipped


def read_run(folder: str | os.PathLike) -> RunRecord:
    """Reads one finished run.

    Raises:
      Exception: with the reason in one line, where it is unfinished, damaged, of an older version,
        or no run; `read_runs` turns that into a value.
    """
    folder = Path(folder)
    result = _finished_result(folder)
    settings = _settings_of(folder, result)
    for value, place in (
        (result, "result.json"),
        (settings, "config.json"),
        (_name(folder), "its name"),
    ):
        check_text(value, place)
    stages = result.get("stages")
    if not isinstance(stages, list) or not all(isinstance(s, Mapping) for s in stages):
        raise other_version("result.json", "stages")
    versions = result.get("versions")
    versions = versions if isinstance(versions, Mapping) else {}
    notes: list[str] = []
    commits = result.get("commits")
    if isinstance(commits, list) and len(commits) > 1:
        notes.append(f"was made by several commits in turn: {', '.join(map(str, commits))}")
    score = score_of(result)
    return RunRecord(
        folder=_name(folder),
        name=text_of(result, "name") or folder.name,
        method=text_of(result, "method"),
        model=text_of(result, "model"),
        data=text_of(result, "data"),
        eval_split=text_of(result, "eval_split"),
        seed=int(number_of(result, "seed")),
        config=text_of(result, "config"),
        settings=settings,
        commit=str(result.get("commit") or "unknown"),
        device=str(result.get("device") or "unknown"),
        versions={str(k): str(v) for k, v in versions.items()},
        score=score,
        figures={**_figures_of(stages), score.name: score.value},
        steps=int(number_of(result, "steps")),
        wall_seconds=number_of(result, "wall_seconds"),
        stages=tuple(
            (text_of(s, "name"), int(number_of(s, "steps")), number_of(s, score.name))
            for s in stages
        ),
        bits={
            k: (number_of(result, "bits", k, "fractional"), number_of(result, "bits", k, "integer"))
            for k in _BITS
            if k != "inner" or k in result.get("bits", {})  # two layers have no inner one
        },
        costs={
            name: number_of(result, "cost", name)
            for name in (*_COSTS, CACHE)
            if name != CACHE or name in result.get("cost", {})
        },
        sites=read_sites(folder / "bits.csv"),
        metrics=read_metrics(folder / "metrics.jsonl", notes),
        distortion=read_distortion(folder / "distortion.json", notes),
        files=read_files(folder, result, notes),
        notes=tuple(notes),
    )


def score_of(result: Mapping[str, Any]) -> Score:
    """The score in `result.json`; the oldest versions had an accuracy alone."""
    score = result.get("score")
    if not isinstance(score, Mapping):
        accuracy = number_of(result, "accuracy")
        if not 0 <= accuracy <= 1:
            what = f"the accuracy in result.json must be in [0, 1], got {accuracy}"
            raise Unfit(f"is damaged: {what}")
        return Score("accuracy", accuracy, True, _FORMS["accuracy"])
    name, higher = text_of(score, "name"), score.get("higher_is_better")
    if not isinstance(higher, bool):
        raise other_version("result.json", "score.higher_is_better")
    form = score.get("form")
    if not isinstance(form, str) or not FORM.fullmatch(form):
        form = _FORMS.get(name, "{:.6g}")
    return Score(name, number_of(result, "score", "value"), higher, form)


def _figures_of(stages: list[Mapping[str, Any]]) -> dict[str, float]:
    """What the last stage's model was found to have; its steps and seconds are no such thing."""
    last = stages[-1] if stages else {}
    own = ("name", "steps", "wall_seconds")
    return {k: float(v) for k, v in last.items() if k not in own and is_number(v)}


def _finished_result(folder: Path) -> Mapping[str, Any]:
    """What `result.json` holds, of a run that is finished."""
    if not folder.exists():
        raise Unfit("does not exist")
    if not folder.is_dir():
        raise Unfit("is a file, not a run's folder")
    if not any((folder / name).exists() for name in _FILES):
        raise Unfit(f"is not a run's folder: it has none of {', '.join(_FILES)}")
    if not (folder / "result.json").exists():
        raise Unfit("is not finished: there is no result.json; run its command again to resume")
    result = read_object(folder / "result.json")
    status = result.get("status")
    if status != "finished":
        error = f" ({shown(result['error'])})" if result.get("error") else ""
        raise Unfit(f"is {shown(status)}, not finished{error}")
    return result


def _settings_of(folder: Path, result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config that the result was made from."""
    settings = read_object(folder / "config.json")
    for key in ("model", "data", "method"):
        if not isinstance(settings.get(key), Mapping) or not settings[key].get("name"):
            raise other_version("config.json", f"{key}.name")
    if not is_hash_of(text_of(result, "config_hash"), settings):
        raise Unfit("is damaged: config.json is not the one that result.json was made from")
    return settings


def _name(folder: Path) -> str:
    # A folder's name is bytes, of any encoding.
    return os.fsencode(folder).decode("utf-8", "replace")


def _folders(path: Path) -> list[Path]:
    """The path itself if it is a run's or nothing is found in it, else the runs inside."""
    inside: set[Path] = set()
    with contextlib.suppress(OSError):  # what may not be looked into says so when it is read
        if path.is_dir() and not any((path / name).exists() for name in _FILES):
            inside = {p.parent for name in ("result.json", "config.json") for p in path.rglob(name)}
    # checkpoints hold files of Orbax's own
    return sorted(p for p in inside if "checkpoints" not in p.relative_to(path).parts) or [path]
