"""Next tokens are learned, evaluated, kept and taken away as classes are."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.data import eval_batches, load, train_batch
from bitjax.export.packed import load_packed
from bitjax.methods import full_precision, lsq
from bitjax.models import MLP
from bitjax.runs.checkpoint import Checkpoints
from bitjax.runs.rows import read_rows
from bitjax.training.runner import run
from bitjax.training.settings import Settings
from bitjax.training.task import ScoreError, Task, classification, figures_of, next_token
from bitjax.training.work import make_work
from tests.training.tokens import DECODER, counting

SETTINGS = Settings(
    batch_size=16, eval_batch_size=16, calibration_size=8, eval_every=2, log_every=2,
    keep_best=True, parallel="none",
)  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run of a few steps: its folder, its work, its outcome."""
    folder = tmp_path_factory.mktemp("run")
    rules = (bj.rule(".*/kernel", bj.lsq(bits=4)), bj.rule(".*/ffn/.*/input", bj.lsq(bits=8)))
    work = make_work(lsq(rules, steps=6, learning_rate=0.3), DECODER, counting(), settings=SETTINGS)
    return folder, work, run(work, folder, show=False)


def by_hand(logits, batch):
    """Nats, hits and count of a batch, token by token."""
    nats = hits = count = 0
    for n, tokens in enumerate(np.asarray(batch["tokens"])):
        for t in range(1, len(tokens)):
            weight = float(batch["scored"][n, t]) * float(batch.get("mask", np.ones(99))[n])
            row = np.asarray(logits[n, t - 1], np.float64)
            nats += weight * (math.log(np.exp(row).sum()) - row[tokens[t]])
            hits += weight * (row.argmax() == tokens[t])
            count += weight
    return nats, hits, count


def test_a_token_is_predicted_from_those_before_it_and_counts_where_it_is_scored():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(3, 5, 7)), jnp.float32)
    batch = {
        "tokens": jnp.asarray(rng.integers(0, 7, (3, 5)), jnp.int32),
        "scored": jnp.asarray(rng.integers(0, 2, (3, 5)), jnp.float32).at[:, 0].set(1.0),
    }
    nats, hits, count = by_hand(logits, batch)
    task = next_token()
    assert float(task.loss(logits, batch)) == pytest.approx(nats / count, rel=1e-6)
    masked = {**batch, "mask": jnp.array([1.0, 0.0, 1.0])}
    nats, hits, count = by_hand(logits, masked)
    sums = task.sums(logits, masked)
    assert [float(sums[k]) for k in ("loss", "correct", "count")] == pytest.approx(
        [nats, hits, count], rel=1e-6
    )
    figures = task.figures({name: float(x) for name, x in sums.items()})
    traced = jax.jit(task.figures)(sums)
    assert figures["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-6)
    assert figures["bits_per_token"] == pytest.approx(nats / count / math.log(2), rel=1e-6)
    assert {k: float(v) for k, v in traced.items()} == pytest.approx(figures, rel=1e-6)


def test_a_part_of_a_batch_that_is_all_padding_has_a_loss_of_zero():
    batch = {"tokens": jnp.ones((2, 4), jnp.int32), "scored": jnp.zeros((2, 4))}
    loss, gradient = jax.value_and_grad(next_token().loss)(jnp.ones((2, 4, 3)), batch)
    assert float(loss) == 0.0 and np.isfinite(gradient).all()


def test_a_loss_beyond_what_exp_holds_is_an_infinite_perplexity_and_no_error():
    found = next_token().figures({"loss": 1000.0, "correct": 0.0, "count": 1.0})
    assert found["perplexity"] == math.inf and found["loss"] == 1000.0


def test_the_result_is_of_the_task_and_says_how_the_data_were_cut(ran):
    folder, work, (result, _) = ran
    rows = read_rows(folder / "metrics.jsonl")
    seen = {row["step"]: row["eval_perplexity"] for row in rows if "eval_perplexity" in row}
    seen[6] = result["stages"][-1]["perplexity"]
    score = {"name": "perplexity", "value": seen[6], "higher_is_better": False, "form": "{:.4f}"}
    assert result["score"] == score and result["task"] == "next_token" and "accuracy" not in result
    assert (
        result["about_data"] == work.dataset.about and result["about_data"]["form"] == "documents"
    )
    assert {"loss", "perplexity", "bits_per_token", "token_accuracy"} <= rows[0].keys()
    assert seen[6] < seen[2]  # it learns, and the best is the lowest
    with Checkpoints(folder / "best") as best:
        assert best.steps() == [min(seen, key=lambda step: seen[step])]


def test_the_figures_are_those_of_each_document_by_itself(ran):
    _, work, (result, variables) = ran
    deployed, total = work.deployed(variables), np.zeros(3)
    for batch in eval_batches(work.dataset, 20):
        logits = jax.jit(deployed.model.apply)(deployed.variables, batch["tokens"])
        total += by_hand(logits, batch)
    assert result["stages"][-1]["loss"] == pytest.approx(total[0] / total[2], rel=1e-5)
    assert total[2] == work.dataset.about["eval_tokens"] - work.dataset.num_eval


def test_the_packed_file_knows_its_tokens(ran):
    folder, work, (_, variables) = ran
    packed = load_packed(folder / "model.safetensors")
    assert packed.about["vocabulary"] == 16 and packed.about["task"] == "next_token"
    assert (packed.about["input_shape"], packed.about["input_dtype"]) == ([8], "int32")
    assert packed.about["notes"]["form"] == "documents"
    own = work.deployed(variables).variables
    jax.tree.map(np.testing.assert_array_equal, packed.deployed.variables, own)


def test_a_run_does_not_go_on_with_other_tokens(ran):
    folder, work, _ = ran
    for data, said in (
        (counting(seed=1), "other"),
        (work.dataset._replace(vocabulary=99), "a vocabulary of 16 then, 99 now"),
        (work.dataset._replace(context=6), "8 tokens an example then, 6 now"),
    ):
        with pytest.raises(ValueError, match=rf"the data are not those .*{said}"):
            run(work._replace(dataset=data), folder, show=False)


BROKEN = {
    "loss": (
        {"loss": lambda outputs, batch: outputs[:, 0, 0]},
        r"`task` must give scalars by `Task.loss`, got float32 of shape \(2,\) for 'loss'",
    ),
    "sums": (
        {"sums": lambda outputs, batch: {"loss": outputs[0]}},
        r"`task` must give scalars by `Task.sums`, got float32 of shape \(8, 16\) for 'loss'",
    ),
    "no dict": (
        {"sums": lambda outputs, batch: outputs[0, 0, 0]},
        "`task` must give a dict of scalars by `Task.sums`, got ShapeDtypeStruct",
    ),
    "no score": (
        {"score": "bleu"},
        r"`task` must give the figure 'bleu', got \['bits_per_token', 'loss', 'perplexity', 'token",
    ),
    "a taken name": (
        {"figures": lambda sums: {**next_token().figures(sums), "bits": sums["loss"]}},
        "`task` must name its figures otherwise than 'bits': results have that already",
    ),
    "weights": (
        {"weights": lambda batch: batch["scored"][:, :3]},
        r"`task` must give a number for each prediction by `Task.weights`, \(2, 8\) of",
    ),
    "a format of nothing": (
        {"form": "{perplexity}"},
        "`task` must have a format of one number as `Task.form`, '{:.2%}' say, got '{perplexity}'",
    ),
    "inputs": (
        {"inputs": lambda preprocess, key, batch: batch["tokens"]},
        r"`task` must give \(args, kwargs\) of the model's call by `inputs`, a tuple and a dict",
    ),
    "a switch": (
        {"inputs": lambda preprocess, key, batch: ((batch["tokens"],), {"decode": True})},
        "`task` must give arrays by `inputs`, got True: make it a field of the model",
    ),
}


def build(task=None, data=None, model=DECODER, **settings):
    settings = SETTINGS._replace(**settings)
    return make_work(full_precision(steps=1), model, data or counting(), None, settings, task=task)


@pytest.mark.parametrize("case", BROKEN)
def test_a_task_that_gives_other_shapes_is_one_line_before_any_work(case):
    change, said = BROKEN[case]
    with pytest.raises(ValueError, match=rf"^{said}") as caught:
        build(next_token()._replace(**change))
    assert "\n" not in str(caught.value)


DIGITS = load("digits", limit=20)
UNFIT = {
    "tokens of images": ({"data": DIGITS}, "`task` reads 'tokens' of a batch, and 'd"),
    "classes of tokens": (
        {"task": classification()},
        "`task` reads 'image' of a batch, and 'counting' gives tokens, scored",
    ),
    "a small vocabulary": (
        {"data": counting()._replace(vocabulary=17)},
        r"`model` must give logits of shape \(2, 8, 17 or more\) for \(2, 8\) tokens of 'counting'",
    ),
    "other classes": (
        {"data": DIGITS, "task": classification(), "model": MLP((4,), num_classes=3)},
        r"`model` must give logits of shape \(2, 10\) for 2 examples of 'digits', got \(2, 3\)",
    ),
    "augmented tokens": (
        {"augmentation": "shift"},
        "`augmentation` must be 'none' for 'counting', whose examples are no images, got 'shift'",
    ),
}


def test_every_token_counts_the_same_however_a_batch_is_parted():
    batch, taken = train_batch(counting(), 8, 0, 0), []
    parts = np.sum(batch["scored"].reshape(2, -1), 1)
    assert parts[0] != parts[1]
    for accumulate in (1, 2):
        work = build(accumulate=accumulate, batch_size=8, model=nn.Embed(16, 16))
        state = work.first_state(0, work.start)
        state, metrics = jax.jit(work.train_step(0))(state, batch)
        taken.append((state.params, metrics["loss"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), *taken)


@pytest.mark.parametrize("case", UNFIT)
def test_a_task_a_model_and_data_that_do_not_go_together_are_one_line(case):
    arguments, said = UNFIT[case]
    with pytest.raises(ValueError, match=rf"^{said}") as caught:
        build(**{"task": next_token(), **arguments})
    assert "\n" not in str(caught.value)


def test_sums_of_which_nothing_counts_are_one_line():
    task = next_token()._replace(figures=lambda sums: {"perplexity": 1 / sums["count"]})
    with pytest.raises(
        ScoreError, match=r"sums \(loss 2, count 0\) give no figures \(.*zero\): eva"
    ):
        figures_of(task, {"loss": 2.0, "count": 0.0})


def test_a_score_that_is_not_finite_ends_the_run_in_one_line(tmp_path):
    plain = next_token()

    def figures(sums):
        return {**plain.figures(sums), "perplexity": sums["count"] * math.nan}

    task: Task = plain._replace(figures=figures)
    work = build(task, counting().first(16, 16))
    with pytest.raises(
        ScoreError, match=r"^the evaluation's perplexity is nan \(loss \d"
    ) as caught:
        run(work, tmp_path, show=False)
    assert "\n" not in str(caught.value)
    assert "perplexity is nan" in (tmp_path / "result.json").read_text()
