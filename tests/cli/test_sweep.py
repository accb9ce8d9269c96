"""The sweep's command line: what it prints and leaves behind, and how it says what is wrong."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitjax.cli import sweep as sweep_command
from bitjax.launch.executors import Sweep, print_commands, write_record
from bitjax.launch.grid import plan
from bitjax.launch.progress import last_row
from bitjax.launch.vectorize import check_programs, check_shared, choose_group, run_vectorized
from bitjax.runs.folder import config_hash
from experiments.tabulate import keep, read

ROOT = Path(__file__).parents[2]
DIGITS = "configs/digits/float.py"
SMALL = (
    "--config.model.name=mlp",
    "--config.method.steps=20",
    "--config.log_every=5",
    "--config.checkpoint_every=5",
)


def sweep(*arguments, timeout=300, **variables):
    command = [sys.executable, "-m", "experiments.sweep", f"--config={DIGITS}", *arguments]
    env = {**os.environ, **variables}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=env
    )


def planned(workdir, *grid, fixed=SMALL, config=DIGITS):
    runs = plan(config, workdir, fixed=fixed, grid=grid)
    arguments = (f"--config={config}", *fixed, *(f"--grid={axis}" for axis in grid))
    arguments += (f"--workdir={workdir}", "--executor", "print")
    return Sweep(config, workdir, fixed, tuple(runs), arguments)


def finish(run):
    run.folder.mkdir()
    result = {"status": "finished", "config_hash": config_hash(run.spec)}
    (run.folder / "result.json").write_text(json.dumps(result))


def test_every_command_can_be_copied_into_a_shell(tmp_path, capsys):
    swept = planned(tmp_path / "a folder", "data.mean=(0.1,),(0.2,)", fixed=())
    print_commands(swept)
    first, second = map(shlex.split, capsys.readouterr().out.splitlines())
    assert first[:2] == second[:2] == ["bitjax", "train"]
    assert first[2:4] == [f"--config={DIGITS}", "--config.data.mean=(0.1,)"]
    assert second[4] == f"--workdir={tmp_path}/a folder/mean=0.2"


def test_a_vectorized_sweep_is_one_command(tmp_path, capsys):
    print_commands(planned(tmp_path, "seed=0,1"), vectorized=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert shlex.split(line)[-2:] == [f"--workdir={tmp_path}", "--executor=local"]


def test_what_is_finished_is_not_printed(tmp_path, capsys):
    swept = planned(tmp_path, "seed=0,1")
    finish(swept.runs[0])
    print_commands(swept)
    out, err = capsys.readouterr()
    assert "seed=1" in out and "seed=0" not in out
    assert err == "# 1 of 2 runs are finished and left out\n"


def test_the_record_keeps_the_runs_of_all_commands(tmp_path):
    write_record(planned(tmp_path, "seed=0,1"))
    write_record(planned(tmp_path, "seed=1,2"))
    write_record(planned(tmp_path, "seed=1,2"))
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert sorted(record["runs"]) == ["seed=0", "seed=1", "seed=2"]
    assert record["runs"]["seed=2"]["overrides"] == {"seed": "2"}
    assert [shlex.split(c)[-4] for c in record["commands"]] == [
        "--grid=seed=0,1",
        "--grid=seed=1,2",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=X", "--grid=sed=1"], "no key 'sed' (did you mean seed?)"),
        (["--grid=seed=1"], "--workdir must be given"),
        (["--workdir=X", "--nope=1"], "unknown arguments ['--nope=1']"),
        (["--workdir=X", "--executor=cloud"], "(choose from "),
        (
            ["--workdir=X", "--grid=seed=1", "--slots=-1"],
            "--slots: must be an integer in [0, 10000], got '-1'",
        ),
        (["--workdir=X", "--grid=seed=1", "--vectorize", "--slots=2"], "uses one device"),
    ],
    ids=str,
)
def test_a_wrong_command_line_ends_in_one_line(arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as refused:
        sweep_command.main(["digits/float", *arguments])
    text = str(refused.value)
    assert "\n" not in text and message in text, text
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_that_is_stopped_goes_on_where_it_was(tmp_path):
    # Long enough that it is stopped in the middle on any machine.
    small = [*SMALL, "--config.method.steps=3000", "--config.checkpoint_every=500"]
    arguments = [*small, "--grid=seed=0,1", "--slots=2", f"--workdir={tmp_path}"]
    command = [sys.executable, "-m", "experiments.sweep", f"--config={DIGITS}", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and not last_row(tmp_path / "seed=1"):
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=100)
    assert process.returncode == os.EX_TEMPFAIL, out
    again = out.splitlines()[-1].removeprefix("stopped; to resume: ")
    assert shlex.split(again) == ["bitjax", "sweep", *command[3:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    log = (tmp_path / "seed=1" / "log.txt").read_text()
    assert "run the same command to resume" in log and "resuming at step" in log
    for seed in (0, 1):
        rows = (tmp_path / f"seed={seed}" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["step"] for row in rows] == list(range(5, 3001, 5))
        keep(tmp_path / f"seed={seed}", tmp_path / "results")
    assert [r.seed for r in read(tmp_path / "results")["digits/float"]] == [0, 1]


@pytest.mark.slow
def test_one_run_that_fails_leaves_the_others_and_says_why(tmp_path):
    grid = "--grid=method.learning_rate=1e9,0.05"
    done = sweep(*SMALL, grid, f"--workdir={tmp_path}")
    assert (done.returncode, done.stderr) == (1, "")
    assert "learning_rate=0.05: finished  accuracy" in done.stdout
    assert "learning_rate=1e+09 failed: NonFiniteError: step 3 is not finite" in done.stdout
    assert f"log: {tmp_path}/learning_rate=1e+09/log.txt" in done.stdout


@pytest.mark.slow
def test_a_vectorized_sweep_leaves_a_folder_for_every_run(tmp_path):
    arguments = [*SMALL, "--grid=seed=0,1", "--grid=method.learning_rate=0.05,0.02"]
    arguments += [f"--workdir={tmp_path}", "--vectorize"]
    # A batch of 128 does not divide by three devices; a group uses one, whatever else there is.
    done = sweep(*arguments, XLA_FLAGS="--xla_force_host_platform_device_count=3")
    assert (done.returncode, done.stderr) == (0, "")
    folders = {path.name for path in tmp_path.iterdir()}
    rows = {f"seed={s},learning_rate={r}" for s in (0, 1) for r in (0.05, 0.02)}
    assert folders == rows | {"sweep.json", "vectorized", ".lock"}
    for name in rows:
        result = json.loads((tmp_path / name / "result.json").read_text())
        assert result["status"] == "finished" and result["vectorized"] == 4
        assert result["seed"] == int(name[5])
        metrics = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["step"] for row in metrics] == [5, 10, 15, 20]
        with open(tmp_path / name / "bits.csv") as file:
            assert {row["bits_integer"] for row in csv.DictReader(file)} == {"32"}
    # They are finished for a sweep of processes, too.
    again = sweep(*arguments[:-1])
    assert again.returncode == 0 and "before; not repeated" in again.stdout


def test_a_group_that_began_goes_on_whole_and_a_new_one_is_of_what_is_left(tmp_path):
    swept = planned(tmp_path, "seed=0,1,2")
    whole, folder = choose_group(swept)
    assert whole.runs == swept.runs and folder.parent == tmp_path / "vectorized"
    finish(swept.runs[0])
    left, other = choose_group(swept)
    assert [run.name for run in left.runs] == ["seed=1", "seed=2"] and other != folder
    folder.mkdir(parents=True)
    assert choose_group(swept) == (swept, folder)
    for run in swept.runs[1:]:
        finish(run)
    assert choose_group(swept)[0].runs == ()


@pytest.mark.parametrize(
    ("grid", "key"),
    [("log_every=5,10", "log_every"), ("data.batch_size=8,16", "data.batch_size")],
)
def test_what_the_host_reads_for_all_rows_may_not_vary(grid, key, tmp_path):
    swept = planned(tmp_path, grid, fixed=("--config.model.name=mlp",))
    with pytest.raises(ValueError, match=f"vectorized sweep cannot vary {key}: the rows") as error:
        check_shared(swept)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="vectorized sweep cannot vary"):
        run_vectorized(swept, 0)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_key_that_changes_the_program_is_named(tmp_path):
    from bitjax.launch.vectorize import _build

    grid = ("seed=0,1", "method.learning_rate=0.1,0.2", "method.momentum=0.9,0.8")
    swept = planned(tmp_path, *grid)
    rows = {run.name: _build(swept, run.overrides) for run in swept.runs}
    with pytest.raises(ValueError, match="cannot vary method.momentum: it is part of the compiled"):
        check_programs(swept, rows)
    fine = swept._replace(runs=tuple(r for r in swept.runs if r.spec["method"]["momentum"] == 0.9))
    check_programs(fine, rows)
