"""Methods that start from solved kernels, and what cannot."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

import bitjax as bj
from bitjax.data import load
from bitjax.methods import bitpruning, hwgq, lsq, pact, twn, uniform
from bitjax.models import MLP
from bitjax.training.runner import run
from bitjax.training.settings import Settings
from bitjax.training.work import make_work

DATA = load("digits", limit=256)
MODEL = MLP(features=(16,))
SETTINGS = Settings(batch_size=64, eval_batch_size=256, log_every=1, calibration_size=64)
PER_FILTER = {"granularity": "per_channel"}
LSQ = bj.lsq(bits=3, **PER_FILTER)
KERNELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "lsq": (lsq, LSQ, {}),
    "twn": (twn, bj.ternary(fit="twn"), {}),
    "hwgq": (hwgq, bj.binary(), {}),
    "pact": (pact, bj.low_bit(bits=3), {}),
    "uniform": (uniform, bj.uniform(bits=4, range="mse", signed=True, **PER_FILTER), {}),
    "bitpruning": (
        bitpruning,
        bj.bitlength(max_bits=8.0, **PER_FILTER),
        {"start_bits": {"dense1/kernel": 4.0}},
    ),
}


@functools.cache
def start_of(name):
    """The work of a method that starts from solved kernels, its variables, what was logged."""
    method, kernel, settings = KERNELS[name]
    made = method(
        [bj.rule(".*/kernel", kernel)], steps=20, learning_rate=0.1, start="solved", **settings
    )
    work = make_work(made, MODEL, DATA, settings=SETTINGS)
    said = []
    stage = made.stages[0]
    variables = work.enter(stage, work.start)
    (found,) = stage.prepare(work.context(0, work.start, said.append), variables, 0)
    return work, variables, found, said


def kernels(work, variables):
    wrapped = work.wrap(work.method.stages[0])
    tapped = bj.tap(wrapped, variables, next(work.batches(1, False)))
    return {layer: np.asarray(each.kernel) for layer, each in tapped.items()}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("twn", "hwgq", "pact")]


@pytest.mark.parametrize("name", ["lsq", *SLOW])
def test_latent_weights_lie_on_the_solved_levels_and_ranges_are_the_solved_ones(name):
    work, _, found, (line,) = start_of(name)
    assert "2 kernels solved" in line and "move them by 0.0%" in line
    for layer, kernel in kernels(work, found).items():
        latent = found["params"][layer]["kernel"]
        np.testing.assert_allclose(kernel, latent, atol=1e-6)
        assert max(len(np.unique(np.round(f, 5))) for f in latent.T) <= 8


@pytest.mark.parametrize("name", ["lsq", pytest.param("uniform", marks=pytest.mark.slow)])
def test_outputs_are_nearer_to_the_float_networks_than_rounded_ones(name):
    work, rounded, found, _ = start_of(name)
    x = next(work.batches(1, False))
    wanted = MODEL.apply(work.start, x)
    wrapped = work.wrap(work.method.stages[0])
    error = [float(np.mean((wrapped.apply(v, x) - wanted) ** 2)) for v in (rounded, found)]
    assert error[1] < 0.8 * error[0]


@pytest.mark.slow
def test_sites_of_many_bits_stay_float_and_those_that_start_with_few_are_solved():
    work, _, found, (line,) = start_of("bitpruning")
    assert "1 kernel solved" in line
    same = jax.tree.map(np.array_equal, found["params"], work.start["params"])
    assert not same["dense1"]["kernel"] and same["head"]["kernel"]


@pytest.mark.slow
def test_training_goes_on_from_there():
    work, *_ = start_of("lsq")
    result, _ = run(work, show=False)
    assert [stage.name for stage in work.method.stages] == ["solve", "fine_tune"]
    assert result["score"]["value"] > 0.5


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (bj.lsq(bits=3), "'dense1/kernel' has one range: give it granularity='per_channel'"),
        (bj.lsq(bits=8, **PER_FILTER), "has no kernel of 1 to 6 bits to solve"),
        (bj.lsq(bits=3, signed=False, **PER_FILTER), "no level below 0; give it signed=True"),
        (
            bj.lsq(bits=3, granularity="per_group", group_size=16),
            "a scale per filter, which the quantizer of 'dense1/kernel' does not have",
        ),
    ],
)
def test_what_has_nothing_to_solve_is_refused_at_the_front_door(kernel, message):
    method = lsq([bj.rule(".*/kernel", kernel)], steps=1, start="solved")
    with pytest.raises(ValueError, match=message):
        make_work(method, MODEL, DATA, settings=SETTINGS)
    with pytest.raises(ValueError, match="`start` must be one of .*, got 'gptq'"):
        lsq([bj.rule(".*/kernel", LSQ)], steps=1, start="gptq")
