"""Submits a sweep as one Slurm job array; a run that is preempted is requeued and resumes."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bitjax.extras import extra

_TIMEOUTS = 100  # times that a run may come to its time limit; each goes on where it stopped


class SlurmRun:
    """A submitit job of a command that saves at SIGTERM and exits with 75 if it can be resumed."""

    def __init__(self, command: Sequence[str]):
        self.command = list(command)
        self._process: subprocess.Popen | None = None

    def __call__(self) -> None:
        """Runs the command; a RuntimeError if it fails."""
        # Slurm sends its warning to every process of a job; only this one shall act on it.
        deaf = f'trap "" {_warning().name.removeprefix("SIG")}; exec "$@"'
        self._process = subprocess.Popen(["sh", "-c", deaf, "sh", *self.command])
        code = self._process.wait()
        if code == os.EX_TEMPFAIL:  # it was preempted; submitit requeues at its own signal
            if callable(signal.getsignal(_warning())):
                os.kill(os.getpid(), _warning())
                time.sleep(600)  # the first task of several requeues the job, which ends this one
            raise RuntimeError("the run was stopped and could not be requeued; submit it again.")
        if code:
            raise RuntimeError(f"the run ended with exit code {code}; its log says why.")

    def checkpoint(self) -> Any:
        """Called by submitit at a preemption or a time limit: saves, and gives what to requeue."""
        import submitit

        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            # Not `wait`: the call that this signal interrupted holds its lock.
            with suppress(ChildProcessError):  # it has been waited for
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(SlurmRun(self.command))


def make_executor(folder: Path, parameters: Sequence[str], name: str):
    """Makes submitit's executor from `key=value` parameters, submitit's own or sbatch's."""
    with extra("slurm", "The executor slurm"):
        import submitit
    given: dict[str, Any] = {}
    general = {"timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node"}
    general |= {"tasks_per_node", "stderr_to_stdout"}
    for text in parameters:
        key, equals, value = text.partition("=")
        key = key.strip().removeprefix("slurm_")
        if not equals or not key or not value:
            raise ValueError(f"`slurm` must be key=value, got {text!r}.")
        full = key if key in general else f"slurm_{key}"
        if full in given:
            raise ValueError(f"`slurm` has {key} twice.")
        given[full] = _parse(value)
    if not {"timeout_min", "slurm_time"} & given.keys():
        raise ValueError(
            "`slurm` must have timeout_min=MINUTES: the time limit of a job, after which its "
            "run is saved and requeued."
        )
    try:
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=_TIMEOUTS)
        executor.update_parameters(name=name, **given)
    except RuntimeError as error:
        raise ValueError(
            f"the executor slurm: {error} Log in where sbatch works, or use the executor local."
        ) from error
    except (NameError, AssertionError, ValueError, TypeError) as error:
        raise ValueError(f"`slurm`: {str(error).splitlines()[0]}") from error
    return executor


def submit(executor: Any, commands: Sequence[Sequence[str]]) -> list[Any]:
    """Submits one job a command, as an array where there are several; submitit's jobs."""
    with executor.batch():
        jobs = [executor.submit(SlurmRun(command)) for command in commands]
    return jobs


def _parse(text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _warning() -> signal.Signals:
    """The signal by which Slurm warns a job of its end, as submitit asks for it."""
    return signal.Signals["SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")]
