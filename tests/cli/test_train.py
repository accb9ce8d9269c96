"""The command line: what a run leaves behind, and how it says what is wrong."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitjax.cli import train as train_command

ROOT = Path(__file__).parents[2]
DIGITS = "--config=configs/digits/float.py"
SMALL = [
    "--config.model.name=mlp",
    "--config.method.steps=20",
    "--config.log_every=5",
    "--config.checkpoint_every=5",
]


def command(*arguments):
    return [sys.executable, "-m", "experiments.train", *arguments]


def train(*arguments, timeout=300):
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=timeout
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([DIGITS, "--workdir=X", "--config.sed=1"], "no key 'sed' (did you mean seed?)"),
        ([DIGITS, "--workdir=X", "--config.method.gamma=1"], "no key 'method.gamma'"),
        (
            [DIGITS, "--workdir=X", "--config.seed=abc"],
            "config.seed must be of type int, got 'abc'.",
        ),
        ([DIGITS, "--workdir=X", "--config.seed"], "'--config.seed' must give a value"),
        ([DIGITS, "--workdir=X", "--config.model.name=mpl"], "config.model.name must be one of"),
        ([DIGITS, "--workdir=X", "--config.log_every=0"], "config.log_every must be an integer"),
        ([DIGITS, "--workdir=X", "--nope=1"], "unknown arguments ['--nope=1']"),
        ([DIGITS, "--workdir=X", "--", "more"], "one config at a time, got more and configs/dig"),
        (["digits/float", "more", "--workdir=X"], "unknown arguments ['more']"),
        ([DIGITS], "--workdir must be given"),
        (
            [DIGITS, "--workdir=X", "--time_limit=-1"],
            "the time limit must be 0 (none) or more minutes",
        ),
        (["--workdir=X"], "name a config, such as digits/bitpruning"),
        (
            ["digits/bitprunin", "--workdir=X"],
            "neither a file nor a shipped config; the nearest of those are digits/bitpruning, ",
        ),
        (
            ["--config=configs/cifar10/resnet20_uniform.py:8bits", "--workdir=X"],
            "after the config's name comes :wNaM, for example :w4a4, got '8bits'",
        ),
    ],
    ids=str,
)
def test_a_wrong_command_line_ends_in_one_line(arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # shipped configs are found from any folder
    with pytest.raises(ValueError) as refused:
        train_command.main(arguments)
    text = str(refused.value)
    assert "\n" not in text and message in text, text
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_leaves_its_folder_complete_and_is_not_repeated(tmp_path):
    done = train(DIGITS, f"--workdir={tmp_path}", *SMALL)
    assert (done.returncode, done.stderr) == (0, "")
    assert "test accuracy after train" in done.stdout
    names = {"config.json", "checkpoints", "metrics.jsonl", "bits.csv", "result.json", ".lock"}
    names |= {"model.safetensors", "plan.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert json.loads((tmp_path / "config.json").read_text())["method"]["steps"] == 20
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    assert rows[0].keys() == {"step", "stage", "loss", "task_loss", "accuracy", "seconds"}
    with open(tmp_path / "bits.csv") as file:
        sites = list(csv.DictReader(file))
    assert {s["site"].split("/")[0] for s in sites} == {"dense1", "dense2", "head"}
    assert {s["bits_integer"] for s in sites} == {"32"}
    result = json.loads((tmp_path / "result.json").read_text())
    check_result(result)
    assert result["name"] == "digits/float" and result["method"] == "full_precision"
    again = train(DIGITS, f"--workdir={tmp_path}", *SMALL)
    assert again.returncode == 0
    later = json.loads((tmp_path / "result.json").read_text())
    assert later.pop("wall_seconds") < result.pop("wall_seconds") + 60
    assert {**later, "commit": ""} == {**result, "commit": ""}


def check_result(result):
    """`result.json` has every key that reports read, with numbers that can be."""
    keys = "status name method model data seed config_hash commit versions device wall_seconds"
    keys += " steps accuracy stages bits cost budget"
    assert set(keys.split()) <= result.keys()
    assert result["status"] == "finished" and 0.0 <= result["accuracy"] <= 1.0
    assert {"jax", "flax", "optax", "numpy", "python"} <= result["versions"].keys()
    for stage in result["stages"]:
        assert stage.keys() == {"name", "steps", "wall_seconds", "accuracy", "loss"}
    assert result["bits"].keys() == {"weights", "activations", "all", "inner"}
    for bits in result["bits"].values():
        assert bits.keys() == {"fractional", "integer"} and 1 <= bits["integer"] <= 32
    assert result["cost"].keys() == {
        "model_bytes",
        "float_model_bytes",
        "activation_bytes",
        "bops",
        "macs",
    }
    assert 0 < result["cost"]["model_bytes"] <= result["cost"]["float_model_bytes"]


@pytest.mark.slow
def test_a_run_that_slurm_tells_to_stop_saves_and_is_requeued_where_that_was_asked_for(tmp_path):
    slurm, folder = tmp_path / "slurm", tmp_path / "run"
    slurm.mkdir()
    (slurm / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {slurm}/asked\n')
    (slurm / "scontrol").chmod(0o755)
    environment = {"PATH": f"{slurm}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    slow = [DIGITS, f"--workdir={folder}", *SMALL, "--config.method.steps=100000", "--requeue"]
    with subprocess.Popen(
        command(*slow),
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        rows = folder / "metrics.jsonl"
        deadline = time.monotonic() + 200
        while not (rows.exists() and rows.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGUSR2)
        out, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (os.EX_TEMPFAIL, "")
    assert "(SIGUSR2); run the same command to resume" in out
    assert (slurm / "asked").read_text() == "requeue 17\n"
    assert json.loads((folder / "result.json").read_text())["status"] == "stopped"
    assert any((folder / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_run_whose_time_is_nearly_over_saves_after_its_first_step(tmp_path):
    limit = "--time_limit=0.1"  # of a minute: less than what is left to spare
    done = train(DIGITS, f"--workdir={tmp_path}", *SMALL, limit)
    assert (done.returncode, done.stderr) == (os.EX_TEMPFAIL, "")
    assert "stopped at step 1 (the time limit); run the same command to resume." in done.stdout
