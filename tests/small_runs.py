"""Small runs in processes of their own, and what tells one of them from another."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from bitjax.launch.build import build_work
from bitjax.runs.rows import read_rows
from bitjax.training.keeper import Keeper

ROOT = Path(__file__).parents[1]
CONFIG = """
from configs.base import get_config as base


def get_config():
    config = base()
    config.name = "killed"
    config.model = {{"name": "mlp", "features": {features}}}
    config.data.name = "digits"
    config.data.augmentation = "shift"
    config.data.batch_size = 64
    config.method = {method}
    config.rules = {rules}
    config.budgets = {budgets}
    config.log_every = 2
    config.checkpoint_every = 3
    config.eval_every = 10
    return config
"""
SHARED = {"learning_rate": 0.05, "warmup": 5}
ENDS = (
    ("dense1/input", {"name": "uniform", "bits": 8}),  # the normalised image
    ("(dense1|head)/kernel", {"name": "uniform", "bits": 8}),
)


class Case(NamedTuple):
    """A run to kill, and the lines it prints where what is special to its method begins and ends.

    A checkpoint is written at every third step and behind every unit of preparation.
    """

    features: tuple[int, ...]
    method: dict
    rules: tuple
    budgets: tuple = ()
    begins: str = ""
    ends: str = ""

    @property
    def text(self):
        """The config file."""
        return CONFIG.format(**{key: repr(value) for key, value in self._asdict().items()})


CASES = {
    # Bits learned under a budget, rounded, frozen, fine-tuned.
    "bitpruning": Case(
        (128, 64),
        {"name": "bitpruning", "steps": 60, "fine_tune": 0.4, "distill": 0.5, **SHARED},
        ((".*", {"name": "bitlength", "init": 6.0}),),
        ({"metric": "bits", "limit": 4.0},),
    ),
    # Layers solved one after the other.
    "tsq": Case(
        (16, 16, 16),
        {"name": "tsq", "code_steps": 9, "fine_tune_steps": 9, "calibration_batches": 2, **SHARED},
        (
            *ENDS,
            (".*/kernel", {"name": "ternary", "fit": "stored"}),
            (".*/input", {"name": "lsq", "bits": 2, "signed": False}),
        ),
        begins="codes: ",
        ends="dense3: ",
    ),
    # Histograms and sensitivities of calibration batches, then planes allocated under a rate.
    "bottleneck": Case(
        (16, 16, 16),
        {"name": "bottleneck", "rate": 3.0, "float_steps": 9, "steps": 9, **SHARED},
        (
            *ENDS,
            (".*/kernel", {"name": "uniform", "bits": 8}),
            (".*/input", {"name": "bitplane", "bits": 8}),
        ),
        begins="float: ",
        ends="allocate: ",
    ),
}


class Process:
    """A run under way: its process, and what it says with the moments at which it does."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self.lines: list[tuple[float, str]] = []
        self.popen = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as lines:
            for line in lines:
                self.lines.append((time.monotonic(), line))

    @property
    def said(self) -> str:
        """All that it has said."""
        return "".join(line for _, line in self.lines)

    def when(self, beginning: str) -> float | None:
        """When it first said a line with this beginning."""
        return next((at for at, line in self.lines if line.startswith(beginning)), None)

    def wait_until(self, condition: Callable[[], object], seconds: float = 240) -> bool:
        """Waits until a condition holds or the process has ended; whether it still runs."""
        until = time.monotonic() + seconds
        while self.popen.poll() is None and not condition():
            assert time.monotonic() < until, "waited in vain"
            time.sleep(0.0005)
        return self.popen.poll() is None

    def end(self, seconds: float = 300) -> int:
        """Waits for its end; the return code."""
        code = self.popen.wait(timeout=seconds)
        self._reader.join()
        return code

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.end()


class Setting(NamedTuple):
    """A case as a file, and the environment of its processes, which share compiled programs."""

    case: Case
    config: Path
    environment: dict[str, str]

    def command(self, folder: Path) -> list[str]:
        """One run of the config in a folder."""
        program = [sys.executable, "-m", "experiments.train", "--nodoctor"]
        return [*program, f"--config={self.config}", f"--workdir={folder}"]

    def start(self, folder: Path) -> Process:
        """A process that runs, or goes on with, the run of a folder."""
        return Process(self.command(folder), self.environment)

    def finish(self, folder: Path) -> Process:
        """The run's process, once it is finished."""
        with self.start(folder) as process:
            assert process.end() == 0, process.said
        return process


def make_setting(name: str, folder: Path) -> Setting:
    """A setting whose files are in a folder."""
    config = folder / f"{name}.py"
    config.write_text(CASES[name].text)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "BITJAX_CACHE_DIR": str(folder / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", "")  # programs are kept as a user's are
    return Setting(CASES[name], config, environment)


class Whole(NamedTuple):
    """A run that nothing interrupted, and how long those take that find its programs compiled.

    Attributes:
      folder: what it left.
      seconds: of such a run.
      special: seconds of it in which its method solves or allocates.
      rows: of metrics.
    """

    folder: Path
    seconds: float
    special: float
    rows: int


def run_whole(setting: Setting, folder: Path) -> Whole:
    """Runs what the others are compared with, and compiles their programs."""
    began = time.monotonic()
    process = setting.finish(folder)
    seconds, special = time.monotonic() - began, 0.0
    if setting.case.begins:
        begins, ends = process.when(setting.case.begins), process.when(setting.case.ends)
        assert begins and ends, process.said
        special = ends - begins
    # Shares of the time that it takes to compile and run.
    share, special_share = 0.6, 0.4
    rows = len(read_rows(folder / "metrics.jsonl"))
    return Whole(folder, share * seconds, special_share * special, rows)


def outcome(folder: Path) -> tuple:
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


_reference = cache(outcome)  # the run that others are compared with is read once


def assert_same_run(folder: Path, other: Path) -> None:
    """Two finished runs have the same rows, bits, results and variables, bit for bit."""
    *files, variables = _reference(folder)
    *other_files, other_variables = outcome(other)
    assert files == other_files
    jax.tree.map(np.testing.assert_array_equal, variables, other_variables)
