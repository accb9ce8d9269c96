"""Trains one config.

python -m experiments.train --config configs/digits/bitpruning.py --workdir DIR [--config.key=value]
"""

import os
import re
import subprocess
import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True, help_string="Config file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if it is not there.")
_RESUME = flags.DEFINE_bool("resume", True, "Go on where the folder's run of this config stopped.")
_TIME_LIMIT = flags.DEFINE_float(
    "time_limit", None, "Minutes until this job is ended; 0 is no limit. Slurm's if not given."
)
_REQUEUE = flags.DEFINE_bool(
    "requeue", False, "Have Slurm run the job again if its time limit or SIGUSR1, 2 stopped it."
)
_DOCTOR = flags.DEFINE_bool("doctor", True, "Check every site on one batch before the first step.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", None, "Connect several hosts; by default where srun, mpirun or a slice is found."
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "address:port of host 0; else found.")
_HOSTS = flags.DEFINE_integer("hosts", None, "How many hosts there are; else found.")
_HOST = flags.DEFINE_integer("host", None, "Which of them this is, from 0; else found.")


def parse(argv: list[str]) -> list[str]:
    """The flags; whatever is wrong with them or with the config file ends in one line."""
    try:
        left = flags.FLAGS(argv)
        if _CONFIG.value is None or _WORKDIR.value is None:
            raise flags.ValidationError("--config and --workdir must be given.")
        _CONFIG.value.keys()  # a file that could not be loaded says so when it is looked into
        return left
    except Exception as error:  # a config file is a program: it may raise anything
        text = str(error).strip()
        if "Traceback" in text:  # of the config file; its last line says what was wrong
            text = text.splitlines()[-1]
        if isinstance(error, AttributeError | KeyError):
            found = re.search(r"\w+", text)
            key = found[0] if found else ""
            text = f"no key {key!r}: --config.key=value changes only what the config file sets."
        sys.exit(f"error: in the flags or the config: {' '.join(text.split())} See --help.")


def main(argv: list[str]) -> None:
    """Runs what is left of the config's run, then prints its result."""
    if len(argv) > 1:
        sys.exit(f"error: unknown arguments {argv[1:]}; overrides are --config.key=value.")
    from bitjax.cli.show import print_result
    from bitjax.launch.build import build_work, open_folder
    from bitjax.launch.check import run_doctor
    from bitjax.training import hosts, preemption
    from bitjax.training.finite import NonFiniteError
    from bitjax.training.runner import run as run_work

    source = config_flags.get_config_filename(flags.FLAGS["config"])
    try:
        hosts.connect(
            _DISTRIBUTED.value,
            coordinator=_COORDINATOR.value,
            hosts=_HOSTS.value,
            host=_HOST.value,
        )
        deadline = preemption.deadline_of(_TIME_LIMIT.value, os.environ)
        work = build_work(_CONFIG.value, source=source)
        folder = open_folder(_CONFIG.value, str(_WORKDIR.value), resume=_RESUME.value)
        if _DOCTOR.value:
            run_doctor(work)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    asked = preemption.Preemption(deadline)
    preemption.listen(asked)
    try:
        result, _ = run_work(work, folder, preemption=asked)
    except preemption.Stopped as error:
        print(error, flush=True)
        command = preemption.requeue_command(asked.reason, os.environ)
        if _REQUEUE.value and command:
            subprocess.run(command, check=False)  # what is wrong with it, it says itself
        sys.exit(os.EX_TEMPFAIL)  # 75: a scheduler may requeue
    except (NonFiniteError, ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    if hosts.is_first():
        print_result(result, _WORKDIR.value)


def run() -> None:
    """Runs the command."""
    logging.set_verbosity(logging.WARNING)
    app.run(main, flags_parser=parse)
