"""Trains one config: bitjax train digits/bitpruning --workdir runs/digits-bitpruning

Given again, the command goes on where the run of that folder stopped. Any key of the config may be
set behind it: --config.seed=1 --config.method.steps=300. A config of your own is named by its file.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

from bitjax.cli.arguments import Parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what is wrong with it ends in one line."""
    parser = Parser(__doc__, "bitjax train")
    parser.add_config(workdir="folder of the run; made if it is not there")
    add = parser.add_argument
    parser.add_switch("resume", "go on where the folder's run stopped", default=True)
    parser.add_switch("doctor", "check every site on a batch before the first step", default=True)
    add("--time_limit", type=float, help="minutes until the job is ended; else Slurm's; 0 is none")
    parser.add_switch("requeue", "have Slurm run the job again if its limit or a signal stopped it")
    parser.add_switch("distributed", "connect several hosts; else where srun or mpirun is found")
    parser.set_defaults(distributed=None)
    add("--coordinator", help="address:port of host 0; else found")
    parser.add_count("hosts", "how many hosts there are; else found", default=None)
    parser.add_count("host", "which of them this is, from 0; else found", least=0, default=None)
    return parser.read(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is left of the config's run, then prints its result."""
    args = parse(argv)
    from bitjax.cli.show import print_result
    from bitjax.launch.build import build_on_hosts, open_folder
    from bitjax.launch.check import run_doctor
    from bitjax.launch.config_files import load_config
    from bitjax.training import hosts, preemption
    from bitjax.training.runner import run as run_work

    config = load_config(args.config, args.overrides)
    hosts.connect(args.distributed, coordinator=args.coordinator, hosts=args.hosts, host=args.host)
    deadline = preemption.deadline_of(args.time_limit, os.environ)
    work = build_on_hosts(config, args.config)
    folder = open_folder(config, args.workdir, resume=args.resume)
    if args.doctor:
        work = run_doctor(work)
    asked = preemption.Preemption(deadline)
    preemption.listen(asked)
    try:
        result, _ = run_work(work, folder, preemption=asked)
    except preemption.Stopped as error:
        print(error, flush=True)
        command = preemption.requeue_command(asked.reason, os.environ)
        if args.requeue and command:
            subprocess.run(command, check=False)  # what is wrong with it, it says itself
        sys.exit(os.EX_TEMPFAIL)  # 75: a scheduler may requeue
    if hosts.is_first():
        print_result(result, args.workdir)
