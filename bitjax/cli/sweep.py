"""Runs a config many times: seeds, strengths, whatever its keys are.

python -m experiments.sweep --config configs/digits/bitpruning.py --grid seed=0,1,2 \\
    --workdir runs/sweep [--executor local|slurm|print] [--vectorize] [--config.key=value]
"""

import shlex
import sys
from pathlib import Path

from absl import app, flags, logging

_CONFIG = flags.DEFINE_string("config", None, "Config file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder that the runs' folders are made in.")
_GRID = flags.DEFINE_multi_string("grid", [], "key=a,b,c; several give the product.")
_SWEEP = flags.DEFINE_string("sweep", "", "NAME of a function sweep_NAME() in the config.")
_EXECUTOR = flags.DEFINE_enum("executor", "local", ["local", "slurm", "print"], "Where they run.")
_SLOTS = flags.DEFINE_integer("slots", 0, "Runs at a time; 0: one per accelerator, or 1 on a CPU.")
_SLURM = flags.DEFINE_multi_string("slurm", [], "key=value for Slurm: timeout_min=240, ...")
_VECTORIZE = flags.DEFINE_bool("vectorize", False, "All runs as one program on one device.")


def parse(argv: list[str]) -> list[str]:
    """The flags, and what is left of the command line: `--config.key=value`, for all runs."""
    try:
        left = flags.FLAGS(argv, known_only=True)
        for argument in left[1:]:
            if not argument.lstrip("-").startswith(("config.", "noconfig.")):
                raise flags.Error(f"unknown argument {argument!r}.")
        if _CONFIG.value is None or _WORKDIR.value is None:
            raise flags.Error("--config and --workdir must be given.")
        if _SLOTS.value < 0:
            raise flags.Error(f"--slots must be 0 or more, got {_SLOTS.value}.")
    except flags.Error as error:
        sys.exit(f"error: {' '.join(str(error).split())} See --help.")
    return left


def main(argv: list[str]) -> None:
    """Checks every run, then hands those that are not finished to the executor."""
    import jax

    from bitjax.launch import executors
    from bitjax.launch.grid import plan

    config, workdir = str(_CONFIG.value), Path(str(_WORKDIR.value))
    if not _VECTORIZE.value or _EXECUTOR.value != "local":
        # Methods are built to be checked. The accelerators' memory is for the runs.
        jax.config.update("jax_platforms", "cpu")
    try:
        runs = plan(config, workdir, fixed=argv[1:], grid=_GRID.value, sweep=_SWEEP.value)
        arguments = tuple(argv[1:]), tuple(runs), tuple(sys.argv[1:])
        sweep = executors.Sweep(config, workdir, *arguments)
        if _EXECUTOR.value == "print":
            executors.print_commands(sweep, _VECTORIZE.value)
            return
        if _EXECUTOR.value == "slurm":
            executors.submit_to_slurm(sweep, _SLURM.value, _VECTORIZE.value)
            return
        run = executors.run_locally
        if _VECTORIZE.value:
            from bitjax.launch.vectorize import run_vectorized as run
        code = run(sweep, _SLOTS.value)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    if code == executors.STOPPED:
        print(f"stopped; to resume: {shlex.join(['python', *sweep.again()])}")
    sys.exit(code)


def run() -> None:
    """Runs the command."""
    logging.set_verbosity(logging.WARNING)
    app.run(main, flags_parser=parse)
