"""The benchmarks run at a small size and return ratios."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as bench
from benchmarks import (
    backward_memory,
    counts,
    headlines,
    import_time,
    loop_overhead,
    scaling,
    solving,
    step_time,
    throughput,
    timing,
    vectorize,
)
from bitjax.models import CifarResNet
from bitjax.solvers import gptq_codes

TINY = CifarResNet(depth=8, width=2)


def test_paired_ratios_divide_the_load_out_and_their_interval_holds_the_median():
    load = np.linspace(1.0, 9.0, 12)
    ratio = timing.paired_ratio(1.5 * load, load)
    assert ratio.median == pytest.approx(1.5)
    assert (ratio.low, ratio.high) == pytest.approx((1.5, 1.5))
    noisy = timing.paired_ratio(load, load[::-1])
    assert noisy.low <= noisy.median <= noisy.high


def test_interleaving_calls_everything_once_a_round_in_turns():
    calls = []
    functions = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    seconds = timing.interleave(functions, rounds=2, warmup=1)
    assert "".join(calls) == "abcbcacab"
    assert {name: len(times) for name, times in seconds.items()} == dict.fromkeys("abc", 2)


def test_quantizers_keep_one_tensor_for_the_backward_pass():
    kept = backward_memory.relative_residuals((8, 1024), "float32")
    assert kept.pop("naive blend") > 7.0
    assert all(0.0 < ratio < 1.01 for ratio in kept.values()), kept


def test_the_stages_under_test_are_the_methods_own():
    chosen = step_time.stages()
    assert list(chosen)[:2] == list(step_time.CONTROL)
    assert "bits" in chosen["blend learned"].optimizers
    assert "bits" not in chosen["frozen"].optimizers
    assert "bits" in step_time.language_stages()["learned weights"].optimizers


def test_a_count_that_grew_is_named_and_one_that_fell_or_moved_a_little_is_not():
    committed = {"step": {"fusions": 100, "instructions": 1000, "different": 50}}
    found = {
        "step": {"fusions": 103, "instructions": 1019, "different": 9},
        "other": {"fusions": 1},
    }
    assert counts.grown(found, committed) == [
        "step: fusions grew from 100 to 103, by 3.0 %",
        "other: fusions has no committed count, it is 1",
    ]
    assert counts.grown(committed, committed) == []


def test_a_headline_is_reached_if_it_is_at_most_its_target_and_a_control_has_none():
    rows = [
        headlines.Row("step", timing.Ratio(1.02, 1.0, 1.1), 1.02, "step_time"),
        headlines.Row("start", 30.04, 30.0, "start", "s"),
        headlines.Row("float again", timing.Ratio(1.0, 0.9, 1.1), None, "step_time"),
    ]
    assert bench.table(rows).splitlines()[2:] == [
        "| step | 1.020 [1.000, 1.100] | 1.02 | yes | `python -m benchmarks.step_time` |",
        "| start | 30.04 s | 30 s | no | `python -m benchmarks.start` |",
        "| float again | 1.000 [0.900, 1.100] |  |  | `python -m benchmarks.step_time` |",
    ]


@pytest.mark.slow
def test_step_and_compile_times_are_finite_ratios():
    chosen = {
        name: stage
        for name, stage in step_time.stages().items()
        if name in (*step_time.CONTROL, "blend minmax")
    }
    times = step_time.times(TINY, chosen, step_time.synthetic_batch(2), rounds=2, compiles=1)
    found = step_time.measure(times)
    assert found["float"].step.median == 1.0
    numbers = jnp.asarray([[*cost.step, *cost.total] for cost in found.values()])
    assert numbers.shape == (3, 6)
    assert bool(jnp.isfinite(numbers).all() and (numbers > 0).all())


@pytest.mark.slow
def test_every_source_of_batches_is_compared_with_the_step(capsys, monkeypatch):
    monkeypatch.setattr(throughput, "resnet20", lambda: TINY)  # the whole one takes a minute
    found = throughput.input_section(rounds=2, batch=16)
    assert list(found)[0] == "step" and len(found) == 6
    assert all(ratio.median > 0 for name, ratio in found.items() if name != "step")
    assert "TFDS streamed" in capsys.readouterr().out


@pytest.mark.slow
def test_step_memory_counts_temporaries():
    chosen = {name: step_time.stages()[name] for name in ("float", "uniform w8a8")}
    found = backward_memory.step_memory(TINY, chosen, batch_size=2)
    assert found["uniform w8a8"] >= found["float"] > 0


@pytest.mark.slow
def test_importing_bitjax_loads_no_tensorflow():
    found = import_time.measure(rounds=1)["bitjax"]
    assert found[0, 1] > 0.0
    assert not found[:, 2].any()


def test_all_reduces_are_counted_by_kind_also_where_they_were_merged():
    text = """
  %a = f32[2,16]{1,0} all-reduce(%x), channel_id=1, metadata={op_name="jit(run)/model/bn1/psum"}
  %b = (f32[3]{0}, bf16[4]{0}) all-reduce-start(%y, %z), metadata={op_name="jit(run)/(\
merge_gradients_params/psum:merge_metrics/psum)" stack_frame_id=4}
  %c = f32[] all-reduce(%w), metadata={op_name="jit(run)/model/stem/quantize/pmax"}
  %d = f32[] add(%w, %w), metadata={op_name="jit(run)/all-reduce"}
"""
    traffic, calls = scaling.collectives(text)
    assert calls == 3
    assert {kind: tuple(t) for kind, t in traffic.items()} == {
        "gradients of parameters": (1, 12),
        "gradients of quantizers": (0, 0),
        "loss and accuracy": (1, 8),
        "ranges of quantizers": (1, 4),
        "batch normalisations": (1, 128),
    }
    with pytest.raises(ValueError, match="is no all-reduce"):
        scaling.collectives(text.replace("all-reduce(%w)", "all-gather(%w)"))


@pytest.mark.slow
def test_gradients_cross_the_network_once_and_each_normalisation_twice():
    found = scaling.compile_apart(4, "lsq w4a4", depth=8, width=2)
    assert found.traffic["gradients of parameters"].bytes == found.parameters
    assert 0 < found.traffic["gradients of quantizers"].bytes <= found.quantizers
    channels = 2 + 2 * 2 + 2 * 4 + 2 * 8  # of the stem and of two normalisations a stage
    # A mean and a mean square, forward and backward, 4 bytes each.
    assert found.traffic["batch normalisations"].bytes == 2 * 2 * 4 * channels
    # Without a penalty the loss is the task's: one number, and the accuracy.
    assert found.traffic["loss and accuracy"].bytes == 8
    on = scaling.Machine()
    work, talk = scaling.predict(found, 128, 256, on)
    assert 0 < talk and work == pytest.approx(6 * found.macs * 128 / on.rate)
    assert scaling.predict(found, 128, 1, on) == (work, 0.0)


@pytest.mark.slow
def test_the_runners_loop_is_timed_against_bare_steps():
    found = loop_overhead.measure(TINY, batch_size=2, rounds=3, steps=4)
    assert found.step_seconds > 0.0
    assert 0.2 < found.loop.median < 50.0  # of steps that take next to nothing
    assert 0.1 < found.control.median < 10.0
    assert 0.2 < found.work.median < 50.0 and 0.1 < found.work_control.median < 10.0


@pytest.mark.slow
def test_rows_of_one_program_are_measured_against_runs_one_after_another():
    ((name, count, gain, alone, together),) = vectorize.vectorized(["mlp"], [2], rounds=3)
    assert (name, count) == ("mlp", 2) and gain.low > 0.0
    assert 0.0 < alone and 0.0 < together


def test_numpys_gptq_gives_the_codes_that_ours_does():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((200, 12)), rng.standard_normal((4, 12))
    gram, scale = x.T @ x / 200, np.abs(w).max(1) / 8
    ours = gptq_codes(gram, w, np.arange(-8.0, 8.0), scale).value
    np.testing.assert_array_equal(solving.gptq(gram, w, scale), ours)
