"""A run that is killed, stopped or whose checkpoint is damaged ends as if nothing had happened.

The kills fall at random moments; `python -m tests.chaos --kills 30` makes more of them.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys

import pytest

from bitjax.runs.checkpoint import Checkpoints
from bitjax.runs.rows import read_rows
from tests.chaos import Kills
from tests.small_runs import ROOT, assert_same_run, make_setting, run_whole

KINDS = {
    "bitpruning": ("writing", "training", "anywhere"),
    "tsq": ("special", "writing"),
    "bottleneck": ("special", "training"),
}


def settle(name, tmp_path_factory):
    """A setting, and its run that nothing interrupted."""
    folder = tmp_path_factory.mktemp(name)
    setting = make_setting(name, folder)
    return setting, run_whole(setting, folder / "whole")


@pytest.fixture(scope="module")
def bitpruning(tmp_path_factory):
    return settle("bitpruning", tmp_path_factory)


@pytest.fixture
def setting(bitpruning):
    return bitpruning[0]


@pytest.fixture
def whole(bitpruning):
    return bitpruning[1].folder


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(
    name, request, tmp_path, tmp_path_factory
):
    made = name == "bitpruning"
    setting, whole = request.getfixturevalue(name) if made else settle(name, tmp_path_factory)
    kills = Kills(setting, whole, tmp_path, random.Random(20))
    for kind in KINDS[name]:
        kills.kill(kind)
    kills.finish()
    fell = [where for _, where in kills.fell]
    print(f"{kills.fell} in {kills.runs} runs")
    # Each layer that is solved, and what is allocated, is written too.
    assert {"writing", "special"} & set(fell)


@pytest.mark.slow
def test_a_second_process_in_a_folder_is_refused_and_leaves_the_first_alone(
    setting, whole, tmp_path
):
    folder = tmp_path / "run"
    rows = folder / "metrics.jsonl"
    with setting.start(folder) as first:
        first.wait_until(lambda: rows.exists() and rows.read_text().count("\n") > 4)
        first.popen.send_signal(signal.SIGSTOP)
        with setting.start(folder) as second:
            refused = second.end(), second.said
        first.popen.send_signal(signal.SIGCONT)
        assert first.end() == 0, first.said
    who = f"error: the folder '{folder}' is in use: process {first.popen.pid} on "
    assert refused[0] == 1 and refused[1].startswith(who) and refused[1].count("\n") == 1
    assert_same_run(whole, folder)


@pytest.fixture(scope="module")
def stopped(bitpruning, tmp_path_factory):
    """A run that SIGTERM stopped in its middle, and what it said."""
    setting, folder = bitpruning[0], tmp_path_factory.mktemp("stopped")
    rows = folder / "metrics.jsonl"
    with setting.start(folder) as process:
        process.wait_until(lambda: rows.exists() and rows.read_text().count("\n") > 8)
        process.popen.send_signal(signal.SIGTERM)
        # What Slurm leaves a job between SIGTERM and SIGKILL.
        assert process.end(seconds=30.0) == os.EX_TEMPFAIL, process.said
    return folder, process.said


def newest(folder):
    """The steps of a folder's checkpoints, the last save of each, newest first."""
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return checkpoints.steps()[::-1]


def flip_a_bit(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 8
    file.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [None, flip_a_bit])
def test_a_stopped_run_goes_on_at_its_step_or_at_the_one_before_if_that_is_damaged(
    damage, setting, whole, stopped, tmp_path
):
    folder, said = stopped
    step, before = newest(folder)
    assert f"stopped at step {step} (SIGTERM); run the same command to resume." in said
    assert max(row["step"] for row in read_rows(folder / "metrics.jsonl")) <= step
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    if damage is not None:
        files = (again / "checkpoints" / str(step)).rglob("d/*")  # where Orbax keeps the arrays
        damage(max(files, key=lambda file: file.stat().st_size))
    said = setting.finish(again).said
    assert f"resuming at step {before if damage else step} (train of stage" in said
    assert (f"The checkpoint {again}/checkpoints/{step} is damaged" in said) == bool(damage)
    assert_same_run(whole, again)


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_costs_a_run_nothing(setting, whole, tmp_path):
    # A bound on the length of files: the arrays of a checkpoint do not fit, everything else does.
    bound, none = 40_000, resource.RLIM_INFINITY
    limit = f"import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({bound}, {none}));"
    limit += " runpy.run_module('experiments.train', run_name='__main__')"
    command = [sys.executable, "-c", limit, *setting.command(tmp_path)[3:]]
    options = {"cwd": ROOT, "env": setting.environment, "text": True}
    full = subprocess.run(command, capture_output=True, timeout=300, **options)
    told = "could not be written to"
    lines = [line for line in full.stderr.splitlines() if told in line]
    assert full.returncode == 1, full.stderr
    assert lines[-1].startswith("error: The checkpoint of step 60 could not be written to")
    assert len(lines) > 10 and "Training goes on" in lines[0]
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "failed"
    assert newest(tmp_path) == []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    ) as process:
        assert process.stderr is not None and any(told in line for line in process.stderr)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (none, none))
        err = process.communicate(timeout=300)[1]
    assert process.returncode == 0, err
    assert_same_run(whole, tmp_path)
