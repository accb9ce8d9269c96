"""Rows of a vectorized group take the steps that the runs alone take, and stop and fail as they."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.costs.bits import bits_of
from bitjax.data import load, train_batch
from bitjax.frameworks.probe import probe
from bitjax.methods import Method, Stage, bitpruning, full_precision, uniform
from bitjax.models import MLP
from bitjax.rules import quantizer_of
from bitjax.runs.checkpoint import Checkpoints
from bitjax.runs.rows import read_rows
from bitjax.training.group import check_rows
from bitjax.training.preemption import Preemption, Stopped
from bitjax.training.rows import placement_of_rows, programs, rows_of, stack
from bitjax.training.runner import run, run_rows
from bitjax.training.settings import Settings
from bitjax.training.state import variables_of
from bitjax.training.work import make_work
from bitjax.variables import read_site

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
    """A convolution with batch normalisation, dropout, and a head."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(4, (3, 3), strides=2, use_bias=False, name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="bn")(x))
        x = nn.Dropout(0.2, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(10, name="head")(x)


LAYER = MLP(features=())


def learned(**changes):
    rules = [bj.rule(".*", bj.bitlength(init=6.0))]
    return bitpruning(
        rules, **{"steps": 12, "fine_tune": 0.5, "settle": 0.0, "learning_rate": 0.05, **changes}
    )


def group_of(methods, model=None, data=DATA, **settings):
    """Works by name, each with its number as its seed."""
    works = {}
    for seed, method in enumerate(methods):
        chosen = SETTINGS._replace(**{"seed": seed, **settings})
        facts = {"config_hash": f"{seed}"}
        works[f"row{seed}"] = make_work(method, model or Net(), data, settings=chosen, facts=facts)
    return works


def run_group(works, folder=None, preemption=None):
    """The outcomes of a group whose rows have folders inside the group's, and what failed."""
    folders = {name: folder / name for name in works} if folder else None
    for own in (folders or {}).values():
        own.mkdir(parents=True, exist_ok=True)
    return run_rows(works, folders, folder, show=False, preemption=preemption)


class Steps:
    """The step of a stage for one run, and for all rows at once."""

    def __init__(self, works, index=0):
        self.works = list(works.values())
        first = self.works[0]
        self.model = first.wrap(first.method.stages[index])
        # Compiled once for each run that is asked for, as it would be alone.
        self.alone = [jax.jit(work.train_step(index)) for work in self.works]
        self.codes = jax.jit(lambda *args: codes_of(self.model, *args))
        self.together = jax.jit(jax.vmap(first.train_step(index)))
        states = []
        for work in self.works:
            variables = work.enter(work.method.stages[index], work.start)
            states.append(work.first_state(index, variables))
        self.start = stack(states)

    def batches(self, step):
        size = self.works[0].settings.batch_size
        return [train_batch(work.dataset, size, step, work.settings.seed) for work in self.works]

    def check(self, state, step):
        """Every row's step from a state is the run's own; returns the state behind it."""
        batches = self.batches(step)
        after, metrics = self.together(state, stack(batches))
        rows, afters = rows_of(state), rows_of(after)
        for i, (row, new, batch) in enumerate(zip(rows, afters, batches, strict=True)):
            own, own_metrics = self.alone[i](row, batch)
            np.testing.assert_allclose(
                metrics["loss"][i], own_metrics["loss"], rtol=1e-6, atol=1e-6
            )
            assert_updates_equal(row, new, own)
            x = self.works[i].preprocess(None, jnp.asarray(batch["image"]))
            assert_codes_equal(self.codes(variables_of(new), variables_of(own), x))
        return after


def assert_updates_equal(old, new, other):
    """What the step moved, leaf by leaf: momenta, which hold the gradients, and all else."""
    leaves = zip(*map(jax.tree.leaves, (old, new, other)), strict=True)
    for (path, _), (before, after, wanted) in zip(
        jax.tree_util.tree_leaves_with_path(other), leaves, strict=True
    ):
        before, after, wanted = map(np.asarray, (before, after, wanted))
        if not np.issubdtype(wanted.dtype, np.floating):
            np.testing.assert_array_equal(after, wanted)
            continue
        # Of a difference of two float32 numbers only what is above their rounding is known.
        floor = 1e-6 * np.linalg.norm(wanted) + 1e-9
        distance = np.linalg.norm(after - wanted)
        assert distance <= 1e-4 * np.linalg.norm(wanted - before) + floor, path


def codes_of(model, variables, other, x):
    """By site: codes under both variables, and the others' of tensors 1e-5 lower and higher."""

    def look(seen):
        return {role: seen.raw(role) for role in seen.tensors}

    def encode(variables, site, x):
        params = read_site(variables["quant"], site)
        observing = quantizer_of(model.rules, site).measure is not None
        stats = read_site(variables["quant_stats"], site) if observing else {}
        return quantizer_of(model.rules, site).encode(params, stats, x).codes

    found, wanted = (
        dict(probe(model, v, (x,), {}, look, lambda *_: None).records) for v in (variables, other)
    )
    codes = {}
    for layer, tensors in wanted.items():
        for role, tensor in tensors.items():
            site = f"{layer}/{role}"
            bits = read_site(other["quant"], site)["bits"]
            near = 1e-5 * jnp.max(jnp.abs(tensor)) / 2.0 ** (bits - 1)  # of a step's width
            around = (encode(other, site, tensor + shift) for shift in (0.0, -near, near))
            codes[site] = (encode(variables, site, found[layer][role]), *around)
    return codes


def assert_codes_equal(codes):
    """Codes are the same but within 1e-5 of a boundary, up to the first layer where one differs."""
    for site, (own, wanted, low, high) in codes.items():
        assert np.all((own == wanted) | ((low <= own) & (own <= high))), site
        if np.any(own != wanted):
            return  # what lies behind a flipped code has other inputs


@pytest.fixture(scope="module")
def pair():
    """Two runs of one layer that differ in seed and learning rate."""
    rules = [bj.rule(".*", bj.uniform(bits=4))]
    methods = [uniform(rules, steps=2, learning_rate=rate) for rate in (0.05, 0.02)]
    return group_of(methods, model=LAYER)


def test_each_row_takes_the_step_that_the_run_alone_takes(pair):
    steps = Steps(pair)
    after, metrics = steps.together(steps.start, stack(steps.batches(0)))
    rows, afters = rows_of(steps.start), rows_of(after)
    own, own_metrics = steps.alone[1](rows[1], steps.batches(0)[1])
    np.testing.assert_allclose(metrics["loss"][1], own_metrics["loss"], rtol=1e-6, atol=1e-6)
    assert_updates_equal(rows[1], afters[1], own)
    # The rows are not copies of each other.
    first, second = (row.params["head"]["kernel"] for row in afters)
    assert not np.array_equal(first, second)


@pytest.mark.slow
def test_steps_0_10_and_50_of_learned_bits_are_those_of_the_runs_alone():
    methods = [
        learned(steps=60, fine_tune=0.0, gamma=gamma, learning_rate=rate)
        for gamma, rate in ((0.1, 0.05), (0.3, 0.02))
    ]
    steps = Steps(group_of(methods))
    state = steps.start
    for step in range(51):
        if step in (0, 10, 50):
            state = steps.check(state, step)
        else:
            state, _ = steps.together(state, stack(steps.batches(step)))
    np.testing.assert_array_equal(state.step, 51)
    np.testing.assert_array_equal(state.bad_step, -1)
    np.testing.assert_allclose(state.controls["gamma"], [0.1, 0.3])


@pytest.mark.slow
def test_on_the_digits_rows_and_runs_part_by_a_flipped_code_at_most():
    # Of half a million codes in a step one may lie so near to a boundary that the last bit of a
    # convolution decides: a change of 1e-7 in the parameters moves the loss by up to 7e-5.
    from bitjax.launch.build import build_work
    from bitjax.launch.config_files import load_config

    path, runs = "configs/digits/bitpruning.py", {}
    for seed, rate in enumerate((0.05, 0.02)):
        arguments = [f"--config.seed={seed}", f"--config.method.learning_rate={rate}"]
        runs[str(seed)] = build_work(load_config(path, arguments))
    steps = Steps(runs)
    state, alone = steps.start, steps.alone[0]
    for step in range(51):
        batches = steps.batches(step)
        after, metrics = steps.together(state, stack(batches))
        if step in (0, 10, 50):
            for i, row in enumerate(rows_of(state)):
                base = float(alone(row, batches[i])[1]["loss"])
                apart = abs(float(metrics["loss"][i]) - base)
                if apart > 1e-6:
                    moved = [alone(nudged(row, k), batches[i])[1]["loss"] for k in range(8)]
                    assert apart <= 2 * max(abs(float(loss) - base) for loss in moved)
                assert apart < 1e-4
        state = after


def nudged(state, seed):
    """The state with parameters changed by about their last bit."""
    key = jax.random.PRNGKey(seed)
    change = lambda x: x * (1 + 1e-7 * jax.random.normal(key, x.shape))  # noqa: E731 (once)
    return state._replace(params=jax.tree.map(change, state.params))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"gamma": 0.3}, True),
        ({"learning_rate": 0.5, "bits_learning_rate": 0.5, "range_learning_rate": 0.5}, True),
        ({"weight_decay": 0.1}, False),
        ({"criterion": {"head/kernel": 0.5}}, False),
        ({"steps": 14}, False),
        ({"distill": 0.5}, False),
    ],
    ids=str,
)
def test_programs_are_equal_where_the_change_is_in_the_state(change, same, plain_programs):
    (work,) = group_of([learned(**{"gamma": 0.1, **change})], model=LAYER).values()
    assert (programs(work) == plain_programs) == same


@pytest.fixture(scope="module")
def plain_programs():
    (work,) = group_of([learned(gamma=0.1)], model=LAYER, seed=7).values()
    return programs(work)


def test_programs_differ_in_the_arrays_they_close_over_and_not_in_rates(pair):
    work = pair["row0"]

    def of(value, rate):
        table = jnp.arange(10.0) * value

        def loss(task_loss, logits, soft, weights):
            del task_loss, soft, weights
            return jnp.mean(logits * table)

        method = full_precision(steps=2, learning_rate=rate)
        method = Method("test", (method.stages[0]._replace(loss=loss),))
        return programs(work._replace(method=method))

    assert of(1.0, 0.1) == of(1.0, 0.2) != of(2.0, 0.1)


def clockless(folder):
    result = json.loads((folder / "result.json").read_text())
    stages = [{k: v for k, v in s.items() if k != "wall_seconds"} for s in result.pop("stages")]
    for key in ("wall_seconds", "commit", "commits"):
        del result[key]
    rows = [
        {k: v for k, v in r.items() if k != "seconds"} for r in read_rows(folder / "metrics.jsonl")
    ]
    return {**result, "stages": stages}, rows, (folder / "bits.csv").read_text()


class Interruption:
    """Kills or stops a group when a row's host function runs for the n-th time in a stage."""

    def __init__(self, kind="", stage="", times=0):
        self.kind, self.stage, self.times = kind, stage, times
        self.preemption = Preemption()

    def passing(self, stage):
        self.times -= stage == self.stage
        if self.times == 0 and self.kind == "kill":
            raise KeyboardInterrupt
        if self.times == 0 and self.kind == "stop":
            self.preemption.request("the test")

    def watch(self, method):
        """The method, with a host function behind every step."""

        def watched(stage):
            def between(context, variables):
                del context
                self.passing(stage.name)
                return variables

            return stage._replace(every=(1, between)) if stage.steps else stage

        return Method(method.name, tuple(map(watched, method.stages)))


def watched_group(folder, interruption):
    budgets = (bj.budget("bits", 5.0),)
    methods = [interruption.watch(learned(gamma=g, budgets=budgets)) for g in (0.1, 0.3)]
    return run_group(group_of(methods, LAYER), folder, interruption.preemption)


@pytest.mark.slow
def test_a_group_interrupted_everywhere_ends_as_one_that_was_not(tmp_path):
    assert sorted(watched_group(tmp_path / "whole", Interruption())[0]) == ["row0", "row1"]
    for place in (
        ("stop", "learn_bits", 3),
        ("kill", "learn_bits", 5),
        ("kill", "freeze_bits", 1),
        ("stop", "freeze_bits", 7),
    ):
        with pytest.raises(Stopped if place[0] == "stop" else KeyboardInterrupt):
            watched_group(tmp_path / "parts", Interruption(*place))
        for row in ("row0", "row1"):
            path = tmp_path / "parts" / row / "result.json"
            assert json.loads(path.read_text())["status"] == "stopped"
    watched_group(tmp_path / "parts", Interruption())
    for row in ("row0", "row1"):
        assert clockless(tmp_path / "parts" / row) == clockless(tmp_path / "whole" / row)


@pytest.mark.slow
def test_a_group_ends_where_the_runs_alone_end(tmp_path):
    methods = [learned(gamma=g) for g in (0.1, 0.3)]
    works = group_of(methods)
    together, _ = run_group(works, tmp_path / "group")
    together = {name: outcome.result for name, outcome in together.items()}
    for name, work in works.items():
        alone = run(work, tmp_path / "alone" / name, show=False).result
        for key in ("fractional", "integer"):
            for sites, bits in alone["bits"].items():
                assert together[name]["bits"][sites][key] == pytest.approx(bits[key], abs=1e-3)
        assert together[name]["cost"]["macs"] == alone["cost"]["macs"]
        rows, own = (read_rows(tmp_path / d / name / "metrics.jsonl") for d in ("group", "alone"))
        assert [r["step"] for r in rows] == [r["step"] for r in own]
        assert rows[0].keys() == own[0].keys()
        assert rows[0]["loss"] == pytest.approx(own[0]["loss"], abs=1e-3)
        # The row's folder is that of a run: it can start another one, or go on.
        again = run(work, tmp_path / "group" / name, show=False).result
        assert again["accuracy"] == together[name]["accuracy"]


@pytest.mark.slow
def test_a_row_that_is_not_finite_fails_alone(tmp_path):
    methods = [learned(), learned(learning_rate=1e30), learned()]
    works = group_of(methods)
    results, failed = run_group(works, tmp_path)
    assert sorted(results) == ["row0", "row2"] and list(failed) == ["row1"]
    assert "is not finite" in failed["row1"]
    statuses = [
        json.loads((tmp_path / f"row{i}" / "result.json").read_text())["status"] for i in range(3)
    ]
    assert statuses == ["finished", "failed", "finished"]
    # What the others are does not depend on it.
    alone = run(works["row2"], show=False).result
    assert results["row2"].result["bits"]["all"]["fractional"] == pytest.approx(
        alone["bits"]["all"]["fractional"], abs=1e-3
    )


@pytest.mark.slow
def test_a_group_does_not_go_on_with_other_runs(tmp_path):
    run_group(group_of([learned()] * 2), tmp_path)
    with pytest.raises(ValueError, match="checkpoint is of other runs: row0, row1 there, row0 now"):
        run_group(group_of([learned()]), tmp_path)


@pytest.mark.slow
def test_a_row_whose_preparation_is_refused_fails_alone(tmp_path):
    def refusing(word):
        def prepare(context, variables, start):
            if word:
                raise ValueError(word)
            return iter(())

        return Method("test", (Stage("prepare", (), prepare=prepare),))

    works = group_of([refusing(""), refusing("no such thing")], LAYER)
    outcomes, failed = run_group(works, tmp_path)
    assert list(outcomes) == ["row0"]
    assert failed == {"row1": "ValueError: no such thing"}


def test_what_rows_cannot_differ_in_is_refused(pair):
    def with_settings(**changes):
        last = pair["row1"]
        return {**pair, "row1": last._replace(settings=last.settings._replace(**changes))}

    check_rows(with_settings(seed=9))
    with pytest.raises(ValueError, match="`keep_best` must be the same in all rows .*got True in"):
        check_rows(with_settings(keep_best=True))
    several = {
        n: w._replace(settings=w.settings._replace(parallel="pmap")) for n, w in pair.items()
    }
    with pytest.raises(ValueError, match="rows of a group share one device: .*got 'pmap'"):
        check_rows(several)


@pytest.mark.slow
def test_rows_follow_every_setting_of_a_run(tmp_path):
    """What a group once refused: parts of a batch, the best variables, more checkpoints."""
    methods = [full_precision(steps=6, learning_rate=rate) for rate in (0.1, 0.3)]
    works = group_of(methods, LAYER, accumulate=2, keep_best=True, keep_checkpoints=3)
    outcomes, _ = run_group(works, tmp_path / "group")
    for name, work in works.items():
        alone = run(work, tmp_path / name, show=False).result
        assert outcomes[name].result["accuracy"] == alone["accuracy"]
        rows, own = (
            read_rows(f / "metrics.jsonl") for f in (tmp_path / "group" / name, tmp_path / name)
        )
        assert [r["step"] for r in rows] == [r["step"] for r in own]
        assert rows[-1]["loss"] == pytest.approx(own[-1]["loss"], rel=1e-5)
        best, alone_best = (
            Checkpoints(f / "best").steps() for f in (tmp_path / "group" / name, tmp_path / name)
        )
        assert best == alone_best


def test_bits_of_rows_are_arrays_of_their_own():
    trees = [{"quant": {"kernel": {"bits": jnp.float32(b)}}} for b in (4.0, 2.0)]
    rows = rows_of(stack(trees))
    assert [float(bits_of(row["quant"])["kernel"]) for row in rows] == [4.0, 2.0]


def test_several_steps_a_dispatch_are_the_steps_one_by_one_for_rows_too(tmp_path, monkeypatch):
    """As on an accelerator, which keeps the data and takes indices."""
    methods = [full_precision(steps=7, learning_rate=rate) for rate in (0.1, 0.3)]
    works = group_of(methods, LAYER, augmentation="none", eval_every=0, checkpoint_every=3)
    together = {
        name: work._replace(settings=work.settings._replace(steps_per_dispatch=3))
        for name, work in works.items()
    }
    run_group(works, tmp_path / "apart")
    place = placement_of_rows()._replace(accelerator=True)
    monkeypatch.setattr("bitjax.training.runner.placement_of_rows", lambda: place)
    run_group(together, tmp_path / "together")
    for name in works:
        rows, own = (
            [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(path)]
            for path in (tmp_path / way / name / "metrics.jsonl" for way in ("together", "apart"))
        )
        assert rows == own and [row["step"] for row in rows] == [3, 6, 7]
