"""Trains a config many times: seeds, strengths, whatever its keys are.

bitjax sweep digits/bitpruning --grid seed=0,1,2 --workdir runs/sweep
bitjax sweep digits/lsq --workdir runs/s --sampler optuna --trials 9 --range ...

Given again, the command skips finished runs and goes on with the others. Overrides such as
--config.method.steps=300 hold for all runs.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from bitjax.cli.arguments import Parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what is wrong with it ends in one line."""
    parser = Parser(__doc__, "bitjax sweep")
    parser.add_config(workdir="folder that the runs' folders are made in")
    add = parser.add_argument
    add("--grid", action="append", default=[], help="key=a,b,c; several give the product")
    add("--sweep", default="", help="NAME of a function sweep_NAME() in the config")
    add("--executor", default="local", choices=["local", "slurm", "print"], help="where they run")
    parser.add_count("slots", "runs at a time; else one per accelerator, 1 on a CPU", least=0)
    add("--slurm", action="append", default=[], help="key=value for Slurm: timeout_min=240, ...")
    parser.add_switch("vectorize", "run them as one program on one device")
    add("--sampler", choices=["optuna"], help="choose runs by the scores of those before")
    parser.add_count("trials", "runs that the sampler chooses", default=None)
    add("--range", action="append", default=[], help="key=low:high or key=low:high:log, sampled")
    args = parser.read(argv)
    if bool(args.sampler) != bool(args.trials):
        parser.error("--sampler=optuna and --trials=N go together, got one of them")
    if args.range and not args.sampler:
        parser.error("--range goes with --sampler=optuna; a grid lists its values, --grid key=a,b")
    if args.sampler and (args.vectorize or args.sweep or args.executor != "local"):
        parser.error("--sampler runs here, run by run: leave out --vectorize, --sweep, --executor")
    if args.slurm and args.executor != "slurm":
        parser.error(f"--slurm goes with --executor=slurm, got --executor={args.executor}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Checks every run, then hands those that are not finished to the executor."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    import jax

    from bitjax.launch import executors
    from bitjax.launch.grid import plan

    if args.sampler:
        jax.config.update("jax_platforms", "cpu")
        sys.exit(_search(args, argv))

    if not args.vectorize or args.executor != "local":
        # Methods are built to be checked. The accelerators' memory is for the runs.
        jax.config.update("jax_platforms", "cpu")
    workdir, fixed = Path(args.workdir), tuple(args.overrides)
    runs = plan(args.config, workdir, fixed=fixed, grid=args.grid, sweep=args.sweep)
    sweep = executors.Sweep(args.config, workdir, fixed, tuple(runs), tuple(argv))
    if args.executor == "print":
        executors.print_commands(sweep, args.vectorize)
        return
    if args.executor == "slurm":
        executors.submit_to_slurm(sweep, args.slurm, args.vectorize)
        return
    run = executors.run_locally
    if args.vectorize:
        from bitjax.launch.vectorize import run_vectorized as run
    code = run(sweep, args.slots)
    if code == executors.STOPPED:
        print(f"stopped; to resume: {shlex.join(sweep.again())}")
    sys.exit(code)


def _search(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Runs what is left of a search; the exit code."""
    from bitjax.launch.devices import find_devices, make_slots
    from bitjax.launch.executors import STOPPED, Sweep, commands_of
    from bitjax.launch.local_queue import run_queue
    from bitjax.launch.progress import SweepProgress
    from bitjax.launch.search import plan_search, run_search

    workdir, fixed = Path(args.workdir), tuple(args.overrides)
    search = plan_search(
        args.config,
        workdir,
        fixed=fixed,
        grid=args.grid,
        ranges=args.range,
        trials=args.trials,
        arguments=argv,
    )
    sweep = Sweep(args.config, workdir, fixed, (), tuple(argv))
    slots = make_slots(find_devices(), min(args.slots, args.trials))
    code = run_search(
        search,
        len(slots),
        lambda runs: run_queue(runs, slots, commands_of(sweep), SweepProgress(runs)),
    )
    if code == STOPPED:
        print(f"stopped; to resume: {shlex.join(sweep.again())}")
    return code
