"""Searches a config's keys with Optuna: trials are runs, judged by the score that each ends with.

The study lies in the sweep's folder, so that the same command goes on where it was stopped. Trials
are chosen a round at a time, one for each slot. What is chosen depends on the config's seed and on
the rounds before alone, not on whether the search was stopped in between.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from bitjax.extras import extra
from bitjax.files.reading import one_line, reading
from bitjax.launch.build import task_of_config
from bitjax.launch.config_files import load_config
from bitjax.launch.executors import STOPPED, Sweep, write_record
from bitjax.launch.grid import Overrides, SweepRun, parse_grid, plan_run, read_json
from bitjax.launch.overrides import arguments_of, check_key, override_key, value_of
from bitjax.launch.programs import shown
from bitjax.launch.progress import SweepProgress
from bitjax.runs.folder import check_holds_runs, take_folder
from bitjax.runs.records import score_of

_FOLDER, _JOURNAL, _STUDY = "optuna", "journal.log", "sweep"  # in the sweep's folder
_KIND = {"maximize": "more", "minimize": "less"}


class Search(NamedTuple):
    """What is searched.

    Attributes:
      config: the config's name, as records have it.
      workdir: the folder that holds the runs' folders.
      fixed: the `--config.key=value` arguments that hold for all runs.
      space: each key with its range `(low, high, log)`, or the list of texts that it may be.
      trials: how many there are in all.
      arguments: the words behind `bitjax sweep`.
      base: the config without what is searched.
    """

    config: str
    workdir: Path
    fixed: tuple[str, ...]
    space: Mapping[str, tuple[float, float, bool] | list[str]]
    trials: int
    arguments: tuple[str, ...]
    base: ConfigDict


def plan_search(
    config: str,
    workdir: Path,
    *,
    fixed: Sequence[str],
    grid: Sequence[str],
    ranges: Sequence[str],
    trials: int,
    arguments: Sequence[str],
) -> Search:
    """Checks what is to be searched; the first trial's config is checked when it is chosen."""
    check_holds_runs(workdir)
    base = load_config(config, fixed)
    axes = [parse_grid(text, base) for text in grid] + [parse_range(text, base) for text in ranges]
    keys = [key for key, _ in axes]
    if not keys:
        raise ValueError("nothing is searched: give a `range` of key=low:high or a `grid`.")
    taken = {override_key(text) for text in fixed}
    if twice := sorted({key for key in keys if keys.count(key) > 1 or key in taken}):
        raise ValueError(f"{twice[0]!r} is given twice: say it once, in a range or an override.")
    if "seed" in keys:
        raise ValueError("a search cannot vary seed: luck would be taken for a setting. Set one.")
    return Search(config, workdir, tuple(fixed), dict(axes), trials, tuple(arguments), base)


def parse_range(text: str, base: ConfigDict) -> tuple[str, tuple[float, float, bool]]:
    """Reads the key, the ends and the scale of one `key=low:high` or `key=low:high:log`."""
    name, _, rest = text.partition("=")
    key, parts = name.strip().removeprefix("config."), rest.split(":")
    try:
        low, high = float(parts[0]), float(parts[1])
    except (ValueError, IndexError):
        low = high = math.nan
    log = parts[2:] == ["log"]
    if not key or (parts[2:] and not log) or not -math.inf < low < high < math.inf:
        raise ValueError(
            "`range` must be key=low:high or key=low:high:log, two numbers with low below high, "
            f"got {shown(text)}."
        )
    if log and low <= 0:
        raise ValueError(f"`range` must be above 0 for a logarithm, got {shown(text)}.")
    check_key(key, base)
    value = value_of(key, base)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"config.{key} is no number but {shown(value)}: give a `grid` of values.")
    if isinstance(value, int) and not (low.is_integer() and high.is_integer()):
        raise ValueError(f"config.{key} is a whole number: so must be the ends of {shown(text)}.")
    return key, (low, high, log)


def run_search(search: Search, slots: int, run: Callable[[Sequence[SweepRun]], bool]) -> int:
    """Runs what is left of a search; the exit code.

    `run` runs several runs at once, as the queue does, and says whether it was stopped.
    """
    with take_folder(search.workdir / _FOLDER) as held:
        study = _study(search, held.folder / _JOURNAL)
        while open_trials := _next_round(study, search, slots):
            runs, refused = _runs_of(search, open_trials)
            if 0 in refused and not runs:  # a wrong range, most likely: nothing is begun
                (held.folder / _JOURNAL).unlink()
                raise ValueError(refused[0])
            for number, reason in refused.items():
                study.tell(number, state=_states().FAIL)
                print(f"trial {number} is no run: {reason}", file=sys.stderr)
            write_record(Sweep(search.config, search.workdir, search.fixed, tuple(runs.values()),
                               search.arguments))  # fmt: skip
            stopped = bool(runs) and run(list(runs.values()))
            for number, each in runs.items():
                if each.finished:
                    study.tell(number, _value(study, each))
                elif not stopped:
                    study.tell(number, state=_states().FAIL)
            if stopped:
                return STOPPED
        return _summarize(study, search)


def _optuna() -> Any:
    with extra("optuna", "The sampler optuna"):
        import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _states() -> Any:
    return _optuna().trial.TrialState


def _study(search: Search, path: Path) -> Any:
    """The study in a sweep's folder, made if it is not there; it is of this very search."""
    optuna = _optuna()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    own = {"config": search.config, "fixed": search.fixed, "space": search.space}
    own = json.loads(json.dumps(own))
    remedy = "choose another workdir, or remove that folder"
    with reading(path, remedy):
        storage = JournalStorage(JournalFileBackend(str(path)))
        known = optuna.get_all_study_names(storage)
    task = task_of_config(search.base) if _STUDY not in known else None
    with reading(path, remedy):
        if task is not None:
            direction = "maximize" if task.higher_is_better else "minimize"
            study = optuna.create_study(storage=storage, study_name=_STUDY, direction=direction)
            study.set_user_attr("search", own | {"score": task.score})
        study = optuna.load_study(storage=storage, study_name=_STUDY)
        there = dict(study.user_attrs["search"])
    if differ := [key for key in own if there.get(key) != own[key]]:
        key = differ[0]
        raise ValueError(
            f"the folder {str(search.workdir)!r} holds another search ({key}: "
            f"{one_line(there.get(key))} there, {one_line(own[key])} now): choose another workdir."
        )
    return study


def _next_round(study: Any, search: Search, slots: int) -> list[Any]:
    """The trials that a stopped search has left, else new ones; none at the end."""
    trials = study.get_trials()
    if left := [trial for trial in trials if trial.state == _states().RUNNING]:
        return left
    optuna = _optuna()
    kinds = {key: _distribution(optuna, key, search) for key in search.space}
    seed = int(search.base.seed)
    for number in range(len(trials), min(search.trials, len(trials) + slots)):
        # A sampler's own state is not in the journal: each trial has its seed.
        study.sampler = optuna.samplers.TPESampler(seed=(seed * 10_007 + number) % 2**32)
        study.ask(fixed_distributions=kinds)
    return study.get_trials()[len(trials) :]


def _distribution(optuna: Any, key: str, search: Search) -> Any:
    kind, values = optuna.distributions, search.space[key]
    if isinstance(values, list):
        return kind.CategoricalDistribution(values)
    low, high, log = values
    if isinstance(value_of(key, search.base), int):
        return kind.IntDistribution(int(low), int(high), log=log)
    return kind.FloatDistribution(low, high, log=log)


def _runs_of(search: Search, trials: Sequence[Any]) -> tuple[dict[int, SweepRun], dict[int, str]]:
    """The runs of trials by their numbers, and why the config refuses what others chose."""
    runs, refused = {}, {}
    for trial in trials:
        try:
            runs[trial.number] = _run_of(search, trial)
        except ValueError as error:
            refused[trial.number] = str(error)
    return runs, refused


def _run_of(search: Search, trial: Any) -> SweepRun:
    overrides: Overrides = {key: str(trial.params[key]) for key in search.space}
    config = load_config(search.config, [*search.fixed, *arguments_of(overrides)])
    name = f"trial{trial.number:03d}"
    return plan_run(f"run {name}", search.workdir / name, overrides, config)


def _value(study: Any, run: SweepRun) -> float:
    """The score that a run ended with, which must be the study's."""
    score = score_of(read_json(run.folder / "result.json"))
    direction = "maximize" if score.higher_is_better else "minimize"
    if (score.name, direction) != (
        study.user_attrs["search"]["score"],
        study.direction.name.lower(),
    ):
        raise ValueError(
            f"{run.name} is judged by another score than the search: {score.name}, of which "
            f"{_KIND[direction]} is better."
        )
    return score.value


def _summarize(study: Any, search: Search) -> int:
    """Prints all trials and the best one; the exit code."""
    trials, finished = study.get_trials(), _states().COMPLETE
    runs, _ = _runs_of(search, trials)
    done = {trial.number for trial in trials if trial.state == finished}
    progress = SweepProgress(list(runs.values()))
    for number, run in runs.items():
        progress.statuses[run.name] = "finished" if number in done else "failed"
    progress.summarize()
    if done:
        best = runs[study.best_trial.number]
        score = score_of(read_json(best.folder / "result.json"))
        chosen = "  ".join(f"{key}={value}" for key, value in best.overrides.items())
        progress.say(f"best of {len(done)}: {best.name}  {score.name} {score.shown}  {chosen}")
    return int(not done)
