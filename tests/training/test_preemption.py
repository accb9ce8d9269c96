"""A run is asked to stop by signals, clocks and other processes, and all processes agree when."""

import os
import signal
import subprocess
import sys
import time

import pytest

from bitjax.training.preemption import Preemption, deadline_of, listen, requeue_command


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_a_run_stops_while_a_step_and_a_checkpoint_still_fit_before_the_deadline():
    clock = Clock()
    preemption = Preemption(1100.0, safety=10.0, clock=clock)
    stopped_at = None
    while stopped_at is None:
        if preemption.reached(save_seconds=5.0):
            stopped_at = clock.now
        clock.now += 7.0
    # One more step would begin, end and be saved 10 seconds before the deadline at the latest.
    assert stopped_at + 7.0 + 5.0 + 10.0 >= 1100.0 > stopped_at - 7.0 + 7.0 + 5.0 + 10.0
    assert preemption.reason == "the time limit"


def test_the_longest_step_so_far_is_reckoned_with():
    clock = Clock()
    preemption = Preemption(1100.0, safety=0.0, clock=clock)
    for pause in (0.0, 50.0, 1.0):  # A compilation, say.
        clock.now += pause
        stopped = preemption.reached()
    assert stopped


def test_without_a_deadline_no_time_is_too_late():
    clock = Clock()
    preemption = Preemption(None, clock=clock)
    clock.now = 1e12
    assert not preemption.reached(1e9)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"], ids=lambda name: name)
def test_signals_ask_for_a_stop_and_the_first_reason_is_kept(name):
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
    before = {number: signal.getsignal(number) for number in numbers}
    preemption = Preemption()
    try:
        listen(preemption)
        assert not preemption.reached()
        os.kill(os.getpid(), signal.Signals[name])
        assert preemption.reached() and preemption.reason == name
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.reached() and preemption.reason == name
        if name == "SIGINT":
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def left(deadline):
    """Seconds until a deadline."""
    return deadline - time.monotonic()


def test_the_deadline_is_slurms_unless_minutes_are_given():
    slurm = {"SLURM_JOB_END_TIME": str(time.time() + 5000)}
    assert left(deadline_of(None, slurm)) == pytest.approx(5000, abs=9)
    assert deadline_of(0.0, slurm) is None
    assert left(deadline_of(1.0, slurm)) == pytest.approx(60, abs=9)
    assert deadline_of(None, {}) is None
    with pytest.raises(
        ValueError, match=r"the time limit must be 0 \(none\) or more minutes, got -1"
    ):
        deadline_of(-1.0, {})
    for end in ("soon", "nan", "inf"):
        with pytest.raises(ValueError, match=f"SLURM_JOB_END_TIME must be seconds .* got '{end}'"):
            deadline_of(None, {"SLURM_JOB_END_TIME": end})


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_clock_that_is_set_moves_no_deadline(hours, monkeypatch):
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * hours)
    deadlines = [
        deadline_of(10.0, {}),
        deadline_of(None, {"SLURM_JOB_END_TIME": str(time.time() + 600)}),
    ]
    monkeypatch.undo()
    for deadline in deadlines:
        assert not Preemption(deadline).reached()
        assert Preemption(deadline, safety=601.0).reached()


def test_slurm_is_asked_to_requeue_what_it_would_not_requeue_by_itself():
    inside = {"SLURM_JOB_ID": "17"}
    for reason in ("SIGUSR1", "SIGUSR2", "the time limit", "another process was asked to stop"):
        assert requeue_command(reason, inside) == ["scontrol", "requeue", "17"]
        assert requeue_command(reason, {}) is None
    assert requeue_command("SIGTERM", inside) is None
    assert requeue_command("SIGINT", inside) is None


PROGRAM = """if True:
    import sys, time, jax
    port, index = sys.argv[1:]
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))
    from jax.experimental import multihost_utils
    from bitjax.training.preemption import Preemption, listen
    preemption = Preemption()
    listen(preemption)
    for step in range(100_000):
        if step == 1:
            print("ready", flush=True)
        multihost_utils.process_allgather(jax.numpy.ones(1))  # steps go together, as in training
        if preemption.reached():
            assert preemption.reached(), "it stays so"
            print(step, preemption.reason, flush=True)
            break
        time.sleep(0.01)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2"])
def test_all_processes_stop_at_the_same_step_when_one_is_asked(name):
    port = str(20_000 + (os.getpid() + 7) % 20_000)
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, port, index],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index in ("0", "1")
    ]
    try:
        for process in both:
            assert process.stdout is not None
            assert any(line == "ready\n" for line in process.stdout)  # after what gloo has to say
        both[1].send_signal(signal.Signals[name])
        outputs = [process.communicate(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], outputs
    steps, reasons = zip(*(out.splitlines()[-1].split(" ", 1) for out, _ in outputs), strict=True)
    assert steps[0] == steps[1]
    assert reasons[0] == "another process was asked to stop"
    # JAX listens to SIGTERM itself, so who was sent it does not know.
    assert reasons[1] == (reasons[0] if name == "SIGTERM" else name)
