"""Hands a sweep's runs to this machine, to Slurm, or to a reader as printed commands."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bitjax.launch.config_files import arguments_of
from bitjax.launch.devices import find_devices, make_slots
from bitjax.launch.grid import SweepRun, read_json
from bitjax.launch.local_queue import run_queue
from bitjax.launch.progress import SweepProgress
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

    def command(self, run: SweepRun) -> list[str]:
        """The command of one run for a shell."""
        return train_command(self.config, self.fixed, run)


def train_command(config: str, fixed: Sequence[str], run: SweepRun) -> list[str]:
    """The command of one run for a shell."""
    arguments = [*fixed, *arguments_of(run.overrides), f"--workdir={run.folder}"]
    return ["bitjax", "train", f"--config={config}", *arguments]


def process(command: Sequence[str]) -> list[str]:
    """Turns a `bitjax` command into one of this Python; the word need not be on the PATH."""
    return [sys.executable, "-m", *command]


def write_record(sweep: Sweep) -> None:
    """Writes `sweep.json`: the sweep commands given in this folder and every run they made."""
    path = sweep.workdir / "sweep.json"
    before = read_json(path)
    command = shlex.join(sweep.again())
    commands = [c for c in before.get("commands", []) if c != command]
    runs = {
        run.name: {"config": sweep.config, "fixed": list(sweep.fixed), "overrides": run.overrides}
        for run in sweep.runs
    }
    sweep.workdir.mkdir(parents=True, exist_ok=True)
    record = {"commands": [*commands, command], "runs": {**before.get("runs", {}), **runs}}
    write_json(path, record)


def print_commands(sweep: Sweep, vectorized: bool = False) -> None:
    """Prints a shell line for each unfinished run, or one line for all of them if vectorized."""
    todo = [run for run in sweep.runs if not run.finished]
    if left_out := len(sweep.runs) - len(todo):
        print(f"# {left_out} of {len(sweep.runs)} runs are finished and left out", file=sys.stderr)
    if vectorized:
        commands = [sweep.again("local")][: len(todo)]
    else:
        commands = [sweep.command(run) for run in todo]
    for command in commands:
        print(shlex.join(command))


def submit_to_slurm(sweep: Sweep, parameters: Sequence[str], vectorized: bool = False) -> None:
    """Submits the unfinished runs as one job array, or as one job if vectorized."""
    from bitjax.launch import slurm

    todo = [run for run in sweep.runs if not run.finished]
    commands, names = [process(sweep.command(run)) for run in todo], [run.name for run in todo]
    if vectorized:
        commands = [process(sweep.again("local"))][: len(todo)]
        names = ["all runs"][: len(todo)]
    folder = sweep.workdir / "slurm"
    executor = slurm.make_executor(folder, parameters, sweep.workdir.name or "sweep")
    if not commands:
        print("all runs are finished")
        return
    write_record(sweep)
    for job, name in zip(slurm.submit(executor, commands), names, strict=True):
        print(f"{job.job_id}  {name}")
    print(f"logs: {folder}; the same command again resumes what did not finish")


def run_locally(sweep: Sweep, slots: int) -> int:
    """Runs the sweep on this machine's devices; returns the exit code."""
    places = make_slots(find_devices(), slots)
    write_record(sweep)
    progress = SweepProgress(sweep.runs)
    stopped = run_queue(sweep.runs, places, lambda run: process(sweep.command(run)), progress)
    progress.summarize()
    if stopped:
        return STOPPED
    return int(any(status != "finished" for status in progress.statuses.values()))
