"""Two-step quantization as stages: what is trained when, and what a resumed transformation does."""

import jax
import numpy as np
import pytest

import bitjax as bj
from bitjax.data import load
from bitjax.frameworks.targets import float_kernels
from bitjax.methods import tsq
from bitjax.models import MLP
from bitjax.training.preemption import Preemption, Stopped
from bitjax.training.runner import run
from bitjax.training.settings import Settings
from bitjax.training.work import Work, make_work

DATA = load("digits", limit=256)
MODEL = MLP(features=(16, 16))
SETTINGS = Settings(batch_size=64, eval_batch_size=256, calibration_size=64)
RULES = (
    bj.rule("dense1/input", bj.uniform(bits=8)),
    bj.rule(".*/input", bj.lsq(bits=2, signed=False)),
    bj.rule("dense2/kernel", bj.ternary(fit="stored")),
    bj.rule(".*/kernel", bj.uniform(bits=8)),
)


def work_of(**settings):
    method = tsq(RULES, **{"code_steps": 20, "calibration_batches": 2, **settings})
    return make_work(method, MODEL, DATA, None, SETTINGS)


def kernels(variables):
    return {name: np.asarray(node["kernel"]) for name, node in variables["params"].items()}


def execute(work, monkeypatch):
    """The result, and the variables after every stage."""
    seen = {}
    evaluator = Work.evaluator

    def noting(self, model):
        evaluate = evaluator(self, model)

        def evaluated(variables, start=None):
            seen[work.method.stages[len(seen)].name] = jax.tree.map(np.asarray, dict(variables))
            return evaluate(variables, start)

        return evaluated

    monkeypatch.setattr(Work, "evaluator", noting)
    result, variables = run(work, show=False)
    # The last stage is evaluated as it is deployed: with kernels at their levels.
    seen[work.method.stages[-1].name] = jax.tree.map(np.asarray, variables)
    return result, seen


@pytest.mark.slow
def test_the_first_step_leaves_kernels_float_and_the_second_takes_no_gradient(monkeypatch):
    result, seen = execute(work_of(), monkeypatch)
    assert [stage["steps"] for stage in result["stages"]] == [20, 0]
    codes, transformed = (kernels(seen[name]) for name in ("codes", "transform"))
    assert len(np.unique(codes["dense2"])) > 100
    scale = seen["transform"]["quant"]["dense2"]["kernel"]["scale"]
    found = np.round(transformed["dense2"] / scale, 4)
    assert set(np.unique(found).tolist()) <= {-1.0, 0.0, 1.0}
    for name in ("dense1", "head"):
        np.testing.assert_array_equal(codes[name], transformed[name])


@pytest.mark.slow
def test_fine_tuning_keeps_the_codes_and_moves_what_surrounds_them(monkeypatch):
    _, seen = execute(work_of(fine_tune_steps=10, fine_tune_rate=0.05), monkeypatch)
    before, after = (seen[name] for name in ("transform", "fine_tune"))
    np.testing.assert_array_equal(kernels(before)["dense2"], kernels(after)["dense2"])
    assert (kernels(before)["head"] != kernels(after)["head"]).any()
    scales = [v["quant"]["dense2"]["kernel"]["scale"] for v in (before, after)]
    assert (scales[0] != scales[1]).any()
    quantizer = RULES[2].quantizer
    codes = [
        quantizer.encode(v["quant"]["dense2"]["kernel"], {}, v["params"]["dense2"]["kernel"]).codes
        for v in (before, after)
    ]
    np.testing.assert_array_equal(*codes)


@pytest.mark.slow
def test_straight_through_fine_tuning_moves_the_kernels_too(monkeypatch):
    _, seen = execute(
        work_of(fine_tune_steps=10, fine_tune_rate=0.05, trained="straight_through"), monkeypatch
    )
    before, after = (kernels(seen[name])["dense2"] for name in ("transform", "fine_tune"))
    assert (before != after).any()


@pytest.mark.slow
def test_a_transformation_that_is_stopped_goes_on_at_the_layer_behind(tmp_path, monkeypatch):
    rules = (*RULES[:2], bj.rule(".*/kernel", bj.ternary(fit="stored")))

    method = tsq(rules, code_steps=5, calibration_batches=2)
    work = make_work(method, MODEL, DATA, None, SETTINGS)
    whole = run(work, tmp_path / "whole", show=False).result
    context, asked = Work.context, Preemption()

    def stopping(self, index, previous, log):
        if index == 1:  # at the first layer that is done
            return context(self, index, previous, lambda text: asked.request("a test"))
        return context(self, index, previous, log)

    with monkeypatch.context() as patch:
        patch.setattr(Work, "context", stopping)
        with pytest.raises(Stopped):
            run(work, tmp_path / "stopped", show=False, preemption=asked)
    resumed = run(work, tmp_path / "stopped", show=False).result
    for key in ("accuracy", "bits"):
        assert resumed[key] == whole[key]


@pytest.mark.slow
def test_planes_of_inputs_get_scales_of_least_error_first(monkeypatch):
    rules = (
        bj.rule("(dense2|head)/input", bj.bitplane(bits=8)),
        bj.rule("dense2/kernel", bj.ternary(fit="stored")),
    )
    method = tsq(rules, code_steps=0, input_bits=3, calibration_batches=2)
    result, seen = execute(make_work(method, MODEL, DATA, None, SETTINGS), monkeypatch)
    bits = seen["transform"]["quant"]
    assert float(bits["dense2"]["input"]["bits"]) == float(bits["head"]["input"]["bits"]) == 3.0
    assert result["steps"] == 0


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="`trained` must be one of"):
        tsq(RULES, code_steps=1, trained="all")
    with pytest.raises(ValueError, match="tsq has no kernel to solve"):
        tsq(RULES[:2], code_steps=1)
    kept = float_kernels(RULES)
    assert [r.quantizer is None for r in kept] == [False, False, True, False]
