"""A sweep on Slurm: what sbatch is given, and that a preempted run is saved, requeued and resumed.

There is no Slurm here: sbatch is a script that keeps what it gets, and jobs run as submitit's own
local jobs, by the same protocol of signals.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from bitjax.launch.slurm import SlurmRun, make_executor, submit

submitit = pytest.importorskip("submitit", reason="needs the extra slurm")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder of programs that look like Slurm's; `sbatch` keeps the script that it is given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (
        ("sbatch", f'cp "$1" {tmp_path}/script.sh; echo "Submitted batch job 42"'),
        ("srun", "exit 0"),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


PARAMETERS = [
    "timeout_min=90",
    "partition=gpu",
    "gpus_per_node=1",
    "slurm_account=lab",
    "mem_gb=16",
]


def test_a_sweep_is_one_array_of_jobs_that_are_warned_before_their_end(slurm):
    executor = make_executor(slurm / "logs", PARAMETERS, "strengths")
    jobs = submit(executor, [["true"]] * 3)
    assert [job.job_id for job in jobs] == ["42_0", "42_1", "42_2"]
    lines = (slurm / "script.sh").read_text().splitlines()
    for line in (
        "--array=0-2%3",
        "--signal=USR2@90",
        "--time=90",
        "--partition=gpu",
        "--gpus-per-node=1",
        "--account=lab",
        "--mem=16GB",
        "--job-name=strengths",
        "--open-mode=append",
    ):
        assert f"#SBATCH {line}" in lines
    for i in range(3):
        saved = submitit.core.utils.DelayedSubmission.load(slurm / "logs" / f"42_{i}_submitted.pkl")
        assert saved.function.command == ["true"] and saved._timeout_countdown == 100


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ([], "`slurm` must have timeout_min=MINUTES"),
        (["timeout_min=5", "partiton=gpu"], "`slurm`: .*'partiton'"),
        (["timeout_min=soon"], '`slurm`: Parameter "timeout_min" expected type'),
        (["timeout_min=5", "timeout_min=6"], "`slurm` has timeout_min twice"),
        (["timeout_min"], "`slurm` must be key=value, got 'timeout_min'"),
        (["timeout_min="], "`slurm` must be key=value"),
    ],
    ids=str,
)
def test_a_wrong_parameter_is_refused_in_one_line(parameters, message, slurm):
    with pytest.raises(ValueError, match=message) as error:
        make_executor(slurm / "logs", parameters, "sweep")
    assert "\n" not in str(error.value)


def test_without_slurm_or_submitit_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match='Could not detect "srun".*use the executor local'):
        make_executor(tmp_path, ["timeout_min=5"], "sweep")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ImportError, match=r"needs submitit: pip install 'bitjax\[slurm\]'"):
        make_executor(tmp_path, ["timeout_min=5"], "sweep")


def python(text):
    return [sys.executable, "-S", "-c", text]


def test_a_run_that_fails_is_a_job_that_fails():
    SlurmRun(python("pass"))()
    with pytest.raises(RuntimeError, match="ended with exit code 3; its log says why"):
        SlurmRun(python("raise SystemExit(3)"))()


# Counts its starts; waits for SIGTERM the first time, saves and says that it can be resumed.
PREEMPTED = """
import os, pathlib, signal, sys, time
folder = pathlib.Path({folder!r})
if (folder / "saved").exists():
    (folder / "done").write_text("")
    sys.exit()
def stop(*_):
    (folder / "saved").write_text("")
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
(folder / "half").write_text(str(os.getppid()))
(folder / "half").rename(folder / "begun")
{then}
"""


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not come"
        time.sleep(0.05)


def submitted(tmp_path, then):
    executor = submitit.AutoExecutor(tmp_path / "logs", cluster="local")
    executor.update_parameters(timeout_min=5)
    return submit(executor, [python(PREEMPTED.format(folder=str(tmp_path), then=then))])[0]


def end_of(job):
    """What a job gave: submitit's local executor runs a requeued job again, as Slurm does."""
    job._process.wait(timeout=60)
    job.result()


def test_a_preempted_job_saves_is_requeued_and_resumes(tmp_path):
    job = submitted(tmp_path, "time.sleep(60)")
    wait_for(tmp_path / "begun")
    os.kill(int((tmp_path / "begun").read_text()), signal.SIGUSR2)  # Slurm's warning
    end_of(job)
    assert (tmp_path / "saved").exists() and (tmp_path / "done").exists()
    assert "Requeued job" in job.stdout()


@pytest.mark.slow
def test_a_run_that_was_told_to_stop_by_itself_is_requeued_and_resumes(tmp_path):
    # As where Slurm sends SIGTERM to every process of a job.
    job = submitted(tmp_path, "stop()")
    end_of(job)
    assert (tmp_path / "saved").exists() and (tmp_path / "done").exists()
    assert "Requeued job" in job.stdout()


def test_the_warning_of_slurm_does_not_kill_the_run_itself(tmp_path):
    # Slurm sends it to every process of the job; a process dies of it unless it was told not to.
    then = "os.kill(os.getpid(), signal.SIGUSR2); (folder / 'alive').write_text('')"
    SlurmRun(python(PREEMPTED.format(folder=str(tmp_path), then=then)))()
    assert (tmp_path / "alive").exists()
    command = [sys.executable, "-S", "-c", "import os; os.kill(os.getpid(), 12)"]
    assert subprocess.run(command).returncode == -signal.SIGUSR2
