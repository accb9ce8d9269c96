"""Writers take a run's figures, their own service's ones too, and none of them stops a run."""

import json
import logging
import math
import subprocess
import sys
from importlib.util import find_spec

import pytest

from bitjax.runs.rows import MetricsWriter, read_rows
from bitjax.runs.writers import find_writer

OWN = """
seen = []

class Mine:
    def __init__(self, folder, settings, after):
        seen.append((folder.name, settings, after))
    def write(self, step, figures):
        seen.append((step, figures))
    def close(self):
        seen.append("closed")

class Fails(Mine):
    def write(self, step, figures):
        if step > 1:
            raise ConnectionError("no route\\nto host")

not_callable = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own with two writers, and a run's folder."""
    (tmp_path / "own_writers.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"name": "n", "seed": 3}))
    import own_writers  # pyrefly: ignore[missing-import]  # the fixture writes it

    own_writers.seen.clear()
    return own_writers.seen, tmp_path / "run"


def test_a_writer_of_ones_own_gets_the_settings_the_numbers_and_the_step_to_go_on_from(own):
    seen, folder = own
    with MetricsWriter(folder, ["own_writers:Mine"]) as writer:
        assert seen == []  # the first row opens it, so that `rewind` can come before
        writer.write(1, {"stage": "learn", "loss": 0.5, "many": [1, 2]})
        writer.write(2, {"loss": math.inf})
        writer.rewind(1)
        writer.write(2, {"loss": 0.25})
    settings = {"name": "n", "seed": 3}
    assert seen == [
        ("run", settings, -1), (1, {"loss": 0.5}), (2, {"loss": math.inf}), "closed",
        ("run", settings, 1), (2, {"loss": 0.25}), "closed",
    ]  # fmt: skip


def test_a_writer_that_fails_is_told_in_one_line_and_the_run_goes_on(own, caplog):
    seen, folder = own
    with caplog.at_level(logging.WARNING), MetricsWriter(
        folder, ["own_writers:Fails", "own_writers:Mine"]
    ) as writer:  # fmt: skip
        for step in (1, 2, 3):
            writer.write(step, {"loss": 0.5})
    assert [row["step"] for row in read_rows(folder / "metrics.jsonl")] == [1, 2, 3]
    assert [each for each in seen if each[0] == 3], "the other one has every row"
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(
        "the writer 'own_writers:Fails' is left out from here on (ConnectionError: no route to "
        "host; "
    )
    assert "own_writers.py, line " in line and line.endswith("); metrics.jsonl has every row.")


@pytest.mark.parametrize(
    "name, said",
    [
        ("tensorbord", "`writers` must be among tensorboard, wandb, mlflow or import paths"),
        ("os:system", "`writers` must be among"),
        ("own_writers:Their", "own_writers has no class 'Their'"),
        ("own_writers:not_callable", "own_writers has no class 'not_callable'"),
    ],
)
def test_a_writer_that_is_none_is_refused_before_the_run(own, name, said):
    with pytest.raises(ValueError, match=said):
        find_writer(name)


def run(folder, program, **environment):
    """Runs a program in a process of its own, whose libraries may warn and start services."""
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        env={"PATH": "", "HOME": str(folder), "PYTHONPATH": ".", **environment},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PROGRAM = """if True:
    import json, sys
    from pathlib import Path
    from bitjax.runs.rows import MetricsWriter
    folder = Path(sys.argv[1])
    (folder / "config.json").write_text(json.dumps({"name": "n", "data": {"name": "digits"}}))
    for step in (1, 2):  # the second process of a run that was stopped
        with MetricsWriter(folder, ["NAME"]) as writer:
            writer.rewind(step - 1)
            writer.write(step, {"stage": "learn", "loss": 1 / step, "bits": float("nan")})
"""


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("wandb"), reason="needs the extra wandb")
def test_weights_and_biases_take_a_run_offline_and_know_it_again(tmp_path):
    run(tmp_path, PROGRAM.replace("NAME", "wandb"), WANDB_MODE="offline")
    known = json.loads((tmp_path / "writers.json").read_text())["wandb"]
    kept = sorted(tmp_path.glob(f"wandb/offline-run-*-{known}/run-{known}.wandb"))
    assert kept
    text = b"".join(path.read_bytes() for path in kept)
    assert b"loss" in text and b"bits" in text and b"digits" in text


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("mlflow"), reason="needs the extra mlflow")
def test_mlflow_takes_a_run_into_a_folder_and_knows_it_again(tmp_path):
    read = """
    from mlflow import MlflowClient
    client = MlflowClient()
    place = client.get_experiment_by_name("bitjax").experiment_id
    (run,) = client.search_runs([place])
    history = client.get_metric_history(run.info.run_id, "loss")
    print(run.info.status, run.info.run_name, run.data.params["data.name"])
    print(*((each.step, each.value) for each in history))
"""
    text = run(
        tmp_path,
        PROGRAM.replace("NAME", "mlflow") + read,
        MLFLOW_TRACKING_URI=(tmp_path / "store").as_uri(),
        MLFLOW_ALLOW_FILE_STORE="true",
    )
    assert text.splitlines() == ["FINISHED n digits", "(1, 1.0) (2, 0.5)"]
