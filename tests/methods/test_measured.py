"""Bits chosen by effects of solved kernels."""

import re

import jax
import numpy as np
import pytest

import bitjax as bj
from bitjax.bottleneck.allocate_bits import SolvedKernels
from bitjax.data import load
from bitjax.methods import measured
from bitjax.models import MLP
from bitjax.training.runner import run
from bitjax.training.settings import Settings
from bitjax.training.work import make_work

DATA = load("digits", limit=256)
KERNEL = bj.low_bit(bits=4, fit="stored", narrow=False)
RULES = [bj.rule(".*/kernel", KERNEL), bj.rule("head/input", bj.uniform(bits=8, signed=False))]


@pytest.mark.slow
def test_kernels_are_solved_at_the_bits_that_were_chosen():
    budgets = [bj.budget("bits", 3.0, ".*/kernel|head/input")]
    method = measured(RULES, budgets=budgets, candidates=(2, 3, 4), rounds=1, trials=4)
    assert [stage.name for stage in method.stages] == ["allocate", "solve"]
    settings = Settings(batch_size=64, eval_batch_size=256, calibration_size=64)
    work = make_work(method, MLP(features=(16,)), DATA, settings=settings)
    _, variables = run(work, show=False)
    bits = {site: float(n) for site, n in bj.bits_of(variables).items()}
    assert sum(bits.values()) <= 9 and {*bits.values()} <= {2.0, 3.0, 4.0}
    for layer in ("dense1", "head"):
        scale = np.asarray(variables["quant"][layer]["kernel"]["scale"])
        codes = np.asarray(variables["params"][layer]["kernel"]) / np.where(scale > 0, scale, 1)
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
        most = 2 ** (bits[f"{layer}/kernel"] - 1)
        assert -most <= np.rint(codes).min() and np.rint(codes).max() <= most - 1


def test_kernels_for_some_candidates_alone_are_refused_in_one_line():
    x = jax.random.normal(jax.random.key(0), (64, 8))
    model = bj.Quantized(MLP(features=(4,)), [bj.rule(".*/kernel", KERNEL)])
    variables = model.init(jax.random.key(1), x)
    half = SolvedKernels({2: variables}, {"head/kernel": ()})
    with pytest.raises(ValueError, match=re.escape("it has none for 3")):
        bj.allocate_bits(
            model, variables, [x, x], [bj.budget("bits", 3.0, "head/kernel")],
            sites="head/kernel", candidates=(2, 3), solved=half,
        )  # fmt: skip
