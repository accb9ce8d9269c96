"""What a recipe adds to training: the average of weights, their dampening, ranges' own rate."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitjax as bj
from bitjax.data import load, train_batch
from bitjax.methods import bitpruning, full_precision, lsq
from bitjax.methods.recipe import Recipe, settling
from bitjax.models import MLP
from bitjax.training.settings import Settings
from bitjax.training.state import variables_of
from bitjax.training.work import make_work

DATA = load("digits", limit=64)
SETTINGS = Settings(batch_size=16, calibration_size=16)
RULES = (bj.rule("head/.*", bj.lsq(bits=3)),)
STEPS = 6


def trajectory(**recipe):
    """The variables after each step of training, and before the first one."""
    work = make_work(lsq(RULES, steps=STEPS, **recipe), MLP(features=()), DATA, settings=SETTINGS)
    (stage,) = work.method.stages
    state = work.first_state(0, work.enter(stage, work.start))
    step, found = jax.jit(work.train_step(0)), [variables_of(state)]
    for i in range(STEPS):
        state, _ = step(state, train_batch(DATA, 16, i, 0))
        found.append(variables_of(state))
    return work, jax.device_get(found)


def test_training_ends_in_the_average_of_what_it_trains():
    _, plain = trajectory()
    _, found = trajectory(average=0.6)
    for one, other in zip(plain[:-1], found[:-1], strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)

    def wanted(*steps):  # a plain mean of the first, then 0.6 of the past
        mean = np.zeros_like(steps[0])
        for count, x in enumerate(steps, 1):
            rate = max(1.0 - 0.6, 1.0 / count)
            mean = (1.0 - rate) * mean + rate * x
        return mean

    for name in ("params", "quant"):
        means = jax.tree.map(wanted, *(each[name] for each in plain[1:]))
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), found[-1][name], means
        )
    assert found[-1]["quant"]["head"]["kernel"]["bits"] == 3.0
    scales = (each[-1]["quant"]["head"]["input"]["scale"] for each in (plain, found))
    assert len(set(map(float, scales))) == 2


def test_scales_with_a_rate_of_their_own_move_by_that_share_of_themselves_at_first():
    _, found = trajectory(range_learning_rate=0.05)
    first, second = (each["quant"]["head"] for each in found[:2])
    for role in ("kernel", "input"):
        moved = second[role]["scale"] / first[role]["scale"] - 1.0
        np.testing.assert_allclose(np.abs(moved), 0.05, rtol=1e-3)


def test_dampening_moves_kernels_towards_their_levels_and_nothing_else():
    _, plain = trajectory(momentum=0.0, learning_rate=0.1)
    work, found = trajectory(momentum=0.0, learning_rate=0.1, dampen=0.5)
    jax.tree.map(np.testing.assert_array_equal, found[1], plain[1])  # it begins at 0
    before, quantizer = plain[1], RULES[0].quantizer
    kernel = before["params"]["head"]["kernel"]
    x_hat = quantizer.apply(before["quant"]["head"]["kernel"], {}, kernel)
    ends = quantizer.apply(before["quant"]["head"]["kernel"], {}, jnp.array([-9.0, 9.0]))
    inside = (kernel >= ends[0]) & (kernel <= ends[1])
    share, rate = ((1 + sign * np.cos(np.pi / STEPS)) / 2 for sign in (-1, 1))
    wanted = -0.1 * rate * 2 * 0.5 * share * (kernel - x_hat) * inside
    moved = found[2]["params"]["head"]["kernel"] - plain[2]["params"]["head"]["kernel"]
    np.testing.assert_allclose(moved, wanted, rtol=1e-2, atol=1e-7)
    jax.tree.map(np.testing.assert_array_equal, found[2]["quant"], plain[2]["quant"])
    bias = [each[2]["params"]["head"]["bias"] for each in (plain, found)]
    np.testing.assert_array_equal(*bias)


def test_without_them_a_stage_is_what_it_was():
    assert settling(Recipe(steps=10)) == {} == settling(Recipe(steps=0, average=0.9))
    ours = {"average": 0.9, "dampen": 0.1}
    stages = bitpruning((bj.rule(".*", bj.bitlength()),), steps=10, gamma=0.1, **ours).stages
    assert [stage.anneal is not None for stage in stages] == [False, True]
    assert ["average" in stage.controls for stage in stages] == [False, True]
    with pytest.raises(ValueError, match=r"`average` must be in \[0, 1\), got 1"):
        full_precision(steps=1, average=1.0)
    with pytest.raises(ValueError, match="`dampen` must be a finite number of 0 or more, got -1.0"):
        full_precision(steps=1, dampen=-1.0)
