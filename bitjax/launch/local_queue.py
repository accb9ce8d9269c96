"""Runs a queue of processes on this machine's devices, one run on each at a time."""

import os
import signal
import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import NamedTuple

from bitjax.files.writing import open_to_append
from bitjax.launch.devices import Slot
from bitjax.launch.grid import SweepRun
from bitjax.launch.progress import LOG, SweepProgress, last_row, result_text
from bitjax.runs.lock import lock

_RETRIES = 3  # of a run that was preempted and has not moved since


class _Running(NamedTuple):
    run: SweepRun
    process: subprocess.Popen
    step: int


def run_queue(
    runs: Sequence[SweepRun],
    slots: Sequence[Slot],
    command: Callable[[SweepRun], list[str]],
    progress: SweepProgress,
) -> bool:
    """Runs what is not finished, one run in each slot at a time; True if it was stopped.

    A run that fails does not stop the others. A run that ends with exit code 75 was preempted, and
    is resumed. At SIGINT or SIGTERM every run is told to save and stop; a second signal kills them.
    """
    waiting = deque(run for run in runs if not run.finished)
    for run in runs:
        if run.finished:
            progress.note(run.name, "finished", "before; not repeated")
    running: dict[str, _Running] = {}  # by slot
    stuck: Counter[str] = Counter()
    told = 0
    with _signals() as stop, progress:
        while running or (waiting and not stop.asked):
            for slot in slots:
                if waiting and slot.name not in running and not stop.asked:
                    _start(slot, waiting.popleft(), command, running, progress)
            if stop.asked > told:
                told = stop.asked
                _tell(running, told, progress)
            for slot, (run, process, step) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                status = _status(run, process.returncode, bool(stop.asked))
                if status == "preempted":
                    moved = last_row(run.folder).get("step", 0) > step
                    stuck[run.name] = 0 if moved else stuck[run.name] + 1
                    if stuck[run.name] <= _RETRIES:
                        progress.note(run.name, "waiting", "it was preempted and will be resumed")
                        waiting.appendleft(run)
                        continue
                    status = "failed"
                progress.note(run.name, status, result_text(run) if status == "finished" else "")
            progress.tick()
            time.sleep(0.05)
    for run in waiting:
        progress.statuses[run.name] = "stopped"
    return stop.asked > 0


def _start(slot, run, command, running, progress) -> None:
    try:
        # The child has the lock from its first moment, and keeps it if this process is killed.
        with lock(run.folder) as held, open(open_to_append(run.folder / LOG), "ab") as log:
            process = subprocess.Popen(
                command(run),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
                **held.for_child({**os.environ, **slot.environment}),
            )
    except OSError as error:
        progress.note(run.name, "failed", str(error))
        return
    if slot.cores:
        # The program's threads are counted and made later, once JAX is imported.
        os.sched_setaffinity(process.pid, slot.cores)
    running[slot.name] = _Running(run, process, last_row(run.folder).get("step", 0))
    progress.note(run.name, "running", f"on {slot.name}")


def _tell(running, asked: int, progress: SweepProgress) -> None:
    once = asked == 1
    what = "stopping: each run saves first" if once else "killing what still runs"
    progress.say(what + ("; once more to kill them" if once and running else ""))
    for job in running.values():
        job.process.send_signal(signal.SIGTERM if once else signal.SIGKILL)


def _status(run: SweepRun, code: int, stopping: bool) -> str:
    if code == 0 and run.finished:
        return "finished"
    if stopping and (code == os.EX_TEMPFAIL or code < 0):
        return "stopped"
    return "preempted" if code == os.EX_TEMPFAIL else "failed"


@contextmanager
def _signals() -> Iterator[SimpleNamespace]:
    """Counts SIGINT and SIGTERM in `asked` instead of dying of them: 1 stops, 2 stops at once."""
    stop = SimpleNamespace(asked=0)

    def note(number, frame):
        del number, frame
        stop.asked += 1

    old = {name: signal.signal(name, note) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for name, handler in old.items():
            signal.signal(name, handler)
