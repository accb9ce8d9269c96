"""What a sweep's runs are handed to: this machine, Slurm, or whoever reads the commands."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bitjax.training.metrics import write_json
from experiments.devices import find_devices, make_slots
from experiments.grid import SweepRun, arguments_of, read_json
from experiments.local_queue import run_queue
from experiments.sweep_progress import SweepProgress

STOPPED = os.EX_TEMPFAIL


class Sweep(NamedTuple):
    """A config, a folder, the `--config.key=value` that hold for all runs, and the runs."""

    config: str
    workdir: Path
    fixed: tuple[str, ...]
    runs: tuple[SweepRun, ...]

    def command(self, run: SweepRun, python: str = sys.executable) -> list[str]:
        """The command of one run."""
        arguments = [*self.fixed, *arguments_of(run.overrides), f"--workdir={run.folder}"]
        return [python, "-m", "experiments.train", f"--config={self.config}", *arguments]


def write_record(sweep: Sweep, command: str) -> None:
    """Writes `sweep.json`: the commands that were given, and every run that they made."""
    path = sweep.workdir / "sweep.json"
    before = read_json(path)
    commands = [c for c in before.get("commands", []) if c != command]
    runs = {
        run.name: {"config": sweep.config, "fixed": list(sweep.fixed), "overrides": run.overrides}
        for run in sweep.runs
    }
    sweep.workdir.mkdir(parents=True, exist_ok=True)
    record = {"commands": [*commands, command], "runs": {**before.get("runs", {}), **runs}}
    write_json(path, record)


def print_commands(sweep: Sweep, vectorized: str = "") -> None:
    """Prints a line a run for the shell, of the runs that are not finished."""
    todo = [run for run in sweep.runs if not run.finished]
    if left_out := len(sweep.runs) - len(todo):
        print(f"# {left_out} of {len(sweep.runs)} runs are finished and left out", file=sys.stderr)
    for run in [] if vectorized else todo:
        print(shlex.join(sweep.command(run, "python")))
    if vectorized and todo:
        print(vectorized.replace("--executor=print", "").replace("--executor print", ""))


def submit_to_slurm(
    sweep: Sweep, parameters: Sequence[str], vectorized: Sequence[str] = ()
) -> None:
    """Submits the runs that are not finished as one job array, or as one job if vectorized."""
    from experiments import slurm

    todo = [run for run in sweep.runs if not run.finished]
    commands = [sweep.command(run) for run in todo]
    if vectorized:
        own = [sys.executable, "-m", "experiments.sweep", *vectorized, "--executor=local"]
        commands = [own] if todo else []
    folder = sweep.workdir / "slurm"
    executor = slurm.make_executor(folder, parameters, sweep.workdir.name or "sweep")
    if not commands:
        print("all runs are finished")
        return
    for job, run in zip(slurm.submit(executor, commands), todo, strict=False):
        print(f"{job.job_id}  {'all runs' if vectorized else run.name}", flush=True)
    print(f"logs: {folder}; runs: {sweep.workdir}; once more to resume what did not finish")


def run_locally(sweep: Sweep, slots: int) -> int:
    """Runs the queue over this machine's devices; the exit code."""
    places = make_slots(find_devices(), slots)
    progress = SweepProgress(sweep.runs)
    stopped = run_queue(sweep.runs, places, sweep.command, progress)
    progress.summarize()
    if stopped:
        return STOPPED
    return int(any(status != "finished" for status in progress.statuses.values()))
