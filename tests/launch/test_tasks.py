"""A config runs any task on any data: its own, a user's, or one line that says why not."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from bitjax.cli import export, inspect
from bitjax.launch import exports
from bitjax.launch.build import build_work, check_config, open_folder
from bitjax.launch.check import run_doctor
from bitjax.launch.finished import load_run
from bitjax.launch.schema import plain
from bitjax.runs.folder import config_hash
from bitjax.runs.records import read_run
from bitjax.training.runner import run
from configs.base import get_config as base
from configs.stories.float import get_config as get_stories
from tests.launch.test_build import digits
from tests.training.tokens import SIZES, documents

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "own_task.md"
OWN = """
from bitjax.training.task import next_token

def even(share: float = 1.0):
    '''The next token, with a loss that is scaled.'''
    task = next_token()
    return task._replace(name="even", loss=lambda out, batch: share * task.loss(out, batch))

def labels():
    return next_token()._replace(loss=lambda out, batch: out[batch["label"]].sum())

def vector():
    return next_token()._replace(loss=lambda out, batch: out[0, 0])

def sums():
    return next_token()._replace(sums=lambda out, batch: out[0, 0, 0])

def check():
    return next_token()._replace(check=lambda out, batch, data: 1 / 0)

def nothing():
    return None
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with tokens and a module of tasks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    np.savez("counts.npz", train=documents(64, 0), test=documents(20, 1))
    (tmp_path / "own_tasks.py").write_text(OWN)
    return tmp_path


def counting(**changes):
    """A small valid config of tokens with some keys changed."""
    config = base()
    config.model = {"name": "llama", **SIZES, "context": 8}
    config.data.update(name="tokens:counts.npz", context=8, batch_size=16, eval_batch_size=16)
    config.calibration_size = 8
    config.method = {"name": "lsq", "steps": 2}
    config.rules = ((".*/kernel", {"name": "lsq", "bits": 4}),)
    for key, value in changes.items():
        *sections, last = key.split("__")
        node = config
        for section in sections:
            node = node[section]
        with node.unlocked(), node.ignore_type():
            node[last] = value
    return config


WRONG = {
    "unknown task": (
        {"task": {"name": "translation"}},
        r"config.task.name must be one of \['classification', 'next_token'\], got 'transla",
    ),
    "setting of no task": (
        {"task": {"name": "", "share": 2.0}},
        "config.task.share is given, but no config.task.name, whose setting it would be",
    ),
    "setting that the task lacks": (
        {"task": {"name": "next_token", "share": 2.0}},
        r"config.task.share is no setting of 'next_token' \(value 2.0\); it has kl",
    ),
    "wrong type for a task": (
        {"task": {"name": "own_tasks:even", "share": "half"}},
        "config.task.share must be of type float, got 'half'",
    ),
    "no task": (
        {"task": {"name": "own_tasks:nothing"}},
        r"config.task \(own_tasks:nothing\): it must give a Task, got NoneType",
    ),
    "classes of tokens": (
        {"task": {"name": "classification"}},
        r"config.task \(classification\) reads 'image' of a batch, and '.*' gives tokens, scored",
    ),
    "a loss that fails": (
        {"task": {"name": "own_tasks:labels"}},
        r"config.task \(own_tasks:labels\) fails on \(2, 8\) tokens of .*: KeyError: 'label' \(/",
    ),
    "a loss that is no scalar": (
        {"task": {"name": "own_tasks:vector"}},
        r"config.task \(own_tasks:vector\) must give scalars by `Task.loss`, got float32 of shape",
    ),
    "sums, which is a key, too": (
        {"task": {"name": "own_tasks:sums"}},
        r"config.task \(own_tasks:sums\) must give a dict of scalars by `Task.sums`, got",
    ),
    "a check that fails": (
        {"task": {"name": "own_tasks:check"}},
        r"config.task \(own_tasks:check\) fails on \(2, 8\) tokens of .*: ZeroDivisionError: ",
    ),
    "a small vocabulary": (
        {"model__vocab_size": 9},
        r"config.model \(llama\) must give logits of shape \(2, 8, 16 or more\) for \(2, 8\) to",
    ),
    "a short context": (
        {"model__context": 4},
        r"config.model \(llama\) fails on \(2, 8\) tokens of .*: .*context",
    ),
    "augmented tokens": (
        {"data__augmentation": "shift"},
        "config.data.augmentation is for images, got 'shift' for tokens:counts.npz; ",
    ),
    "tokens with a mean": (
        {"data__mean": (0.5,)},
        "config.data.mean must be empty, no images are there, for 'tokens:counts.npz', got",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_task_is_one_line_before_any_training(case, folder):
    changes, message = WRONG[case]
    with pytest.raises(ValueError, match=rf"^{message}") as caught:
        build_work(counting(**changes))
    assert "\n" not in str(caught.value)


def test_images_have_no_next_token():
    config = digits(task__name="next_token")
    with pytest.raises(ValueError, match=r"reads 'tokens' of a batch, and 'digits' gives image,"):
        build_work(config)


@pytest.mark.slow
def test_a_users_task_is_made_with_the_configs_keys_and_the_doctor_looks_at_it(folder, capsys):
    config = counting(task={"name": "own_tasks:even", "share": 3.0})
    check_config(plain(config))
    work = build_work(config)
    assert work.task.name == "even" and work.facts["config_hash"] != config_hash(plain(counting()))
    batch, logits = work.dataset.eval_sample(2), np.zeros((2, 8, 16), np.float32)
    assert float(work.task.loss(logits, batch)) == pytest.approx(3 * np.log(16), rel=1e-6)
    run_doctor(work)
    assert "error" not in capsys.readouterr().out


def test_the_guides_model_and_task_are_short():
    block = re.search(r"```pycon\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert block
    lines = [line for line in block[1].splitlines() if line.strip() not in ("", "...")]
    assert len(lines) <= 30


@pytest.mark.slow
def test_a_run_on_tokens_is_resumed_loaded_looked_into_and_exported(folder, capsys):
    for package in ("onnxruntime", "qonnx", "flatbuffers"):
        pytest.importorskip(package)  # an extra has it, not the core
    inputs = (".*/input", {"name": "lsq", "bits": 8})
    config = counting(rules=(*counting().rules, inputs))
    result, _ = run(build_work(config), open_folder(config, "run"), show=False)
    assert run(build_work(config), open_folder(config, "run"), show=False)[0] == result
    record = read_run("run")
    assert record.score.name == "perplexity" and record.score.value == result["perplexity"]
    loaded = load_run("run")
    assert loaded.work.evaluator(loaded.deployed().model)(loaded.deployed().variables)[
        "perplexity"
    ] == pytest.approx(result["perplexity"], rel=1e-6)
    inspect.main(["run"])
    assert "perplexity" in (text := capsys.readouterr().out) and "left out" not in text
    export.main(["run", f"--to={','.join(exports.FORMATS)}", "--check", "--images=8"])
    listed = json.loads(Path("run/export/export.json").read_text())
    assert [entry["format"] for entry in listed["files"]] == list(exports.FORMATS)
    for entry in listed["files"]:
        for check in entry["checks"]:
            assert check["holds"] and check["top1"] is None and check["agrees"] == 1, check
    assert len(read_run("run").files) == 1 + len(exports.FORMATS)
    # Of a packed file the tokens are drawn.
    export.main(["run/model.safetensors", "--to=qdq", "--out=out", "--check", "--images=4"])
    (entry,) = json.loads(Path("out/export.json").read_text())["files"]
    assert entry["checks"][0]["holds"]


@pytest.mark.slow
def test_the_published_llama_has_its_perplexity_through_the_runs_evaluation(data_root):
    assert (data_root / "stories").is_dir()
    # An independent program, of the same 43,083 predictions: 1.33294 nats a token.
    work = build_work(get_stories())
    figures = work.evaluator(work.model)(work.start)
    assert figures["perplexity"] == pytest.approx(3.7922, abs=1e-4)
    assert figures["loss"] == pytest.approx(1.33294, abs=1e-5)
