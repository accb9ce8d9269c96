"""A run on a streamed data set: stopped anywhere, it ends as one that was not."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from bitjax.launch.build import build_work, open_folder
from bitjax.training.preemption import Preemption, Stopped
from bitjax.training.progress import Progress
from bitjax.training.runner import run, run_rows
from configs.base import get_config as base
from tests.data.sets import write_folder


def config(folder, steps=9) -> ConfigDict:
    config = base()
    config.model = {"name": "mlp", "features": (6,), "num_classes": 3}
    config.data.update(
        name=f"folder:{folder}",
        image_size=6,
        augmentation="random_resized_crop",
        batch_size=4,
        eval_batch_size=4,
    )
    config.method = {"name": "lsq", "steps": steps, "learning_rate": 0.05, "warmup": 0}
    config.rules = ((".*", {"name": "lsq", "bits": 4}),)
    config.update(calibration_size=8, log_every=1, checkpoint_every=2)
    return config


class StopAt(Progress):
    """Asks a run to stop once a step is done."""

    def __init__(self, preemption, step):
        super().__init__(enabled=False)
        self.preemption, self.step = preemption, step

    def update(self, step, **values):
        super().update(step, **values)
        if step == self.step:
            self.preemption.request("the test")


def execute(folder, workdir, stop_at=()):
    """The run's rows and result; stopped and resumed at some steps on the way."""
    for step in (*stop_at, None):
        chosen, asked = config(folder), Preemption()
        work = build_work(chosen)
        open_folder(chosen, workdir)
        if step is None:
            result, _ = run(work, workdir, show=False)
        else:
            with pytest.raises(Stopped, match=f"stopped at step {step} "):
                stop = StopAt(asked, step)
                run(work, workdir, show=False, preemption=asked, progress=stop)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows], result


@pytest.mark.slow
def test_a_streamed_run_that_was_stopped_twice_ends_as_one_that_was_not(tmp_path):
    sizes = ((9, 12), (14, 8), (10, 10))
    write_folder(tmp_path / "set", "train", (5, 4, 5), sizes, form="jpg")
    write_folder(tmp_path / "set", "val", (2, 2, 2), sizes, form="jpg", start=50)
    rows, result = execute(tmp_path / "set", tmp_path / "whole")
    stopped_rows, stopped = execute(tmp_path / "set", tmp_path / "stopped", stop_at=(3, 4))
    assert rows == stopped_rows and len(rows) >= 9
    assert result["stages"][-1]["loss"] == stopped["stages"][-1]["loss"]
    assert np.isfinite(result["stages"][-1]["loss"]) and result["eval_split"] == "validation"


@pytest.mark.slow
def test_rows_of_one_program_stream_their_own_batches(tmp_path):
    sizes = ((9, 12), (14, 8), (10, 10))
    write_folder(tmp_path / "set", "train", (5, 4, 5), sizes, form="jpg")
    write_folder(tmp_path / "set", "val", (2, 2, 2), sizes, form="jpg", start=50)
    works = {}
    for seed in (0, 1):
        chosen = config(tmp_path / "set")
        chosen.seed = seed
        works[f"row{seed}"] = build_work(chosen)
    outcomes, failed = run_rows(works, show=False)
    assert not failed
    for name, work in works.items():
        alone = run(work, show=False).result["stages"][-1]["loss"]
        assert outcomes[name].result["stages"][-1]["loss"] == pytest.approx(alone, rel=1e-3)
