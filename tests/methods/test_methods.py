"""Every method, asked the same questions: does it train, in order, to integers, from any start?"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bitjax as bj
from bitjax.data import load
from bitjax.methods import (
    Method,
    bitpruning,
    bottleneck,
    full_precision,
    hwgq,
    lsq,
    measured,
    pact,
    solved,
    tsq,
    twn,
    uniform,
)
from bitjax.methods.optimizers import scheduled
from bitjax.methods.recipe import Keywords, Recipe, distillation
from bitjax.models import MLP
from bitjax.runs.rows import read_rows
from bitjax.training.keeper import Keeper
from bitjax.training.runner import run
from bitjax.training.settings import Settings
from bitjax.training.work import make_work

DATA = load("digits", limit=256)
MODEL = MLP(features=(16,))
SETTINGS = Settings(batch_size=64, eval_batch_size=256, log_every=1, calibration_size=64)
BUDGETS = (bj.budget("bits", 4.0),)
TRAINING = {"steps": 30, "learning_rate": 0.1, "warmup": 5}


class Row(NamedTuple):
    """A method under test: its stages, and its average bits over all four sites."""

    method: Method
    stages: tuple[str, ...]
    bits: float


def rules(kernel, hidden):
    return (
        bj.rule(".*/kernel", kernel),
        bj.rule("dense1/input", kernel),  # the normalised image has negative values
        bj.rule(".*", hidden),
    )


WIDE = (
    bj.rule("dense1/input", bj.uniform(bits=4)),
    bj.rule(".*/input", bj.hwgq(bits=2, fit="measured")),
)
METHODS = {
    "full_precision": Row(full_precision(**TRAINING), ("train",), 32.0),
    "uniform": Row(
        uniform(rules(bj.uniform(bits=4), bj.uniform(bits=4, signed=False)), **TRAINING),
        ("fine_tune",),
        4.0,
    ),
    "uniform after training": Row(
        uniform((bj.rule(".*", bj.uniform(bits=8)),)), ("calibrate",), 8.0
    ),
    "lsq": Row(
        lsq(rules(bj.lsq(bits=3), bj.lsq(bits=3, signed=False)), distill=0.5, **TRAINING),
        ("fine_tune",),
        3.0,
    ),
    "pact": Row(
        pact(rules(bj.uniform(bits=4), bj.pact(bits=4)), reestimate_batches=2, **TRAINING),
        ("fine_tune", "reestimate_batch_stats"),
        4.0,
    ),
    "bitpruning": Row(
        bitpruning(
            rules(
                bj.bitlength(init=6.0, range="learned"),
                bj.bitlength(init=6.0, range="learned", signed=False),
            ),
            budgets=BUDGETS,
            bits_learning_rate=0.1,
            settle=0.0,
            **TRAINING,
        ),
        ("learn_bits", "freeze_bits"),
        4.0,
    ),
    "bottleneck": Row(
        bottleneck(
            rules(bj.uniform(bits=4), bj.bitplane(bits=8)),
            rate=4.0,
            calibration_batches=2,
            **TRAINING,
        ),
        ("allocate", "fine_tune"),
        4.0,
    ),
    "hwgq": Row(
        hwgq((bj.rule(".*/kernel", bj.binary()), *WIDE), **TRAINING),
        ("fine_tune",),
        (1 + 1 + 4 + 2) / 4,
    ),
    "twn": Row(
        twn((bj.rule(".*/kernel", bj.ternary(fit="twn")), *WIDE), **TRAINING),
        ("fine_tune",),
        (2 + 2 + 4 + 2) / 4,
    ),
    "tsq": Row(
        tsq(
            # One layer to solve: each shape is compiled for a while.
            (
                bj.rule("head/kernel", bj.ternary(fit="stored")),
                bj.rule("dense1/kernel", bj.uniform(bits=4)),
                *WIDE,
            ),
            code_steps=30,
            learning_rate=0.1,
            warmup=5,
            calibration_batches=2,
        ),
        ("codes", "transform"),
        (4 + 2 + 4 + 2) / 4,
    ),
    "solved": Row(
        solved(
            (
                bj.rule("head/kernel", bj.low_bit(bits=3, fit="stored", narrow=False)),
                bj.rule("dense1/kernel", bj.uniform(bits=4)),
                *WIDE,
            ),
        ),
        ("solve",),
        (4 + 3 + 4 + 2) / 4,
    ),
    "measured": Row(
        measured(
            rules(bj.uniform(bits=8), bj.uniform(bits=8, signed=False)),
            budgets=BUDGETS,
            calibration_batches=2,
            candidates=(3, 4, 5),
            rounds=1,
            trials=4,
        ),
        ("allocate",),
        4.0,
    ),
}


# The first trains as `hwgq` does; the others' stages have default tests of their own.
SLOW = ("twn", "tsq", "solved", "measured", "bottleneck", "pact")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in METHODS]
)
def test_a_method_trains_to_integer_bits_and_leaves_its_start_alone(name, tmp_path):
    row = METHODS[name]
    start = MODEL.init(jax.random.PRNGKey(5), jnp.zeros((1, 8, 8, 1)))
    before = jax.tree.map(np.array, start)
    work = make_work(row.method, MODEL, DATA, start, SETTINGS)
    result, _ = run(work, tmp_path, show=False)
    jax.tree.map(np.testing.assert_array_equal, start, before)

    assert result["status"] == "finished" and result["method"] == row.method.name
    assert tuple(stage["name"] for stage in result["stages"]) == row.stages
    assert result["bits"]["all"]["integer"] == row.bits
    loss = [r["task_loss"] for r in read_rows(tmp_path / "metrics.jsonl")]
    assert len(loss) == result["steps"] == sum(stage.steps for stage in row.method.stages)
    if loss:
        assert np.mean(loss[-5:]) < 0.7 * np.mean(loss[:5])
        assert result["stages"][-1]["loss"] < 1.5 and result["accuracy"] > 0.5

    keeper = Keeper(work, tmp_path)
    _, saved = keeper.restore()
    keeper.close()
    bits = {site: np.asarray(n) for site, n in bj.bits_of(saved["variables"]).items()}
    assert len(bits) == (0 if name == "full_precision" else 4)
    assert all(np.all(n == np.rint(n)) for n in bits.values())
    if name == "bitpruning":
        limits = dict.fromkeys(bits, (1.0, 16.0))
        rounded = bj.round_bits(keeper.learned, work.costs, limits, "budget", BUDGETS)
        jax.tree.map(np.testing.assert_array_equal, rounded, bits)  # freezing has moved none
        assert result["bits"]["all"]["fractional"] < 5.5


def rates(tx, count):
    """The learning rate of each step."""
    params = {"w": jnp.float32(0.0)}
    state = tx.init(params)
    found = []
    for _ in range(count):
        updates, state = tx.update({"w": jnp.float32(1.0)}, state, params)
        found.append(-float(updates["w"]))
    return found


def test_a_rate_rises_linearly_then_falls_as_a_cosine_to_its_end():
    found = rates(scheduled(optax.identity(), 2.0, steps=14, warmup=4, end=0.5), 20)
    np.testing.assert_allclose(found[:5], [0.4, 0.8, 1.2, 1.6, 2.0], rtol=1e-6)
    np.testing.assert_allclose(found[9], 1.5, rtol=1e-6)  # half way from 2 to 1
    np.testing.assert_allclose(found[14:], 1.0, rtol=1e-6)
    assert rates(scheduled(optax.identity(), 2.0, steps=3, decay="constant"), 5) == [2.0] * 5
    with pytest.raises(
        ValueError, match=r"`decay` must be one of \['cosine', 'constant'\], got 'linear'"
    ):
        scheduled(optax.identity(), 1.0, 1, decay="linear")


def test_distillation_mixes_the_teacher_and_the_labels():
    logits, teacher = jnp.array([[1.0, 2.0], [0.0, 3.0]]), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    log_q, p = jax.nn.log_softmax(logits), jax.nn.softmax(teacher)
    hard = -(log_q[0, 0] + log_q[1, 1]) / 2
    soft = jnp.sum(p * (jnp.log(p) - log_q)) / 2
    np.testing.assert_allclose(distillation(share=0.0)(hard, logits, teacher), hard, rtol=1e-6)
    np.testing.assert_allclose(distillation(share=1.0)(hard, logits, teacher), soft, rtol=1e-6)
    mixed = distillation(share=0.25)(hard, logits, teacher)
    np.testing.assert_allclose(mixed, 0.25 * soft + 0.75 * hard, rtol=1e-6)
    second = distillation()(hard, logits, teacher, jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(second, jnp.sum((p * (jnp.log(p) - log_q))[1]), rtol=1e-6)
    with pytest.raises(ValueError, match=r"`distill` must be in \[0, 1\], got 2"):
        lsq((), steps=1, distill=2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distill": 1.5}, r"`distill` must be in \[0, 1\], got 1.5"),
        (
            {"distill": 1.0, "temperature": 0.0},
            "`temperature` must be a finite number above 0, got 0",
        ),
    ],
)
def test_a_teacher_out_of_bounds_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        lsq((), steps=1, **settings)


def test_a_recipe_and_the_keywords_of_methods_are_the_same_fields():
    fields = Recipe.__annotations__
    assert {"steps": int, **Keywords.__annotations__} == fields
    assert list(Recipe._fields) == ["steps", *Keywords.__annotations__]


@pytest.mark.parametrize("method", [uniform, lsq, pact, hwgq, twn, bitpruning, bottleneck])
def test_every_method_takes_the_recipes_fields_and_no_others(method):
    recipe = {"learning_rate": 0.5, "momentum": 0.5, "weight_decay": 0.1, "warmup": 2}
    teacher = {"distill": 0.5, "temperature": 2.0, "reestimate_batches": 3}
    stages = method((), steps=10, **recipe, **teacher).stages
    assert stages[-1].name == "reestimate_batch_stats"
    trained = [stage for stage in stages if stage.steps]
    assert all(stage.teacher for stage in trained)
    first = trained[0]
    np.testing.assert_allclose(rates(first.optimizers["weights"], 1), [0.5 / 3], rtol=1e-6)
    with pytest.raises(TypeError, match="unexpected keyword argument 'learning_rates'"):
        method((), steps=10, learning_rates=0.1)
    stages = method((), steps=10, learning_rate=0.5, optimizer="adamw").stages
    adam = next(stage.optimizers["weights"] for stage in stages if stage.steps)
    start = {"w": jnp.float32(1.0)}  # Adam's first step is the rate, whatever the gradient
    moved, _ = adam.update({"w": jnp.float32(7.0)}, adam.init(start), start)
    np.testing.assert_allclose(moved["w"], -0.5, rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            tsq([bj.rule("no/kernel", bj.ternary(fit="stored"))], code_steps=5),
            "tsq has no kernel to solve: .* Kernels: dense1/kernel, head/kernel",
        ),
        (
            tsq(rules(bj.ternary(fit="stored"), None), code_steps=5, input_bits=2),
            "allocate has no planes to choose",
        ),
        (
            bottleneck(rules(None, bj.bitplane(bits=4, depth=4)), float_steps=5),
            "at most the 4 planes of 'head/input', got 8",
        ),
    ],
    ids=["kernels", "inputs", "planes"],
)
def test_what_a_later_stage_lacks_is_refused_before_the_first_one(method, message):
    with pytest.raises(ValueError, match=message):
        make_work(method, MODEL, DATA, settings=SETTINGS)


def test_the_float_control_has_a_rate_of_its_own():
    weights = full_precision(steps=10).stages[0].optimizers["weights"]
    np.testing.assert_allclose(rates(weights, 1), [0.1], rtol=1e-6)
