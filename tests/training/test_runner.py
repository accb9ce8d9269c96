"""Runs repeat bit for bit, stop and resume anywhere, and say where a loss went wrong."""

import csv
import errno
import json
import os
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.data import batch_indices, load
from bitjax.methods import Method, Stage, bitpruning, full_precision, uniform
from bitjax.models import MLP
from bitjax.runs.checkpoint import Checkpoints
from bitjax.runs.lock import LostError
from bitjax.runs.manifest import read_manifest, write_manifest
from bitjax.runs.rows import read_rows
from bitjax.training.finite import NonFiniteError
from bitjax.training.keeper import Keeper
from bitjax.training.preemption import Preemption, Stopped
from bitjax.training.runner import run
from bitjax.training.settings import Settings
from bitjax.training.work import make_work

pytestmark = pytest.mark.usefixtures("programs_are_compiled_once")
DATA = load("digits", limit=100)
SETTINGS = Settings(
    batch_size=16,
    eval_batch_size=64,
    augmentation="shift",
    calibration_size=32,
    log_every=3,
    checkpoint_every=2,
    eval_every=4,
)


class Net(nn.Module):
    """A hidden layer with batch normalisation and dropout, and a head."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(8, name="hidden")(x.reshape(len(x), -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="bn")(x))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(10, name="head")(x)


class Killed(BaseException):
    """What no one catches: the process is gone."""


class Interruption:
    """Kills or stops a run when it comes by a place for the n-th time."""

    def __init__(self, place=None, kind="kill", times=1):
        self.place, self.kind, self.times = place, kind, times
        self.preemption = Preemption()

    def passing(self, place):
        if place != self.place:
            return
        self.times -= 1
        if self.times == 0 and self.kind == "kill":
            raise Killed
        if self.times == 0:
            self.preemption.request("the test")


def method(interruption):
    """Three prepared units, learned bits under a budget, rounding, fine-tuning, averages."""
    rules = (bj.rule("head/.*", bj.bitlength(init=6.0)),)
    pruned = bitpruning(
        rules,
        steps=12,
        fine_tune=0.5,
        budgets=(bj.budget("bits", 5.0, "head/.*"),),
        gamma=0.1,
        distill=0.5,
        bits_learning_rate=0.1,
        reestimate_batches=2,
        average=0.6,
        dampen=0.1,
    )

    def units(context, variables, start):
        interruption.passing("enter")
        for unit in range(start, 3):
            noise = jax.random.normal(jax.random.fold_in(context.key, unit), (10,))
            params = {**variables["params"]}
            params["head"] = {**params["head"], "bias": params["head"]["bias"] + 0.01 * noise}
            variables = {**variables, "params": params}
            interruption.passing("unit")
            yield variables

    def watched(stage):
        def between(context, variables):
            interruption.passing(stage.name)
            return variables

        return stage._replace(every=(1, between)) if stage.steps else stage

    stages = map(watched, pruned.stages)
    return Method("test", (Stage("units", rules, prepare=units), *stages))


def make(interruption=None, **settings):
    chosen = method(interruption or Interruption())
    return make_work(chosen, Net(), DATA, settings=SETTINGS._replace(**settings))


def finish(folder, interruption=None, **settings):
    interruption = interruption or Interruption()
    work = make(interruption, **settings)
    return run(work, folder, show=False, preemption=interruption.preemption).result


def final_state(folder):
    """The variables that a finished run left on disk."""
    work = make()
    keeper = Keeper(work, folder)
    position, saved = keeper.restore()
    keeper.close()
    assert position.stage == len(work.method.stages)
    return saved["variables"]


@pytest.mark.slow
def test_numpys_integers_are_settings_too(tmp_path):
    settings = Settings(batch_size=np.int64(16), seed=np.uint32(2**31), checkpoint_every=np.int8(1))
    work = make_work(full_precision(steps=jnp.int32(2)), Net(), DATA, settings=settings)
    result, _ = run(work, tmp_path, show=False)
    assert (result["steps"], result["seed"]) == (2, 2**31)
    assert read_manifest(tmp_path / "checkpoints" / "2")["meta"]["run"]["batch_size"] == 16


def without_clock(result):
    result = {k: v for k, v in result.items() if k not in ("wall_seconds", "commit", "commits")}
    clockless = [{k: v for k, v in s.items() if k != "wall_seconds"} for s in result["stages"]]
    return {**result, "stages": clockless}


def rows_of(folder):
    rows = read_rows(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def assert_same_run(folder, result, other, other_result):
    assert without_clock(result) == without_clock(other_result)
    assert rows_of(folder) == rows_of(other)
    assert (folder / "bits.csv").read_text() == (other / "bits.csv").read_text()
    jax.tree.map(np.testing.assert_array_equal, final_state(folder), final_state(other))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted: its folder and its result."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, finish(folder, keep_best=True)


def interrupted(folder, interruption):
    """Runs until the interruption; the process then is gone."""
    kind = Killed if interruption.kind == "kill" else Stopped
    work = make(interruption)
    start = jax.tree.map(np.copy, work.start)
    with pytest.raises(kind):
        run(work, folder, show=False, preemption=interruption.preemption)
    jax.tree.map(np.testing.assert_array_equal, work.start, start)
    if kind is Stopped:
        assert json.loads((folder / "result.json").read_text())["status"] == "stopped"


def test_a_run_interrupted_everywhere_ends_as_one_that_was_not(whole, tmp_path):
    interrupted(tmp_path, Interruption("enter", "kill"))
    interrupted(tmp_path, Interruption("unit", "kill", times=2))
    interrupted(tmp_path, Interruption("learn_bits", "stop", times=2))
    interrupted(tmp_path, Interruption("learn_bits", "stop", times=2))
    # That was at the last step of the stage, which is evaluated and saved before the run stops.
    stages = json.loads((tmp_path / "result.json").read_text())["stages"]
    assert [stage["name"] for stage in stages] == ["units", "learn_bits"]
    interrupted(tmp_path, Interruption("freeze_bits", "kill", times=3))
    assert_same_run(*whole, tmp_path, finish(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "times", "kind"),
    # Each place has its other kind in the test above.
    [
        ("enter", 1, "stop"),
        ("unit", 3, "stop"),
        ("learn_bits", 5, "kill"),
        ("freeze_bits", 2, "stop"),
    ],
)
def test_a_run_interrupted_once_ends_as_one_that_was_not(place, times, kind, whole, tmp_path):
    interrupted(tmp_path, Interruption(place, kind, times))
    assert_same_run(*whole, tmp_path, finish(tmp_path))


def test_stages_come_in_order_and_the_budget_holds_on_integers(whole):
    folder, result = whole
    assert [s["name"] for s in result["stages"]] == [
        "units",
        "learn_bits",
        "freeze_bits",
        "reestimate_batch_stats",
    ]
    assert [s["steps"] for s in result["stages"]] == [0, 6, 6, 0]
    assert result["status"] == "finished" and result["steps"] == 12
    assert result["accuracy"] == result["stages"][-1]["accuracy"]
    with open(folder / "bits.csv") as file:
        bits = {row["site"]: row for row in csv.DictReader(file)}
    head = [float(bits[f"head/{role}"]["bits_integer"]) for role in ("kernel", "input")]
    assert sum(head) / 2 <= 5.0 and all(n == round(n) for n in head)
    assert float(bits["head/kernel"]["bits_fractional"]) not in head
    assert float(bits["hidden/kernel"]["bits_integer"]) == 32.0


def test_rows_are_those_of_the_log_steps_and_of_evaluations(whole):
    rows = rows_of(whole[0])
    assert [row["step"] for row in rows if "loss" in row] == [3, 6, 9, 12]
    assert [row["step"] for row in rows if "eval_loss" in row] == [4, 10]
    assert [row["stage"] for row in rows if "stage" in row] == ["learn_bits"] * 2 + [
        "freeze_bits"
    ] * 2


def test_the_variables_that_evaluated_best_are_kept_apart(tmp_path):
    few = DATA._replace(eval_images=DATA.eval_images[:8], eval_labels=DATA.eval_labels[:8])
    settings = SETTINGS._replace(eval_every=1, log_every=20, keep_best=True, keep_checkpoints=3)
    method = full_precision(steps=9, learning_rate=0.5)
    work = make_work(method, MLP((4,)), few, None, settings)
    run(work, tmp_path, show=False)
    rows = read_rows(tmp_path / "metrics.jsonl")
    seen = {row["step"]: row["eval_accuracy"] for row in rows if "eval_accuracy" in row}
    seen[9] = json.loads((tmp_path / "result.json").read_text())["accuracy"]
    first_best = max(seen, key=lambda step: seen[step])
    ties = [step for step in seen if seen[step] == seen[first_best]]
    assert first_best < 9 and len(ties) > 1, "the test needs a run that gets worse, and a tie"
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [6, 8, 9]
    with Checkpoints(tmp_path / "best") as checkpoints:
        best = checkpoints.restore(lambda meta: {"variables": jax.eval_shape(lambda: work.start)})
    assert (best.step, best.meta) == (first_best, {"accuracy": seen[first_best]})
    evaluate = work.evaluator(work.wrap(work.method.stages[0]))
    assert evaluate(best.state["variables"])["accuracy"] == seen[first_best]


def test_the_best_of_a_later_stage_takes_the_place_of_an_earlier_ones(whole):
    folder, result = whole
    variables = final_state(folder)
    with Checkpoints(folder / "best") as checkpoints:
        best = checkpoints.restore(lambda meta: {"variables": jax.eval_shape(lambda: variables)})
    assert best.meta == {"accuracy": result["accuracy"]}  # its last stage evaluates once
    jax.tree.map(np.testing.assert_array_equal, best.state["variables"], variables)


def test_a_finished_run_is_not_trained_again(whole):
    folder, result = whole
    rows = rows_of(folder)
    never = Interruption("learn_bits", "kill")
    assert without_clock(finish(folder, never)) == without_clock(result)
    assert rows_of(folder) == rows


def test_the_float_start_is_neither_changed_nor_given_away(whole):
    del whole  # the same programs, compiled
    start = Net().init(jax.random.PRNGKey(3), jnp.zeros((1, 8, 8, 1)))
    before = jax.tree.map(np.array, start)
    work = make_work(full_precision(steps=2), Net(), DATA, start, SETTINGS)
    run(work, show=False)
    jax.tree.map(np.testing.assert_array_equal, start, before)
    jax.tree.map(np.testing.assert_array_equal, work.start, before)


def test_another_seed_is_another_run_and_the_same_seed_the_same():
    def losses(seed):
        settings = SETTINGS._replace(seed=seed)
        work = make_work(full_precision(steps=3), MLP((4,)), DATA, settings=settings)
        return run(work, show=False).result["stages"][0]["loss"]

    assert losses(0) == losses(0) != losses(1)


def with_nan(step):
    """The data with a NaN pixel in an image that the batch of a step holds."""
    images = DATA.images.astype(np.float32)
    images[batch_indices(100, SETTINGS.batch_size, step, SETTINGS.seed)[0], 3, 4] = np.nan
    return DATA._replace(images=images)


@pytest.mark.slow
def test_a_run_that_another_commit_went_on_with_names_both(tmp_path, monkeypatch):
    def of(commit):
        monkeypatch.setattr("bitjax.training.keeper.provenance", lambda: {"commit": commit})

    of("a")
    interrupted(tmp_path, Interruption("learn_bits", "stop"))
    of("b")
    result = finish(tmp_path)
    assert (result["commit"], result["commits"]) == ("b", ["a", "b"])


FEWER = DATA._replace(images=DATA.images[:90], labels=DATA.labels[:90])
SWAPPED = DATA._replace(labels=9 - DATA.labels)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: make(seed=1), r"in '.*' is of another run \(seed: 0 there, 1 now\). Choose"),
        (lambda: of_config("b"), "another run .*method: 'test' there, None now; .* remove the"),
        (lambda: of_rules(bj.lsq(2)), r"another run \(rules: '\w+' there, '\w+' now\). Choose"),
        (lambda: of_data(FEWER), r"with \(100 training examples then, 90 now; other labels; othe"),
        (lambda: of_data(SWAPPED), r"began with \(other labels\). Restore them, or start a new"),
    ],
    ids=["seed", "config", "rules", "fewer examples", "classes swapped"],
)
def test_a_checkpoint_of_another_run_or_of_other_data_is_refused(other, message, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json*")}
    with pytest.raises(ValueError, match=message) as refused:
        run(other(), tmp_path / "run", show=False)
    assert "\n" not in str(refused.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json*")} == before


def of_config(digest):
    return make()._replace(facts={"config_hash": digest})


def of_rules(quantizer):
    work = make()
    first, *others = work.method.stages
    first = first._replace(rules=(bj.rule("head/.*", quantizer),))
    return work._replace(method=work.method._replace(stages=(first, *others)))


def of_data(dataset):
    return make()._replace(dataset=dataset)


def test_a_checkpoint_of_a_version_that_did_not_say_whose_it_is_is_taken(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        manifest = read_manifest(path)
        del manifest["meta"]["run"], manifest["files"]
        (path / "manifest.json").unlink()
        write_manifest(path, manifest)
    assert without_clock(finish(tmp_path / "run")) == without_clock(whole[1])


def test_a_run_whose_folder_is_removed_ends_and_writes_into_no_other(tmp_path):
    def replace(context, variables):
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run").mkdir()
        return variables

    stage = full_precision(steps=3).stages[0]._replace(every=(1, replace))
    work = make_work(Method("replace", (stage,)), MLP((4,)), DATA, settings=SETTINGS)
    with pytest.raises(LostError, match="was removed or replaced while this run wrote there"):
        run(work, tmp_path / "run", show=False)
    assert not any((tmp_path / "run").iterdir())


def test_a_nan_image_stops_the_run_with_its_step_and_site(tmp_path):
    settings = SETTINGS._replace(augmentation="none", log_every=1)
    work = make_work(full_precision(steps=6), Net(), with_nan(3), None, settings)
    with pytest.raises(NonFiniteError, match="step 4 is not finite at 'hidden/input'"):
        run(work, tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "failed" and "hidden/input" in result["error"]
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    keeper = Keeper(work, tmp_path)
    place, saved = keeper.restore()
    keeper.close()
    assert place.unit == 2 and int(saved["state"].bad_step) == -1
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(saved["state"].params))


def test_a_nan_image_in_the_calibration_batch_stops_the_run_before_training():
    images = np.full_like(DATA.images, np.nan, np.float32)
    rules = (bj.rule(".*", bj.uniform(bits=8)),)
    work = make_work(uniform(rules), MLP((4,)), DATA._replace(images=images))
    with pytest.raises(ValueError, match="NaN or inf first at dense1/input: clean the data"):
        run(work, show=False)


@pytest.mark.parametrize("split", ["labels", "eval_labels"])
@pytest.mark.parametrize("change", [lambda x: x - 1, lambda x: x * 1.0, lambda x: np.eye(10)[x]])
def test_labels_that_are_no_classes_are_refused_before_a_run(split, change):
    data = DATA._replace(**{split: change(getattr(DATA, split))})
    with pytest.raises(ValueError, match=f"^`{split}` of digits must be in"):
        make_work(full_precision(steps=1), MLP((4,)), data)


def test_too_large_a_learning_rate_is_reported_not_trained_through():
    diverging = full_precision(steps=4, learning_rate=1e30)
    work = make_work(diverging, MLP((4,)), DATA, None, SETTINGS)
    with pytest.raises(NonFiniteError, match=r"step \d is not finite (at|in) .* learning rates"):
        run(work, show=False)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be an integer in .*, got 0"),
        ({"log_every": 0}, "`log_every` must be an integer of 1 or more, got 0"),
        ({"checkpoint_every": 2.5}, "`checkpoint_every` must be an integer of 1 or more, got 2.5"),
        ({"seed": -1}, "`seed` must be an integer in .0, 4294967295., got -1"),
        ({"augmentation": "flip"}, "`augmentation` must be one of .*'crop_flip'.*got 'flip'"),
        ({"keep_best": "yes"}, "`keep_best` must be True or False, got 'yes'"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_at_once(setting, message):
    with pytest.raises(ValueError, match=message):
        make_work(full_precision(steps=1), MLP((4,)), DATA, None, Settings(**setting))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["manifest.json", "bits.csv", "result.json"])
def test_a_disk_that_is_full_at_any_file_ends_a_run_in_one_line_and_costs_nothing(
    name, whole, tmp_path, monkeypatch
):
    replace = os.replace

    def full(source, target):
        if os.path.basename(target) == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left on device.*Free space or quota") as told:
        finish(tmp_path)
    assert "\n" not in str(told.value)
    monkeypatch.undo()
    if name != "result.json":
        assert json.loads((tmp_path / "result.json").read_text())["status"] == "failed"
    assert_same_run(*whole, tmp_path, finish(tmp_path))
