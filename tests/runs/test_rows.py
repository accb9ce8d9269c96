"""Metrics survive kills and resumes, JSON is strict, and progress fits where it is shown."""

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from bitjax.costs.site import SiteCost
from bitjax.runs.results import StageResult, result_of
from bitjax.runs.rows import MetricsWriter, read_rows, write_json
from bitjax.training.progress import Progress


def strict(text: str):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_is_strict_and_takes_the_numbers_of_numpy_and_jax(tmp_path):
    write_json(
        tmp_path / "a.json",
        {
            "accuracy": jnp.float32(0.5),
            "half": jnp.bfloat16(1.5),
            "bits": np.array([[1, 2], [3, 4]], np.int32),
            "loss": float("nan"),
            "losses": (np.float64("inf"), jnp.float32(-jnp.inf)),
            "done": np.bool_(True),
            "nothing": None,
        },
    )
    assert strict((tmp_path / "a.json").read_text()) == {
        "accuracy": 0.5,
        "half": 1.5,
        "bits": [[1, 2], [3, 4]],
        "loss": "NaN",
        "losses": ["Infinity", "-Infinity"],
        "done": True,
        "nothing": None,
    }


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError, match="object has no JSON form"):
        write_json(tmp_path / "a.json", {"x": object()})
    with pytest.raises(TypeError, match="a JSON key must be a string, got 1"):
        write_json(tmp_path / "a.json", {1: "x"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def write_steps(folder, first: int, last: int, rewind_to: int | None = None) -> bytes:
    with MetricsWriter(folder) as writer:
        if rewind_to is not None:
            writer.rewind(rewind_to)
        for step in range(first, last + 1):
            loss = float("nan") if step == 3 else 0.1 * step
            writer.write(step, {"stage": "codes", "loss": loss})
    return (folder / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("torn", [b"", b'{"step": 8, "sta', b"\x00\x00", b'{"step": 8, "loss": 1}'])
def test_a_resumed_run_leaves_the_file_of_an_uninterrupted_one(tmp_path, torn):
    whole = write_steps(tmp_path / "whole", 1, 9)
    write_steps(tmp_path / "resumed", 1, 7)
    with (tmp_path / "resumed" / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    assert write_steps(tmp_path / "resumed", 6, 9, rewind_to=5) == whole


def test_a_half_written_last_row_is_dropped_before_more_is_appended(tmp_path):
    write_steps(tmp_path, 1, 2)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "sta')
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]
    write_steps(tmp_path, 3, 4)
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_rows_are_strict_json_and_read_back_as_numbers(tmp_path):
    text = write_steps(tmp_path, 1, 3).decode()
    assert [strict(line)["loss"] for line in text.splitlines()] == [0.1, 0.2, "NaN"]
    assert np.isnan(read_rows(tmp_path / "metrics.jsonl")[-1]["loss"])


def test_a_broken_row_that_is_not_the_last_is_an_error_with_its_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_rows(tmp_path / "metrics.jsonl")


def test_a_row_is_on_disk_when_write_returns(tmp_path):
    program = """if True:
        import sys, time
        from bitjax.runs.rows import MetricsWriter
        writer = MetricsWriter(sys.argv[1])
        writer.write(1, {"loss": 2.0})
        print("written", flush=True)
        time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]


def test_tensorboard_files_are_written_beside_the_rows(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the extra tensorboard")
    with MetricsWriter(tmp_path, writers=("tensorboard",)) as writer:
        writer.write(4, {"stage": "codes", "loss": jnp.float32(0.5)})
        writer.write(5, {"bits": 3})
        writer.rewind(4)
        writer.write(5, {"accuracy": float("nan")})
    events = sorted(tmp_path.glob("events*"))
    before, after = (path.read_bytes() for path in events)
    assert b"loss" in before and b"bits" in before and b"stage" not in before
    assert b"accuracy" in after and b"bits" not in after


def test_asking_for_tensorboard_without_tensorboardx_says_what_to_install(tmp_path):
    program = """if True:
        import sys
        sys.modules["tensorboardX"] = None  # As if it were not installed.
        from bitjax.runs.rows import MetricsWriter
        try:
            MetricsWriter(sys.argv[1], writers=("tensorboard",))
        except ImportError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], text=True, capture_output=True, check=True
    )
    assert "pip install 'bitjax[tensorboard]'" in done.stdout


def log_of(run, **settings) -> str:
    stream = io.StringIO()
    console = rich.console.Console(file=stream, soft_wrap=True, highlight=False)
    with Progress(console=console, **settings) as progress:
        run(progress)
    return stream.getvalue()


def test_a_log_gets_one_plain_line_per_stage_when_stages_are_short():
    def run(progress):
        for stage in ("learn_bits", "fine_tune"):
            progress.stage(stage, steps=300)
            for step in range(1, 301):
                progress.update(step, loss=jnp.float32(1 / step), bits=4.5)

    lines = log_of(run).splitlines()
    assert len(lines) == 2
    assert lines[0] == "learn_bits 300/300  loss 0.003333  bits 4.50  0:00 left"
    assert lines[1].startswith("fine_tune 300/300")


def test_a_log_gets_lines_no_closer_than_asked_for():
    def run(progress):
        progress.stage("slow", steps=1000, forms={"accuracy": "{:.2%}"})
        start = time.monotonic()
        step = 0
        while time.monotonic() - start < 0.5:
            step += 1
            progress.update(step, **({"accuracy": 0.5} if step == 1 else {}))
            time.sleep(0.01)

    lines = log_of(run, every=0.2).splitlines()
    assert 2 <= len(lines) <= 3
    assert all("accuracy 50.00%" in line and line.endswith("left") for line in lines)


def test_time_left_counts_only_the_steps_of_this_session_but_the_first_which_compiles():
    def run(progress):
        progress.stage("resumed", steps=1_000_000, done=999_899)
        time.sleep(1.0)
        progress.update(999_900)
        time.sleep(0.2)
        progress.update(999_901)  # 0.2 s for one step: 99 more take about 20 s.

    found = re.search(r"999901/1000000  (\d+):(\d\d) left", log_of(run))
    assert found and 18 <= 60 * int(found[1]) + int(found[2]) <= 40


def test_nothing_is_shown_by_the_other_processes_or_without_steps():
    def run(progress):
        progress.stage("learn_bits", steps=3)
        progress.update(3, loss=1.0)

    assert log_of(run, enabled=False) == ""
    assert log_of(lambda progress: None) == ""


def test_a_value_is_fetched_only_when_it_is_shown():
    fetched = []

    class Watched:
        def __array__(self, dtype=None, copy=None):
            fetched.append(True)
            return np.array(0.5)

    def run(progress):
        progress.stage("learn_bits", steps=50)
        for step in range(1, 51):
            progress.update(step, loss=Watched())

    log_of(run)
    assert len(fetched) == 1


def test_a_terminal_gets_a_bar_with_the_same_values():
    stream = io.StringIO()
    console = rich.console.Console(
        file=stream, force_terminal=True, width=100, color_system=None, legacy_windows=False
    )
    with Progress(console=console) as progress:
        progress.stage("learn_bits", steps=2, forms={"perplexity": "{:.4f}"})
        progress.update(1, loss=0.5)
        progress.update(2, loss=0.25, perplexity=3.79216, bits=3.0, other=1.0)
        progress.stage("fine_tune", steps=2)
    last = stream.getvalue().split("learn_bits")[-1]
    assert "2/2  loss 0.25  perplexity 3.7922  bits 3.00" in last
    assert "━" in last


def test_a_full_disk_is_told_and_leaves_no_half_row(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 0.5})
        resource.setrlimit(resource.RLIMIT_FSIZE, (40, before[1]))
        try:
            with pytest.raises(OSError, match=r"metrics.jsonl could not be written \(File too lar"):
                writer.write(2, {"loss": 0.25})
            with pytest.raises(OSError, match=r"result.json could not be .* Free space or quota"):
                write_json(tmp_path / "result.json", {"text": "x" * 100})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'
        writer.write(2, {"loss": 0.25})
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_result_has_the_bits_before_and_after_rounding():
    costs = {"a/kernel": SiteCost(1, 1, 1, "", "a", "kernel")}
    variables = {
        "params": {"a": {"kernel": jnp.ones(1)}},
        "quant": {"a": {"kernel": {"bits": jnp.float32(4.0)}}},
    }
    stages = [StageResult("train", 1, 0.0, {"hits": 5.0})]
    result = result_of({}, stages, ("hits", True, "{:.1f}"), costs, {"a/kernel": 3.5}, variables)
    assert result["bits"]["weights"] == {"fractional": 3.5, "integer": 4.0}
    score = {"name": "hits", "value": 5.0, "higher_is_better": True, "form": "{:.1f}"}
    assert (result["score"], result["hits"]) == (score, 5.0)
