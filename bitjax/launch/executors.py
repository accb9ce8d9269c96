"""Hands a sweep's runs to this machine, to Slurm, or to a reader as printed commands."""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from bitjax.launch.devices import find_devices, make_slots
from bitjax.launch.grid import SweepRun, read_json
from bitjax.launch.local_queue import run_queue
from bitjax.launch.overrides import arguments_of
from bitjax.launch.progress import SweepProgress
from bitjax.runs.folder import take_folder
from bitjax.runs.rows import write_json

STOPPED = os.EX_TEMPFAIL


class Sweep(NamedTuple):
    """A planned sweep.

    Attributes:
      config: the config's name, as records have it.
      workdir: the folder that holds the runs' folders.
      fixed: the `--config.key=value` arguments that hold for all runs.
      runs: the planned runs.
      arguments: the words behind `bitjax sweep`.
    """

    config: str
    workdir: Path
    fixed: tuple[str, ...]
    runs: tuple[SweepRun, ...]
    arguments: tuple[str, ...]

    def again(self, executor: str = "") -> list[str]:
        """The sweep's own command for a shell, with another executor if one is named."""
        kept = list(self.arguments)
        if executor:
            for i, argument in enumerate(kept):
                if argument.lstrip("-") == "executor":
                    kept[i : i + 2] = []
                elif argument.lstrip("-").startswith("executor="):
                    kept[i : i + 1] = []
            kept.append(f"--executor={executor}")
        return ["bitjax", "sweep", *kept]

    def todo(self, vectorized: bool) -> list[tuple[str, list[str]]]:
        """The name and the command for a shell of each unfinished run, or of all as one."""
        runs = [run for run in self.runs if not run.finished]
        if vectorized:
            return [("all runs", self.again("local"))][: len(runs)]
        return [(run.name, train_command(self.config, self.fixed, run)) for run in runs]


def train_command(config: str, fixed: Sequence[str], run: SweepRun) -> list[str]:
    """The command of one run for a shell."""
    arguments = [*fixed, *arguments_of(run.overrides), f"--workdir={run.folder}"]
    return ["bitjax", "train", f"--config={config}", *arguments]


def process(command: Sequence[str]) -> list[str]:
    """Turns a `bitjax` command into one of this Python; the word need not be on the PATH."""
    return [sys.executable, "-m", *command]


def write_record(sweep: Sweep) -> None:
    """Writes `sweep.json`: the sweep commands given in this folder and every run they made."""
    command = shlex.join(sweep.again())
    runs = {
        run.name: {"config": sweep.config, "fixed": list(sweep.fixed), "overrides": run.overrides}
        for run in sweep.runs
    }
    path = sweep.workdir / "sweep.json"
    with take_folder(sweep.workdir):  # another sweep may write to it too
        before = read_json(path)
        commands, others = before.get("commands"), before.get("runs")
        commands = [c for c in commands if c != command] if isinstance(commands, list) else []
        others = others if isinstance(others, dict) else {}
        write_json(path, {"commands": [*commands, command], "runs": {**others, **runs}})


def print_commands(sweep: Sweep, vectorized: bool = False) -> None:
    """Prints a shell line for each unfinished run, or one line for all of them if vectorized."""
    if finished := sum(run.finished for run in sweep.runs):
        print(f"# {finished} of {len(sweep.runs)} runs are finished and left out", file=sys.stderr)
    for _, command in sweep.todo(vectorized):
        print(shlex.join(command))


def submit_to_slurm(sweep: Sweep, parameters: Sequence[str], vectorized: bool = False) -> None:
    """Submits the unfinished runs as one job array, or as one job if vectorized."""
    from bitjax.launch import slurm

    todo = sweep.todo(vectorized)
    folder = sweep.workdir / "slurm"
    executor = slurm.make_executor(folder, parameters, sweep.workdir.name or "sweep")
    if not todo:
        print("all runs are finished")
        return
    write_record(sweep)
    jobs = slurm.submit(executor, [process(command) for _, command in todo])
    for job, (name, _) in zip(jobs, todo, strict=True):
        print(f"{job.job_id}  {name}")
    print(f"logs: {folder}; the same command again resumes what did not finish")


def run_locally(sweep: Sweep, slots: int) -> int:
    """Runs the sweep on this machine's devices; returns the exit code."""
    write_record(sweep)
    places = make_slots(find_devices(), min(slots, len(sweep.runs)))
    progress = SweepProgress(sweep.runs)
    stopped = run_queue(sweep.runs, places, commands_of(sweep), progress)
    progress.summarize()
    return STOPPED if stopped else int(progress.unfinished)


def commands_of(sweep: Sweep) -> Callable[[SweepRun], list[str]]:
    """The command of each run's process."""
    return lambda run: process(train_command(sweep.config, sweep.fixed, run))
