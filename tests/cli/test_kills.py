"""A run that is killed, stopped or whose checkpoint is damaged ends as if nothing had happened.

The kills fall at random moments, some inside the writing of a checkpoint; BITJAX_KILLS says how
many there are, 5 unless given.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from bitjax.launch.build import build_work
from bitjax.runs.checkpoint import Checkpoints
from bitjax.runs.rows import read_rows
from bitjax.training.keeper import Keeper

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("BITJAX_KILLS", "5"))
# Bits learned under a budget, rounded, frozen, fine-tuned; a checkpoint every third step.
CONFIG = """
from configs.base import get_config as base


def get_config():
    config = base()
    config.name = "killed"
    config.model = {"name": "mlp", "features": (128, 64)}
    config.data.name = "digits"
    config.data.augmentation = "shift"
    config.data.batch_size = 64
    config.method = {"name": "bitpruning", "steps": 90, "fine_tune": 0.4, "distill": 0.5}
    config.method.learning_rate = 0.05
    config.method.warmup = 5
    config.rules = ((".*", {"name": "bitlength", "init": 6.0}),)
    config.budgets = ({"metric": "bits", "limit": 4.0},)
    config.log_every = 2
    config.checkpoint_every = 3
    config.eval_every = 10
    return config
"""


class Setting(NamedTuple):
    """Where the runs of this file are, and the environment of their processes."""

    config: Path
    environment: dict[str, str]

    def command(self, folder):
        """One run of the config in a folder."""
        program = [sys.executable, "-m", "experiments.train", "--nodoctor"]
        return [*program, f"--config={self.config}", f"--workdir={folder}"]

    def start(self, folder):
        """A process that runs, or goes on with, the run of a folder."""
        return subprocess.Popen(
            self.command(folder),
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, folder):
        """What the run says until it is finished."""
        with self.start(folder) as process:
            said = process.communicate(timeout=300)[0]
        assert process.returncode == 0, said
        return said


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("setting")
    config = folder / "config.py"
    config.write_text(CONFIG)
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return Setting(config, {**os.environ, "JAX_PLATFORMS": "cpu", **cache})


@pytest.fixture(scope="module")
def whole(setting, tmp_path_factory):
    """A run that nothing interrupted, and the seconds that its process took.

    It compiles every program; the other runs read them from its cache.
    """
    folder = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    setting.finish(folder)
    return folder, time.monotonic() - began


def outcome(folder):
    """Everything a finished run leaves that tells it from another, without what clocks said."""
    rows = [
        {k: v for k, v in row.items() if k != "seconds"}
        for row in read_rows(folder / "metrics.jsonl")
    ]
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "finished"
    for part in (result, *result["stages"]):
        part.pop("wall_seconds")
    result.pop("commit"), result.pop("commits")
    config = ConfigDict(json.loads((folder / "config.json").read_text()))
    work = build_work(config)
    keeper = Keeper(work, folder)
    place, saved = keeper.restore()
    keeper.close()
    assert place.stage == len(work.method.stages)
    return rows, result, (folder / "bits.csv").read_text(), saved["variables"]


def assert_same_run(folder, other):
    *files, variables = outcome(folder)
    *other_files, other_variables = outcome(other)
    assert files == other_files
    jax.tree.map(np.testing.assert_array_equal, variables, other_variables)


def unfinished_writes(folder):
    """The checkpoints that a process was writing, or removing, when it ended."""
    there = folder / "checkpoints"
    names = [path.name for path in there.iterdir()] if there.is_dir() else []
    bare = [
        path.name
        for path in (there.iterdir() if names else ())
        if path.name.replace("-", "").isdigit() and not (path / "manifest.json").exists()
    ]
    return bare + [n for n in names if ".orbax-checkpoint-tmp" in n or n.endswith(".removed")]


def wait_until(condition, process, seconds=240):
    """Waits until a condition holds or a process has ended."""
    until = time.monotonic() + seconds
    while process.poll() is None and not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.0005)


def kill_at_random(process, folder, kind, chance, whole_seconds):
    """Kills a process at a moment of a kind; False if it had ended before.

    Kinds are `anywhere`, in the time that a whole run takes; `training`, after its first
    checkpoint; `writing`, while a checkpoint is being written.
    """
    if kind != "anywhere":
        old = set(unfinished_writes(folder))  # of the process before
        wait_until(lambda: set(unfinished_writes(folder)) - old, process)
    longest = {"anywhere": whole_seconds, "training": 1.5, "writing": 0.05}[kind]
    time.sleep(chance.uniform(0.0, longest))
    if kind == "writing":  # That checkpoint may be complete by now; the next one is as good.
        wait_until(lambda: unfinished_writes(folder), process)
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return True


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(setting, whole, tmp_path):
    reference, seconds = whole
    chance = random.Random(20)
    kinds = ("writing", "training", "anywhere", "writing")
    killed, inside, runs = 0, 0, 1
    while killed < KILLS:
        folder = tmp_path / f"run{runs}"
        with setting.start(folder) as process:
            kind = kinds[killed % len(kinds)]
            if kill_at_random(process, folder, kind, chance, seconds):
                killed += 1
                inside += bool(unfinished_writes(folder))
                continue
            said = process.communicate()[0]
            assert process.returncode == 0, said
        # It had ended before its kill: this one is whole again, and another takes its place.
        assert_same_run(reference, folder)
        runs += 1
    setting.finish(tmp_path / f"run{runs}")
    assert_same_run(reference, tmp_path / f"run{runs}")
    print(f"{killed} kills in {runs} runs, {inside} of them inside the writing of a checkpoint")
    assert inside >= KILLS // 4


@pytest.mark.slow
def test_a_second_process_in_a_folder_is_refused_and_leaves_the_first_alone(
    setting, whole, tmp_path
):
    folder = tmp_path / "run"
    rows = folder / "metrics.jsonl"
    with setting.start(folder) as first:
        wait_until(lambda: rows.exists() and rows.read_text().count("\n") > 4, first)
        first.send_signal(signal.SIGSTOP)
        with setting.start(folder) as second:
            refused = second.communicate(timeout=60)[0]
        first.send_signal(signal.SIGCONT)
        said = first.communicate(timeout=300)[0]
    assert (second.returncode, first.returncode) == (1, 0), said
    assert refused.startswith(f"error: the folder '{folder}' is in use: process {first.pid} on ")
    assert refused.count("\n") == 1
    assert_same_run(whole[0], folder)


@pytest.fixture(scope="module")
def stopped(setting, tmp_path_factory):
    """A run that SIGTERM stopped in its middle, and what it said."""
    folder = tmp_path_factory.mktemp("stopped")
    rows = folder / "metrics.jsonl"
    with setting.start(folder) as process:
        wait_until(lambda: rows.exists() and rows.read_text().count("\n") > 8, process)
        process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        said = process.communicate(timeout=60)[0]
        seconds = time.monotonic() - told
    assert process.returncode == os.EX_TEMPFAIL, said
    assert seconds < 30.0, "what Slurm leaves a job between SIGTERM and SIGKILL"
    return folder, said


def newest(folder):
    """The steps of a folder's checkpoints, the last save of each, newest first."""
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return checkpoints.steps()[::-1]


def flip_a_bit(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 8
    file.write_bytes(data)


def cut_short(file):
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [None, flip_a_bit, cut_short])
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
    said = setting.finish(again)
    assert f"resuming at step {before if damage else step} (train of stage" in said
    assert (f"The checkpoint {again}/checkpoints/{step} is damaged" in said) == bool(damage)
    assert_same_run(whole[0], again)


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
    assert lines[-1].startswith("error: The checkpoint of step 90 could not be written to")
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
    assert_same_run(whole[0], tmp_path)
