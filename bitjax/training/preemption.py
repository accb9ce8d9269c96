"""When a run is to save and stop: a signal, a scheduler's time limit, a notice to any process.

With several processes JAX's preemption service finds the step at which all of them stop. It listens
to SIGTERM at the level of the operating system, where a handler of Python's would silence it; so
there SIGTERM is left to it, and whatever else asks for a stop is passed on to it as a SIGTERM.
"""

import math
import os
import signal
import time
from collections.abc import Callable, Mapping

import jax
from jax.experimental import multihost_utils

_SAFETY = 30.0  # seconds: until Slurm kills what its time limit has ended, unless set otherwise
_LIMIT = "the time limit"
_ELSEWHERE = "another process was asked to stop"


class Stopped(Exception):
    """The run was asked to stop; its state is saved and it can be resumed."""


class Preemption:
    """Whether a run is to save and stop; asked once a step, by every process alike.

    Attributes:
      reason: why the run is to stop; empty until then.

    Args:
      deadline: seconds of `clock` at which the machine is taken away; None if it is not.
      safety: seconds to spare before it.
      clock: the time in seconds; no clock that can be set.

    Example:
      >>> preemption = Preemption()
      >>> preemption.reached()
      False
      >>> preemption.request("SIGTERM")
      >>> preemption.reached(), preemption.reason
      (True, 'SIGTERM')
    """

    def __init__(
        self,
        deadline: float | None = None,
        *,
        safety: float = _SAFETY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reason = ""
        self._deadline, self._safety, self._clock = deadline, safety, clock
        self._last: float | None = None
        self._longest = 0.0  # seconds between two questions: a step, an evaluation, a compilation
        self._asked = 0
        self._passed_on = self._agreed = False

    def request(self, reason: str) -> None:
        """Asks the run to stop; may be called by a signal's handler, and more than once."""
        self.reason = self.reason or reason

    def reached(self, save_seconds: float = 0.0) -> bool:
        """Whether the run is to save and stop here; once it is, it stays so."""
        self._watch_clock(save_seconds)
        if not jax.distributed.is_initialized():
            return bool(self.reason)
        if self._agreed:
            return True
        # The service compares numbers for equality: they must have no gap, as a run's steps may.
        self._asked += 1
        self._agreed = multihost_utils.reached_preemption_sync_point(self._asked)
        if self._agreed:
            self.request(_ELSEWHERE)
        elif self.reason and not self._passed_on:  # after a first answer: the service does listen
            self._passed_on = True
            os.kill(os.getpid(), signal.SIGTERM)
        return self._agreed

    def _watch_clock(self, save_seconds: float) -> None:
        if self._deadline is None:
            return
        now = self._clock()
        if self._last is not None:
            self._longest = max(self._longest, now - self._last)
        self._last = now
        if now + self._longest + save_seconds + self._safety >= self._deadline:
            self.request(_LIMIT)


def deadline_of(minutes: float | None, environ: Mapping[str, str]) -> float | None:
    """When this process is going to be ended, in seconds of `time.monotonic`; None if it is not."""
    if minutes is not None:
        if not 0 <= minutes < float("inf"):
            raise ValueError(f"the time limit must be 0 (none) or more minutes, got {minutes}.")
        return time.monotonic() + 60 * minutes if minutes else None
    end = environ.get("SLURM_JOB_END_TIME", "0")
    try:
        since_epoch = float(end)
        if not math.isfinite(since_epoch):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"SLURM_JOB_END_TIME must be seconds since the epoch, got {end!r}: give a time limit."
        ) from None
    # What is left is taken from the machine's clock once: that may be set while the run lasts.
    return time.monotonic() + since_epoch - time.time() if since_epoch else None


def listen(preemption: Preemption) -> None:
    """Has signals ask for a stop: SIGTERM, Slurm's SIGUSR1 and SIGUSR2, and the first SIGINT.

    A second SIGINT ends the program at once.
    """

    def ask(number, frame):
        del frame
        preemption.request(signal.Signals(number).name)
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    for name in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, ask)
    if not jax.distributed.is_initialized():
        signal.signal(signal.SIGTERM, ask)


def requeue_command(reason: str, environ: Mapping[str, str]) -> list[str] | None:
    """The command that has Slurm run this job again, where that is wanted of this process.

    After SIGTERM it is not wanted: Slurm sends it to a job that it requeues by itself or that was
    cancelled. Nor is it wanted after the user's SIGINT.
    """
    job = environ.get("SLURM_JOB_ID")
    if not job or reason in ("SIGTERM", "SIGINT") or jax.process_index() != 0:
        return None
    return ["scontrol", "requeue", job]
