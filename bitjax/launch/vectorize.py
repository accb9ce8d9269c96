"""A sweep as one vectorized program: whether its runs can be rows of one, and running them so."""

from pathlib import Path
from typing import Any

from bitjax.launch.build import build_work
from bitjax.launch.check import run_doctor
from bitjax.launch.config_files import load_config
from bitjax.launch.executors import STOPPED, Sweep, write_record
from bitjax.launch.overrides import arguments_of
from bitjax.launch.progress import SweepProgress
from bitjax.runs.folder import config_hash, flatten, open_run
from bitjax.training.group import check_rows
from bitjax.training.parallel import placement
from bitjax.training.preemption import Preemption, Stopped, listen
from bitjax.training.rows import programs
from bitjax.training.runner import run_rows
from bitjax.training.settings import Settings
from bitjax.training.work import Work

# Read on the host at every step, for the whole group.
_SHARED = ("model", "data", *(name for name in Settings._fields if name != "seed"))
_FREE = ("seed", "name", "init_from")  # of the state's values, not of the program


def run_vectorized(sweep: Sweep, slots: int) -> int:
    """Runs all runs as rows of one program on one device; the exit code."""
    if slots > 1:
        raise ValueError(f"a vectorized sweep uses one device: leave out the {slots} slots.")
    progress = SweepProgress(sweep.runs)
    group, folder = choose_group(sweep)
    if not group.runs:
        return _end(sweep, progress)
    check_shared(group)
    rows: dict[str, Work] = {}
    for planned in group.runs:
        work = _build(sweep, planned.overrides)
        first = next(iter(rows.values()), work)
        rows[planned.name] = work._replace(dataset=first.dataset)  # one copy in memory
    check_programs(group, rows)
    check_rows(rows)
    run_doctor(next(iter(rows.values())))
    write_record(sweep)
    folders = {planned.name: open_run(planned.folder, planned.spec, True) for planned in group.runs}
    preemption = Preemption()
    listen(preemption)  # the group saves after the step in hand and ends
    try:
        run_rows(rows, folders, folder, preemption=preemption)
    except Stopped as error:
        print(error)
        return STOPPED
    return _end(sweep, progress)


def choose_group(sweep: Sweep) -> tuple[Sweep, Path]:
    """The runs to make rows of, and the folder of their checkpoints.

    All runs are taken if they have begun as one group, else those that are not finished.
    """
    todo = tuple(run for run in sweep.runs if not run.finished)
    folders = [
        sweep.workdir
        / "vectorized"
        / config_hash({run.name: config_hash(run.spec) for run in runs})
        for runs in (sweep.runs, todo)
    ]
    begun = todo and folders[0].exists()
    return sweep._replace(runs=sweep.runs if begun else todo), folders[not begun]


def check_shared(sweep: Sweep) -> None:
    """Raises a ValueError if a key varies that the host reads for the whole group."""
    for key in _varying_keys(sweep):
        if key.split(".")[0] in _SHARED:
            raise _refusal(key, "the rows of a group share it")


def check_programs(sweep: Sweep, rows: dict[str, Work]) -> None:
    """Raises a ValueError, with the key that makes it, if two runs' programs differ."""
    keys = [key for key in _varying_keys(sweep) if key not in _FREE]
    first, *others = sweep.runs
    seen = {_settings(first.spec, keys): programs(rows[first.name])}
    wanted = next(iter(seen.values()))
    for run in others:
        settings = _settings(run.spec, keys)
        if settings in seen:
            continue
        seen[settings] = programs(rows[run.name])
        if seen[settings] == wanted:
            continue
        for key in keys if len(keys) > 1 else ():
            mixed = {**first.overrides, key: run.overrides.get(key, first.overrides.get(key, ""))}
            if programs(_build(sweep, mixed)) != wanted:
                raise _refusal(key, "it is part of the compiled program, not of its state")
        raise _refusal(" and ".join(keys), "it is part of the compiled program, not of its state")


def _varying_keys(sweep: Sweep) -> list[str]:
    """The keys of the config that differ between a sweep's runs."""
    flat = [flatten(run.spec) for run in sweep.runs]
    every = sorted(set().union(*flat))
    return [key for key in every if any(f.get(key) != flat[0].get(key) for f in flat)]


def _refusal(key: str, why: str) -> ValueError:
    return ValueError(
        f"a vectorized sweep cannot vary {key}: {why}. Vary seeds, strengths and learning rates, "
        "or run the rows one by one."
    )


def _settings(spec: dict[str, Any], keys: list[str]) -> str:
    flat = flatten(spec)
    return repr([flat.get(key) for key in keys])


def _build(sweep: Sweep, overrides: dict[str, str]) -> Work:
    config = load_config(sweep.config, [*sweep.fixed, *arguments_of(overrides)])
    return build_work(config, source=sweep.config, place=placement("none"))


def _end(sweep: Sweep, progress: SweepProgress) -> int:
    for run in sweep.runs:
        progress.statuses[run.name] = "finished" if run.finished else "failed"
    progress.summarize()
    return int(progress.unfinished)
