"""The queue keeps to its slots, outlives failures, resumes preempted runs and stops in order."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from bitjax.launch.devices import Slot
from bitjax.launch.grid import SweepRun
from bitjax.launch.local_queue import run_queue
from bitjax.launch.progress import SweepProgress, last_row, result_text
from bitjax.runs.folder import config_hash
from bitjax.runs.lock import LOCK
from tests.run_folders import write_run

# What a run leaves, without JAX: `main(folder, name, digest)`.
RUN = """
import json, os, pathlib, signal, sys, time
folder, name, digest = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
count = len(list(folder.glob("start*")))
(folder / f"start{count}").write_text(json.dumps([time.monotonic(), os.environ["SLOT"]]))

def row(step):
    with open(folder / "metrics.jsonl", "a") as file:
        print(json.dumps({"step": step, "loss": 1.0}), file=file)

def finish(status="finished", **fields):
    result = {"status": status, "config_hash": digest, "accuracy": 0.5, "wall_seconds": 1.0}
    result["bits"] = {"all": {"integer": 3.0}}
    (folder / "result.json").write_text(json.dumps({**result, **fields}))
    (folder / "end").write_text(str(time.monotonic()))

def stop(*_):
    (folder / "saved").write_text("")
    sys.exit(75)

if name == "fails":
    print("error: no luck")
    sys.exit(1)
if name == "lies":
    sys.exit(0)
if name == "moves" and count < 6:
    row(count + 1)
    sys.exit(75)
if name == "stuck":
    sys.exit(75)
if name.startswith("long"):
    signal.signal(signal.SIGTERM, stop)
    row(1)
    time.sleep(60)
if name == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    row(1)
    time.sleep(60)
time.sleep(0.2)
finish()
"""


def make(tmp_path, *names, **options):
    runs = [SweepRun(name, tmp_path / name, {}, {"name": name}, 10) for name in names]
    out = io.StringIO()
    console = Console(file=out, highlight=False, soft_wrap=True)
    progress = SweepProgress(runs, console=console, **options)
    return runs, progress, out


def command(run):
    return [sys.executable, "-S", "-c", RUN, str(run.folder), run.name, config_hash(run.spec)]


def slots(count):
    return [Slot(f"s{i}", {"SLOT": f"s{i}"}) for i in range(count)]


def test_a_run_that_fails_does_not_stop_the_others(tmp_path):
    runs, progress, out = make(tmp_path, "a", "fails", "lies", "b")
    assert run_queue(runs, slots(1), command, progress) is False
    statuses = {"a": "finished", "fails": "failed", "lies": "failed", "b": "finished"}
    assert progress.statuses == statuses
    progress.summarize()
    text = out.getvalue()
    assert "a: finished  accuracy 50.00%  bits 3.00  1 s" in text
    assert "fails failed: error: no luck" in text
    assert str(tmp_path / "fails" / "log.txt") in text


def test_what_is_finished_is_not_repeated_and_what_is_not_is(tmp_path):
    runs, progress, _ = make(tmp_path, "a", "b", "c")
    for run, digest in zip(runs, (config_hash(runs[0].spec), "of another config"), strict=False):
        run.folder.mkdir()
        result = {"status": "finished", "config_hash": digest, "accuracy": 0.1}
        (run.folder / "result.json").write_text(json.dumps(result))
    assert run_queue(runs, slots(3), command, progress) is False
    assert set(progress.statuses.values()) == {"finished"}
    assert [len(list(run.folder.glob("start*"))) for run in runs] == [0, 1, 1]


def test_no_device_has_two_runs_at_a_time_and_none_is_idle(tmp_path):
    runs, progress, _ = make(tmp_path, *"abcde")
    run_queue(runs, slots(2), command, progress)
    spans = []
    for run in runs:
        began, slot = json.loads((run.folder / "start0").read_text())
        spans.append((slot, began, float((run.folder / "end").read_text())))
    assert {slot for slot, *_ in spans} == {"s0", "s1"}
    for slot in ("s0", "s1"):
        own = sorted(span[1:] for span in spans if span[0] == slot)
        assert all(before[1] <= after[0] for before, after in zip(own, own[1:], strict=False))


def test_a_preempted_run_is_resumed_for_as_long_as_it_moves(tmp_path):
    runs, progress, out = make(tmp_path, "moves", "stuck")
    run_queue(runs, slots(2), command, progress)
    assert progress.statuses == {"moves": "finished", "stuck": "failed"}
    assert len(list((tmp_path / "moves").glob("start*"))) == 7
    assert len(list((tmp_path / "stuck").glob("start*"))) == 4
    assert "moves: waiting  it was preempted and will be resumed" in out.getvalue()


def interrupt(tmp_path, names, signals):
    """Signals this process each time that all of these runs have begun."""

    def watch():
        for number in signals:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and not all(
                last_row(tmp_path / name) for name in names
            ):
                time.sleep(0.02)
            time.sleep(0.1)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_every_run_save_and_starts_no_other(number, tmp_path):
    runs, progress, out = make(tmp_path, "long1", "long2", "a")
    before = signal.getsignal(number)
    thread = interrupt(tmp_path, ("long1", "long2"), [number])
    assert run_queue(runs, slots(2), command, progress) is True
    thread.join()
    assert set(progress.statuses.values()) == {"stopped"}
    assert (tmp_path / "long1" / "saved").exists() and (tmp_path / "long2" / "saved").exists()
    assert not (tmp_path / "a").exists()
    assert "each run saves first" in out.getvalue()
    assert signal.getsignal(number) is before


def test_a_second_signal_kills_a_run_that_does_not_hear(tmp_path):
    runs, progress, _ = make(tmp_path, "deaf")
    thread = interrupt(tmp_path, ("deaf",), [signal.SIGTERM, signal.SIGTERM])
    assert run_queue(runs, slots(1), command, progress) is True
    thread.join()
    assert progress.statuses == {"deaf": "stopped"}


def test_a_folder_in_which_a_run_lives_is_left_alone(tmp_path):
    runs, progress, out = make(tmp_path, "a")
    program = "import fcntl, sys, time; file = open(sys.argv[1], 'a'); "
    program += "fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); time.sleep(60)"
    runs[0].folder.mkdir()
    holder = [sys.executable, "-S", "-c", program, str(runs[0].folder / LOCK)]
    with subprocess.Popen(holder, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        run_queue(runs, slots(1), command, progress)
        other.kill()
    assert progress.statuses == {"a": "failed"}
    assert "a: failed  the folder '" in out.getvalue() and "is in use" in out.getvalue()
    assert not list(runs[0].folder.glob("start*"))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores are chosen on Linux only")
def test_a_slot_of_the_cpu_runs_on_its_own_cores(tmp_path):
    core = min(os.sched_getaffinity(0))
    runs, progress, _ = make(tmp_path, "a")
    script = "import os, time; time.sleep(0.3); print(os.sched_getaffinity(0))"
    one = [Slot("cpu0", {}, frozenset({core}))]
    run_queue(runs, one, lambda run: [sys.executable, "-S", "-c", script], progress)
    assert (tmp_path / "a" / "log.txt").read_text() == f"{{{core}}}\n"


@pytest.mark.parametrize(
    ("own", "shown"),
    [
        ({"bits_per_token": 1.5, "perplexity": 3.79, "token_accuracy": 0.5}, "perplexity 3.7900"),
        ({"iou": 0.123456}, "iou 0.1235"),
        ({}, ""),
    ],
)
def test_a_run_under_way_shows_a_figure_of_its_task(tmp_path, own, shown):
    runs, progress, out = make(tmp_path, "a", every=0.0)
    runs[0].folder.mkdir()
    row = {"step": 5, "stage": "s", "loss": 0.25, "task_loss": 0.2, **own, "seconds": 1.0}
    (runs[0].folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    progress.statuses["a"] = "running"
    progress.tick()
    assert out.getvalue() == f"a: 5/10  loss 0.25  {shown}".rstrip() + "\n"


def test_scores_of_several_tasks_are_named_in_the_table_of_results(tmp_path):
    runs, progress, out = make(tmp_path, "a", "b")
    write_run(tmp_path / "a", accuracy=0.5, bits=(3, 3))
    progress.statuses["a"] = "finished"
    progress.summarize()
    assert "accuracy" in out.getvalue().splitlines()[1] and "50.00%" in out.getvalue()
    write_run(tmp_path / "b", measured={"perplexity": 3.79})
    progress.statuses["b"] = "finished"
    assert result_text(runs[1]) == "perplexity 3.7900  bits 4.00  12 s"
    out.truncate(0)
    progress.summarize()
    text = out.getvalue()
    assert "score" in text and "accuracy 50.00%" in text and "perplexity 3.7900" in text


def test_progress_is_told_in_lines_or_in_a_table_that_moves(tmp_path):
    runs, progress, out = make(tmp_path, "a", every=0.0)
    runs[0].folder.mkdir()
    rows = [{"step": 5, "loss": 0.25, "accuracy": 0.5, "bits": 3.5}, {"step": 6, "eval_loss": 1.0}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (runs[0].folder / "metrics.jsonl").write_text("x" * 9000 + "\n" + text + '{"step": 7, "lo')
    progress.statuses["a"] = "running"
    progress.tick()
    assert out.getvalue() == "a: 5/10  loss 0.25  accuracy 50.00%  bits 3.50\n"
    (runs[0].folder / "config.json").write_text("{}")
    more = [SweepRun(name, tmp_path / name, {}, {}, 10) for name in ("b", "c")]
    write_run(more[0].folder, accuracy=0.75)
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=80, no_color=True)
    with SweepProgress([*runs, *more], console=console) as moving:
        moving.statuses |= {"a": "running", "b": "finished"}
        moving._shown_at = 0.0
        moving.tick()
    said = terminal.getvalue()
    assert "running  ━━━     50 %" in said and "3.50" in said and "75.00%" in said
    assert "1 running, 1 waiting, 1 finished" in said
