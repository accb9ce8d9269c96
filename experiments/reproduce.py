"""Makes a results table again: all its runs, then results/NAME.md and a comparison page.

python -m experiments.reproduce digits          # no name lists the tables
Finished runs are skipped and broken ones resumed, so that the same command goes on. With --kept,
runs that results/ keeps are taken from there where their configs are still the same.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from bitjax.cli.arguments import Parser
from bitjax.cli.compare import print_comparison
from bitjax.cli.front import front_door
from bitjax.files.writing import write_text
from bitjax.launch.command import command_of
from bitjax.launch.devices import Slot, find_devices, make_slots
from bitjax.launch.executors import process
from bitjax.launch.local_queue import run_queue
from bitjax.launch.progress import SweepProgress
from bitjax.report.comparison import compare
from bitjax.report.html import page
from bitjax.runs.folder import check_holds_runs
from bitjax.runs.lock import lock
from bitjax.runs.records import read_runs
from experiments import tabulate
from experiments.results_tables import (
    ResultsTable,
    document,
    known_tables,
    plan_table,
    rows_alone,
)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what is wrong with it ends in one line."""
    parser = Parser(__doc__, "python -m experiments.reproduce")
    add = parser.add_argument
    add("name", nargs="?", default="", help="table; none lists all")
    add("--workdir", default="", help="folder of the runs' folders; runs/NAME")
    add("--results", default="results", help="folder that keeps what runs found, and tables")
    parser.add_count(
        "slots", "runs at a time; else one per accelerator, or as suits a CPU", least=0
    )
    parser.add_count("seeds", "seeds of a row; else the table's", least=0, most=1000)
    add("--kept", action="store_true", help="take runs of the same configs from the results")
    add("--anyway", action="store_true", help="also without the accelerator that it is made for")
    return parser.read(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is left of the table's runs; with all of them finished, writes it."""
    args = parse(argv)
    jax.config.update("jax_platforms", "cpu")  # the accelerators' memory is for the runs
    if not args.name:
        for name, table in sorted(known_tables().items()):
            print(f"{name:24}{table['title']}{' (accelerator)' if 'accelerator' in table else ''}")
        return
    workdir = Path(args.workdir or f"runs/{args.name}")
    check_holds_runs(workdir)
    table = plan_table(args.name, workdir, args.seeds)
    if args.kept:
        take_kept(table, Path(args.results))
    devices = find_devices()
    if table.accelerator and devices.platform == "cpu" and not args.anyway:
        steps = sum(run.steps for run in table.runs if not run.finished)
        raise ValueError(
            f"{args.name} is made for an accelerator, and here is none: its runs take {steps} "
            "steps. --anyway starts them all the same."
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    small = cores if table.small and devices.platform == "cpu" else 0
    make_files(table)
    code = run_table(table, make_slots(devices, min(args.slots, len(table.runs)) or small))
    if code == 0:
        draw_distortion(table)
        write_table(table, workdir, Path(args.results))
    if code:
        again = shlex.join(["python", "-m", "experiments.reproduce", *(argv or sys.argv[1:])])
        print(f"not all runs are finished: no table. To go on: {again}")
    sys.exit(code)


def make_files(table: ResultsTable) -> None:
    """Makes the files that the table's runs read, where they are missing."""
    for path, words in table.files.items():
        if not os.path.exists(path):
            print(shlex.join(["python", *words]), flush=True)
            if subprocess.run([sys.executable, *words]).returncode:
                raise ValueError(f"no table: {path} was not made, see above.")


def take_kept(table: ResultsTable, results: Path) -> None:
    """Puts what an earlier table kept of the same runs into their folders."""
    for run in table.runs:
        name = run.spec["name"] or Path(table.configs[run.name]).relative_to("configs").with_suffix(
            ""
        )
        kept = results / name / f"seed{run.spec['seed']}"
        if not run.folder.exists() and run._replace(folder=kept).finished:
            shutil.copytree(kept, run.folder)


def run_table(table: ResultsTable, slots: Sequence[Slot]) -> int:
    """Runs the table's waves one after another; the exit code."""
    for wave in table.waves:
        progress = SweepProgress(wave)
        if run_queue(wave, slots, lambda run: process(table.command(run)), progress):
            return os.EX_TEMPFAIL
        if progress.unfinished:
            progress.summarize()
            return 1
    return 0


def draw_distortion(table: ResultsTable) -> None:
    """Measures, where it is not yet, what the page draws of distortion against rate."""
    for run in table.runs:
        data = run.folder / "distortion.json"
        if run.name not in table.distortion or data.exists():
            continue
        print(f"{run.name}: measuring distortion against rate", flush=True)
        command = [sys.executable, "-m", "experiments.rate_distortion"]
        command += [f"--config={table.configs[run.name]}", f"--json={data}"]
        command += [f"--out={data.with_suffix('.png')}"]
        with lock(run.folder):
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise ValueError(f"distortion of {run.name}: {last[0]}")


def write_table(table: ResultsTable, workdir: Path, results: Path) -> None:
    """Keeps what the runs found, and writes results/NAME.md and the comparison page."""
    runs, skipped = read_runs([str(run.folder) for run in table.runs])
    if skipped:
        left = "; ".join(f"{unread.folder} {unread.reason}" for unread in skipped)
        raise ValueError(f"no table: {left}. Remove what is damaged to have it run again.")
    comparison = compare(runs, baseline=table.baseline, cost=table.cost)
    print_comparison(comparison)
    for run in table.runs:
        tabulate.keep(run.folder, results)
    commands = {run.folder: command_of(run) for run in runs}
    written = [workdir / "report.html", results / f"{table.name}.md"]
    write_text(written[0], page(comparison, commands, title=table.title, beside=str(workdir)))
    write_text(written[1], document(table, comparison))
    tabulate.rewrite(results)
    if results.resolve() == tabulate.ROOT / "results":
        shown = tabulate.ROOT / "docs" / "results.md"
        tabulate.insert(shown, rows_alone(table, comparison), table.name)
    for path in written:
        print(path)


if __name__ == "__main__":
    with front_door():
        main()
