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


OWN = {"head/kernel": ("params/head/kernel",)}
WRONG = {
    "no levels": (lambda v: (None, OWN), "`solved.levels` must be a Mapping, got None"),
    "one level": (lambda v: ({2: v}, OWN), "it has none for 3"),
    "no array": (lambda v: ({2: v, 3: 1}, OWN), "`solved.levels[3]` must have the leaves and"),
    "other shapes": (
        lambda v: ({2: v, 3: jax.tree.map(lambda w: w[None], v)}, OWN), "and differs at 'params/"
    ),
    "no list": (lambda v: ({2: v, 3: v}, {"head/kernel": "params"}), "each text, got {'head/"),
    "no site": (lambda v: ({2: v, 3: v}, {"heads/kernel": ()}), "is no quantized site. Sites: "),
    "no leaf": (lambda v: ({2: v, 3: v}, {"head/kernel": ("head",)}), "is no leaf of the variab"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_solved_kernels_that_do_not_go_with_the_model_are_refused_in_one_line(case):
    x = jax.random.normal(jax.random.key(0), (64, 8))
    model = bj.Quantized(MLP(features=(4,)), [bj.rule(".*/kernel", KERNEL)])
    variables = model.init(jax.random.key(1), x)
    given, message = WRONG[case]
    half = SolvedKernels(*given(variables))
    with pytest.raises(ValueError, match=re.escape(message)):
        bj.allocate_bits(
            model, variables, [x, x], [bj.budget("bits", 3.0, "head/kernel")],
            sites="head/kernel", candidates=(2, 3), solved=half,
        )  # fmt: skip
