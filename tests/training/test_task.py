"""A task of one's own goes through the loop, evaluation, early checkpoints and the result."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.data import load
from bitjax.methods import lsq
from bitjax.models import MLP
from bitjax.runs.checkpoint import Checkpoints
from bitjax.runs.rows import read_rows
from bitjax.training.runner import run
from bitjax.training.settings import Settings
from bitjax.training.task import Task, all_sums, classification, next_token
from bitjax.training.work import make_work

SETTINGS = Settings(batch_size=16, eval_batch_size=64, eval_every=1, log_every=3, keep_best=True)


def regression() -> Task:
    """The digit as a number: lower errors are better, and nothing is called accuracy."""

    def errors(outputs, batch):
        return (outputs[:, 0] - batch["label"]) ** 2

    def sums(outputs, batch):
        mask = batch.get("mask", jnp.ones(len(outputs)))
        return {"squares": jnp.sum(errors(outputs, batch) * mask), "count": jnp.sum(mask)}

    return Task(
        name="regression",
        inputs=lambda preprocess, key, batch: ((preprocess(key, batch["image"]),), {}),
        loss=lambda outputs, batch: jnp.mean(errors(outputs, batch)),
        sums=sums,
        figures=lambda s: {
            "loss": s["squares"] / s["count"],
            "rmse": (s["squares"] / s["count"]) ** 0.5,
        },
        score="rmse",
        higher_is_better=False,
    )


def test_a_score_of_which_less_is_better_is_kept_reported_and_not_called_accuracy(tmp_path, capsys):
    rules = (bj.rule(".*", bj.lsq(bits=8)),)
    method = lsq(rules, steps=6, learning_rate=0.05)
    data = load("digits", limit=100)
    work = make_work(method, MLP((4,), num_classes=1), data, settings=SETTINGS, task=regression())
    result, _ = run(work, tmp_path)
    rows = read_rows(tmp_path / "metrics.jsonl")
    seen = {row["step"]: row["eval_rmse"] for row in rows if "eval_rmse" in row}
    seen[6] = result["stages"][-1]["rmse"]
    score = {"name": "rmse", "value": seen[6], "higher_is_better": False, "form": "{:.4g}"}
    assert result["score"] == score and result["task"] == "regression"
    assert "accuracy" not in result and "test rmse" in capsys.readouterr().out
    assert json.loads((tmp_path / "result.json").read_text())["score"] == result["score"]
    with Checkpoints(tmp_path / "best") as best:
        assert best.steps() == [min(seen, key=lambda step: seen[step])]


def test_only_examples_whose_mask_is_one_count():
    task, logits = classification(), jnp.array([[2.0, 0.0], [0.0, 2.0], [5.0, 0.0]])
    batch = {"label": jnp.array([0, 0, 1]), "mask": jnp.array([1.0, 1.0, 0.0])}
    figures = task.figures(task.sums(logits, batch))
    kept = {"label": batch["label"][:2]}
    known = task.figures(task.sums(logits[:2], kept))
    assert float(figures["accuracy"]) == 0.5
    np.testing.assert_allclose(figures["loss"], known["loss"], rtol=1e-6)
    assert float(figures["loss"]) == pytest.approx(float(task.loss(logits[:2], kept)))


class Headed(nn.Module):
    """With a classifier that exists in training only."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Dense(8, name="hidden")(x.reshape(len(x), -1)))
        out = nn.Dense(10, name="head")(x)
        return (out, nn.Dense(10, name="aux")(x)) if train else out


def test_a_head_that_exists_in_training_only_is_trained_saved_and_not_counted(tmp_path):
    plain = classification()

    def loss(outputs, batch):
        return plain.loss(outputs[0], batch) + 0.3 * plain.loss(outputs[1], batch)

    def sums(outputs, batch):
        return plain.sums(outputs[0] if isinstance(outputs, tuple) else outputs, batch)

    task = plain._replace(loss=loss, sums=sums)
    data = load("digits", limit=100)
    start = Headed().init(jax.random.key(0), jnp.ones((1, 8, 8, 1)), train=True)
    method = lsq((bj.rule(".*", bj.lsq(bits=4)),), steps=4, learning_rate=0.05)
    settings = SETTINGS._replace(keep_best=False)
    work = make_work(method, Headed(), data, start, settings, task=task)
    _, variables = run(work, tmp_path, show=False)
    before = work.enter(work.method.stages[-1], start)
    for site in ("kernel", "input"):
        moved = variables["quant"]["aux"][site]["scale"] != before["quant"]["aux"][site]["scale"]
        assert bool(moved)
    assert not any(site.startswith("aux") for site in work.costs)
    shapes = jax.tree.map(jnp.shape, work.variable_shapes(len(work.method.stages) - 1))
    assert shapes == jax.tree.map(jnp.shape, variables)


def test_the_divergence_from_the_float_network_is_that_of_the_start_and_nothing_in_training():
    task, data = classification(kl=True), load("digits", limit=90)
    method = lsq((bj.rule(".*", bj.lsq(bits=3)),), steps=2, learning_rate=0.05)
    work = make_work(method, MLP((4,)), data, settings=SETTINGS, task=task)
    result, variables = run(work, show=False)
    images = work.preprocess(None, data.eval_images)
    model = work.wrap(method.stages[-1])
    log_p, log_q = (
        np.asarray(nn.log_softmax(net.apply(tree, images)), np.float64)
        for net, tree in ((work.model, work.start), (model, variables))
    )
    expected = (np.exp(log_p) * (log_p - log_q)).sum(1).mean()
    assert result["stages"][-1]["kl"] == pytest.approx(expected, rel=1e-4) and expected > 1e-4
    sums = task.sums(jnp.zeros((2, 3)), {"label": jnp.array([0, 1])})
    assert "kl" not in task.figures(sums)


def test_tokens_that_fill_up_or_predict_nothing_diverge_from_nothing():
    logits, floats = (jax.random.normal(jax.random.key(i), (2, 3, 4)) for i in (0, 1))
    batch = {
        "tokens": jnp.array([[1, 3, 2], [1, 2, 0]]),
        "scored": jnp.array([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]]),
        "mask": jnp.array([1.0, 1.0]),
    }
    task = next_token(kl=True)
    log_p, log_q = nn.log_softmax(floats), nn.log_softmax(logits)
    each = np.asarray((jnp.exp(log_p) * (log_p - log_q)).sum(-1))
    figures = task.figures(all_sums(task, logits, floats, batch))
    assert figures["kl"] == pytest.approx((each[0, 0] + each[0, 1] + each[1, 0]) / 3, rel=1e-5)
