"""One training step: what varies without a new program, what a bad step leaves, several devices."""

import subprocess
import sys
import textwrap
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bitjax as bj
from bitjax.data import eval_batches, load, normalize, train_batch
from bitjax.methods import bitpruning, full_precision, lsq
from bitjax.models import MLP
from bitjax.training.state import initial_state, optimizer, variables_of
from bitjax.training.step import make_eval_step, make_train_step

DATA = load("digits", limit=64)
# One layer of two, because every site costs a second of compilation; one range of each kind.
RULES = (
    bj.rule("conv/kernel", bj.bitlength(init=6.0, range="learned", granularity="per_channel")),
    bj.rule("conv/input", bj.bitlength(init=5.3)),
)


class Net(nn.Module):
    """A convolution, a batch normalisation and a head."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(3, (3, 3), strides=2, name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="bn")(x))
        return nn.Dense(10, name="head")(x.reshape(len(x), -1))


def preprocess(key, images):
    del key
    return normalize(images, DATA.mean, DATA.std, DATA.max_value)


def batch(step=0, size=16):
    return train_batch(DATA, size, step, seed=0)


def prepared(model, method, index=0, seed=0):
    """`(model, stage, costs, state)` at the start of a method's stage."""
    x = preprocess(None, jnp.asarray(DATA.images[:8]))
    stage = method.stages[index]
    key = jax.random.PRNGKey(seed)
    variables = bj.attach(bj.Quantized(model, stage.rules), model.init(key, x), x)
    state = initial_state(stage, variables, key=key, teacher=variables)
    return bj.Quantized(model, stage.rules), stage, bj.site_costs(model, x), state


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def set_learning_rates(opt_state, rate):
    """Every learning rate in an optimizer's state, replaced."""

    def replace(path, leaf):
        last = path[-1] if path else None
        return jnp.float32(rate) if getattr(last, "name", "") == "learning_rate" else leaf

    return jax.tree_util.tree_map_with_path(replace, opt_state)


def test_bits_strengths_rates_and_the_seed_change_without_a_second_compilation():
    method = bitpruning(
        (bj.rule(".*", bj.bitlength(init=6.0, mode="sharpen")),),
        steps=20,
        budgets=(bj.budget("bits", 4.0),),
        gamma=0.1,
        distill=0.5,
    )
    model, stage, costs, state = prepared(MLP(features=()), method)
    step = jax.jit(make_train_step(model, stage, costs, preprocess, teacher=model.model))
    state, _ = step(state, batch(0))
    then, metrics = step(state, batch(1))
    changes = {
        "controls": jax.tree.map(lambda c: c + 0.5, state.controls),
        "opt_state": set_learning_rates(state.opt_state, 0.123),
        "quant": jax.tree.map(lambda n: n - 1.0, state.quant),
    }
    for name, value in changes.items():
        other, _ = step(state._replace(**{name: value}), batch(1))
        same = jax.tree.map(np.array_equal, variables_of(other), variables_of(then))
        assert not all(jax.tree.leaves(same)), f"{name} does something"
    step(state._replace(key=jax.random.PRNGKey(7), offset=jnp.asarray(100, jnp.int32)), batch(1))
    assert step._cache_size() == 1
    assert np.isfinite(float(metrics["loss"]))
    assert float(metrics["bits"]) < 6.0, "an average above the budget falls"


@pytest.mark.parametrize("fault", ["batch", "update"])
def test_a_step_that_is_not_finite_changes_nothing_and_neither_do_later_ones(fault):
    model, stage, costs, state = prepared(Net(), full_precision(steps=5, learning_rate=0.1))
    step = jax.jit(make_train_step(model, stage, costs, preprocess))
    good, _ = step(state, batch(0))
    if fault == "batch":
        bad_batch = {**batch(1), "image": np.full((16, 8, 8, 1), np.nan, np.float32)}
        start = good
    else:  # the gradient is finite, the weights that it leads to are not
        start = good._replace(opt_state=set_learning_rates(good.opt_state, np.inf))
        bad_batch = batch(1)
    bad, _ = step(start, bad_batch)
    assert int(bad.bad_step) == 1 and int(bad.step) == 1
    assert_same(bad._replace(bad_step=start.bad_step), start)
    after, _ = step(bad, batch(2))
    assert_same(after, bad)


def test_a_step_repeats_bit_for_bit_and_leaves_frozen_bits_alone():
    method = lsq((bj.rule("conv/.*", bj.lsq(bits=4)),), steps=5)
    model, stage, costs, state = prepared(Net(), method)
    step = jax.jit(make_train_step(model, stage, costs, preprocess))
    new, metrics = step(state, batch())
    assert_same((new, metrics), step(state, batch()))
    for role in ("kernel", "input"):
        old, moved = state.quant["conv"][role], new.quant["conv"][role]
        assert float(moved["bits"]) == 4.0 and float(moved["scale"]) != float(old["scale"])
    assert all(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(new.params), strict=True)
    )


def sharded(step, count):
    """The step on `count` devices that `vmap` stands for; what each of them returns."""
    across = jax.jit(jax.vmap(step, in_axes=(None, 0), axis_name="data"))

    def run(state, whole):
        split = {k: v.reshape(count, -1, *v.shape[1:]) for k, v in whole.items()}
        return across(state, split)

    return run


@pytest.mark.slow
def test_two_devices_with_half_the_batch_each_take_the_step_of_one_with_all_of_it():
    method = bitpruning(RULES, steps=20, budgets=(bj.budget("bits", 4.0),), settle=0.0)
    model, stage, costs, state = prepared(Net(), method)
    build = partial(make_train_step, model, stage, costs, preprocess)
    one, two = jax.jit(build()), sharded(build(axis_name="data"), 2)
    state, _ = one(state, batch(0))
    alone, metrics = one(state, batch(1))
    both, both_metrics = two(state, batch(1))
    for leaf in jax.tree.leaves(both):
        np.testing.assert_array_equal(leaf[0], leaf[1], "the devices' states are one state")
    both, both_metrics = jax.tree.map(lambda leaf: leaf[0], (both, both_metrics))
    close = partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)
    jax.tree.map(close, variables_of(both), variables_of(alone))
    jax.tree.map(close, both.controls, alone.controls)
    jax.tree.map(close, both_metrics, metrics)


NORMALIZED = {
    "lsq": bj.lsq(bits=3, signed=True),
    "bitplane": bj.bitplane(bits=3, depth=4, signed=True, coefficients="free"),
    "halfwave": bj.halfwave(bits=2, learn_step=True),
}


@pytest.mark.parametrize("name", NORMALIZED)
@pytest.mark.parametrize(
    "form", ["both", *(pytest.param(f, marks=pytest.mark.slow) for f in ("devices", "parts"))]
)
def test_gradients_that_are_divided_by_elements_are_those_of_the_whole_batch(name, form):
    method = lsq((bj.rule("head/input", NORMALIZED[name]), bj.rule(".*", None)), steps=20)
    model, stage, costs, state = prepared(MLP(features=()), method)
    stage = stage._replace(optimizers={k: optax.sgd(1.0) for k in stage.optimizers})
    state = state._replace(
        opt_state=optimizer(stage).init({"params": state.params, "quant": state.quant})
    )
    build = partial(make_train_step, model, stage, costs, preprocess)
    alone, _ = jax.jit(build())(state, batch())
    if form == "parts":
        apart, _ = jax.jit(build(accumulate=4))(state, batch())
    else:
        parts = 2 if form == "both" else 1
        step = sharded(build(axis_name="data", accumulate=parts), 4 // parts)
        apart = jax.tree.map(lambda leaf: leaf[0], step(state, batch())[0])
    before, after = state.quant["head"]["input"], alone.quant["head"]["input"]
    moved = [
        leaf for leaf in NORMALIZED[name].traits.normalized if np.any(before[leaf] != after[leaf])
    ]
    assert moved
    for leaf in moved:
        wanted = np.asarray(after[leaf] - before[leaf])
        found = np.asarray(apart.quant["head"]["input"][leaf] - before[leaf])
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_two_real_devices_take_the_step_of_one():
    program = """if True:
        import jax, numpy as np, sys
        sys.path.insert(0, {folder!r})
        import test_step as t
        method = t.bitpruning(t.RULES, steps=20, budgets=(t.bj.budget("bits", 4.0),), settle=0.0)
        model, stage, costs, state = t.prepared(t.Net(), method)
        one = jax.jit(t.make_train_step(model, stage, costs, t.preprocess))
        step = t.make_train_step(model, stage, costs, t.preprocess, axis_name="data")
        two = jax.pmap(step, axis_name="data")
        copies = jax.tree.map(lambda x: np.stack([x, x]), state)
        for i in range(3):
            batch = t.batch(i)
            state, _ = one(state, batch)
            copies, _ = two(copies, {{k: v.reshape(2, 8, *v.shape[1:]) for k, v in batch.items()}})
        for a, b in zip(jax.tree.leaves(copies), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(a[0], a[1])
            np.testing.assert_allclose(a[0], b, rtol=1e-3, atol=1e-4)
        print(len(jax.devices()), "devices agree")
    """
    import os
    from pathlib import Path

    program = textwrap.dedent(program).format(folder=str(Path(__file__).parent))
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "2 devices agree\n", done.stderr[-2000:]


def test_evaluation_counts_every_example_once_whatever_the_batch_size():
    model, x = Net(), preprocess(None, jnp.asarray(DATA.eval_images))
    variables = model.init(jax.random.PRNGKey(0), x)
    logits = model.apply(variables, x)
    labels = jnp.asarray(DATA.eval_labels)
    expected = -jnp.sum(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])
    step = jax.jit(make_eval_step(model, preprocess))
    for size in (64, 24, 5):
        sums = [step(variables, b) for b in eval_batches(DATA, size)]
        total = {name: sum(float(s[name]) for s in sums) for name in sums[0]}
        assert total["count"] == len(labels) == 64
        assert total["correct"] == int(jnp.sum(jnp.argmax(logits, -1) == labels))
        assert total["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_evaluation_adds_up_over_devices():
    variables = Net().init(jax.random.PRNGKey(0), preprocess(None, jnp.asarray(DATA.images[:1])))
    (whole,) = eval_batches(DATA, 64)
    alone = jax.jit(make_eval_step(Net(), preprocess))(variables, whole)
    both = sharded(make_eval_step(Net(), preprocess, axis_name="data"), 2)(variables, whole)
    for name, total in alone.items():
        np.testing.assert_allclose(both[name], [total, total], rtol=1e-5)
