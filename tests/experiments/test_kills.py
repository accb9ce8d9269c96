"""A run that is killed, stopped or whose checkpoint is damaged ends as if nothing had happened.

The kills fall at random moments, some inside the writing of a checkpoint; BITJAX_KILLS says how many
there are, 5 unless given.
"""

import json
import os
import random
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

from bitjax.training.keeper import Keeper
from bitjax.training.metrics import read_rows
from experiments.build import build_run

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("BITJAX_KILLS", "5"))
# Bits learned under a budget, rounded, frozen, fine-tuned; a checkpoint every third step.
CONFIG = """
from configs.base import get_config as base


def get_config():
    config = base()
    config.name = "killed"
    config.model = {"name": "mlp", "features": (24, 16)}
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
    result.pop("commit")
    config = ConfigDict(json.loads((folder / "config.json").read_text()))
    run = build_run(config, str(folder))
    run.show = False
    keeper = Keeper(run)
    place, saved = keeper.restore()
    keeper.close()
    assert place.stage == len(run.method.stages)
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
