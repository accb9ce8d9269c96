"""Runs under way are seen as they are, and only what is new in their folders is read."""

import io
import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from bitjax.report.live import live_table
from bitjax.runs.lock import LOCK, lock
from bitjax.runs.watch import Watch, _Run
from tests.run_folders import write_run

PLAN = {
    "stages": [{"name": "learn", "steps": 60}, {"name": "tune", "steps": 40}],
    "score": {"name": "accuracy", "higher_is_better": True, "form": "{:.2%}"},
}


LONG = {"stages": [{"name": "learn", "steps": 10_000}]}


def begin(folder: Path, *rows: dict, plan: object = PLAN) -> Path:
    """A run that has begun: what it leaves before it ends."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "plan.json").write_text(json.dumps(plan))
    add(folder, *rows)
    return folder


def add(folder: Path, *rows: dict) -> None:
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def row(step: int, **values) -> dict:
    return {"step": step, "stage": "learn", "loss": 0.5, "seconds": step / 10, **values}


def look(path: Path) -> dict:
    return {run.folder.rpartition("/")[2]: run for run in Watch([path]).look()}


@pytest.fixture
def opened():
    """The files that are opened below a folder, in turn."""
    names: list[str] = []
    watched = [""]

    def hook(event, arguments):
        if event == "open" and watched[0] and str(arguments[0]).startswith(watched[0]):
            names.append(Path(os.fspath(arguments[0])).name)

    sys.addaudithook(hook)  # which stays for good, and is silent without a folder

    def of(folder):
        watched[0] = str(folder)
        return names

    yield of
    watched[0] = ""


def test_each_run_has_the_state_that_its_folder_tells(tmp_path):
    write_run(tmp_path / "done", accuracy=0.75, bits=(3, 5))
    write_run(tmp_path / "broke", status="failed", error="NonFiniteError: the loss\nis NaN")
    write_run(tmp_path / "paused", status="stopped", error="stopped at step 5 (SIGTERM)")
    begin(tmp_path / "gone", row(10))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text("{}")
    with lock(begin(tmp_path / "on", row(10), row(20, bits=4.5, accuracy=0.5))):
        found = look(tmp_path)
    assert {name: run.status for name, run in found.items()} == {
        "done": "finished", "broke": "failed", "paused": "stopped", "gone": "killed",
        "new": "waiting", "on": "running",
    }  # fmt: skip
    on, done = found["on"], found["done"]
    assert (on.step, on.steps, on.stage, on.figures["bits"]) == (20, 100, "learn", 4.5)
    assert (done.step, done.steps, done.score.value, done.seconds) == (200, 200, 0.75, 12.5)
    assert done.figures == {"bits": 4.0}
    assert found["broke"].reason == "NonFiniteError: the loss is NaN"
    assert "its command goes on" in found["gone"].reason


def test_a_run_that_was_resumed_runs_though_it_once_stopped(tmp_path):
    run = write_run(tmp_path / "run", status="stopped", error="stopped at step 5")
    with lock(run):
        assert look(tmp_path)["run"].status == "running"
    assert look(tmp_path)["run"].status == "stopped"


def test_a_run_of_another_host_runs_while_there_is_news(tmp_path):
    run = begin(tmp_path / "run", row(10))
    (run / LOCK).write_text("process 12 on node-7 has it since 2026-01-01 00:00:00 UTC\n")
    assert socket.gethostname() != "node-7"
    assert (look(tmp_path)["run"].status, look(tmp_path)["run"].reason) == ("running", "on node-7")
    hour_ago = time.time() - 3600
    os.utime(run / "metrics.jsonl", (hour_ago, hour_ago))
    found = look(tmp_path)["run"]
    assert found.status == "silent" and re.search(r"on node-7; no row for 36\d\d s", found.reason)


def test_a_system_that_does_not_tell_its_locks_is_asked_for_the_process(tmp_path):
    run, ended = begin(tmp_path / "run", row(10)), subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for number, status in ((os.getpid(), "running"), (1, "running"), (ended.pid, "killed")):
        host = socket.gethostname()
        (run / LOCK).write_text(f"process {number} on {host} has it since 2026-01-01 00:00:00\n")
        assert _Run(run).look(None, time.time()).status == status


def test_the_time_left_follows_the_pace_of_the_last_rows(tmp_path):
    run = begin(tmp_path / "run", *(row(step) for step in range(10, 60, 10)))
    watch = Watch([tmp_path])
    with lock(run):
        assert watch.look()[0].left == pytest.approx(5, abs=0.5)  # 50 steps at 0.1 s
        add(run, row(70, stage="tune", seconds=1.0))
        assert math.isnan(watch.look()[0].left)  # another stage has another pace
        add(run, row(80, stage="tune", seconds=31.0))
        assert watch.look()[0].left == pytest.approx(60, abs=0.5)
        add(run, {"step": 80, "eval_accuracy": 0.5})  # which says nothing of the pace
        assert watch.look()[0].left == pytest.approx(60, abs=0.5)


def test_half_a_row_waits_for_its_other_half(tmp_path):
    run, watch = begin(tmp_path / "run", row(10)), Watch([tmp_path])
    text = json.dumps(row(20)) + "\n"
    for part, step in ((text[:9], 10), (text[9:], 20)):
        with open(run / "metrics.jsonl", "a") as file:
            file.write(part)
        seen = watch.look()[0]
        assert seen.step == step and "damaged" not in seen.reason


def test_rows_that_a_resumed_run_writes_anew_replace_the_others(tmp_path):
    run, watch = begin(tmp_path / "run", row(10), row(20, accuracy=0.5)), Watch([tmp_path])
    assert watch.look()[0].step == 20
    (run / "other").write_text(json.dumps(row(10)) + "\n")
    os.replace(run / "other", run / "metrics.jsonl")
    assert watch.look()[0].step == 10 and "accuracy" not in watch.look()[0].figures
    (run / "metrics.jsonl").write_text("")  # of the same file, shorter
    assert watch.look()[0].step == 0
    (run / "metrics.jsonl").unlink()
    (run / "plan.json").unlink()
    assert watch.look()[0].status == "waiting"


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("metrics.jsonl", b'{"step": 1}\n[1]\n{"step": -1}\n{"step": true}\n\xff\n', "4 damaged"),
        ("metrics.jsonl", b"x" * 200_000, "1 damaged"),
        ("metrics.jsonl", b"[" * 2000 + b"\n", "1 damaged"),
        ("config.json", b"{", "config.json is not JSON"),
        ("plan.json", b"{", "plan.json is not JSON"),
        ("plan.json", b'{"stages": [{"steps": 1e9}]}', "plan.json has a stage without steps"),
        ("plan.json", b'{"score": {"name": 3}}', "name in result.json must be text"),
        ("result.json", b"[]", "result.json holds no object"),
        ("result.json", b'{"status": "\\u001b[2J"}', "its status is"),
        ("result.json", b'{"status": "finished"}', "result.json has no accuracy"),
        ("result.json", None, "result.json is a folder, not a file"),
        ("metrics.jsonl", "pipe", "metrics.jsonl is a pipe, not a file"),
        (".lock", None, ".lock is a folder"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_said_and_the_rest_is_shown(name, content, said, tmp_path):
    run = begin(tmp_path / "run", row(10))
    (run / name).unlink(missing_ok=True)
    if content is None:
        (run / name).mkdir()
    elif content == "pipe":
        os.mkfifo(run / name)
    else:
        (run / name).write_bytes(content)
    write_run(tmp_path / "other")
    watch = Watch([tmp_path])
    for _ in range(2):  # what is wrong is not forgotten at the next look
        found = {seen.folder.rpartition("/")[2]: seen for seen in watch.look()}
        assert said in found["run"].reason and found["run"].reason.isprintable()
        assert found["other"].status == "finished"
    live_table(watch.look(), width=80)


def test_numbers_from_elsewhere_do_no_harm(tmp_path):
    wild = {"loss": "NaN", "bits": "Infinity", "accuracy": 10**400, "step": 2**60}
    run = begin(tmp_path / "run", wild, row(3, loss=1e300, seconds=-1e300, stage=["\x1b"]))
    add(run, {f"n{i}": i for i in range(500)} | {"step": 4, "loss": "-Infinity", "seconds": 0})
    with lock(run):
        seen = look(tmp_path)["run"]
    assert seen.step == 4 and seen.figures["loss"] == -math.inf and len(seen.figures) <= 50
    live_table([seen], width=80)


def test_a_folder_that_goes_or_may_not_be_read_ends_nothing(tmp_path):
    run = begin(tmp_path / "run", row(1))
    watch = Watch([tmp_path, tmp_path / "never"])
    assert len(watch.look()) == 1
    for path in run.iterdir():
        path.unlink()
    run.rmdir()
    assert watch.look() == []


def test_a_look_opens_only_what_is_new_and_reads_only_its_new_bytes(tmp_path, opened):
    runs = [begin(tmp_path / f"run{i}", *map(row, range(1, 501)), plan=LONG) for i in range(20)]
    long = (runs[0] / "metrics.jsonl").stat().st_size
    watch, names = Watch([tmp_path]), opened(tmp_path)
    watch.look()
    assert sorted(set(names)) == ["config.json", "metrics.jsonl", "plan.json"] and len(names) == 60
    names.clear()
    watch.look()
    assert names == []
    add(runs[3], row(501))
    names.clear()

    def read_bytes():
        return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])

    before = read_bytes()
    assert max(seen.step for seen in watch.look()) == 501
    assert names == ["metrics.jsonl"]
    # The rest is /proc/locks, and the counter itself.
    assert read_bytes() - before < 3000 + len(Path("/proc/locks").read_bytes()) * 2 < long


def test_of_a_long_file_the_end_is_read(tmp_path):
    run = begin(tmp_path / "run", *map(row, range(1, 5001)), plan=LONG)
    assert (run / "metrics.jsonl").stat().st_size > 4 * (1 << 16)
    seen = look(tmp_path)["run"]
    assert seen.step == 5000 and "damaged" not in seen.reason


def test_checkpoints_and_hidden_folders_are_not_searched(tmp_path):
    run = begin(tmp_path / "sweep" / "run")
    for inside in (run / "checkpoints" / "1", run / "best", tmp_path / ".venv"):
        inside.mkdir(parents=True)
        (inside / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "sweep")
    assert [seen.folder for seen in Watch([tmp_path]).look()] == [str(run)]


@pytest.mark.slow
def test_watching_twenty_runs_takes_under_a_hundredth_of_a_core(tmp_path):
    runs = [begin(tmp_path / f"run{i}", *map(row, range(1, 50)), plan=LONG) for i in range(20)]
    held, watch = [lock(run) for run in runs], Watch([tmp_path])
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    watch.look()
    looks, every = 50, 2.0  # seconds between two looks of the command
    spent = 0.0
    for i in range(looks):
        for run in runs:
            add(run, row(50 + i))
        began = time.process_time()
        console.print(live_table(watch.look(), width=80, lines=40))
        spent += time.process_time() - began
    for each in held:
        each.close()
    assert spent / looks / every < 0.01, spent / looks
