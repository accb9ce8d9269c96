"""A program for tests: trains on several devices, and writes down what came of it.

python forms.py FOLDER WHAT FORMS DEVICES [PORT INDEX], with its devices given by XLA_FLAGS.
WHAT is `quick`, `quantized` or `float64`: a run of 50 steps (1 if quick) in each form, and a step
from each of the states that the form `none` passed. Or `whole` or `dying`: a run to its end, or
until its process is gone after 30 of 50 steps.
"""

import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import bitjax as bj
from bitjax.costs.bits import bits_of
from bitjax.data import load, normalize, train_batch
from bitjax.methods import bitpruning, full_precision
from bitjax.training.parallel import placement
from bitjax.training.runner import run
from bitjax.training.settings import Settings
from bitjax.training.state import initial_state, variables_of
from bitjax.training.step import make_train_step
from bitjax.training.work import make_work

DATA = load("digits", limit=512)
BATCH, STEPS = 32, 50
STARTS = (0, 10, 50)  # of the steps that are compared
DEATH = 30
RULES = (
    bj.rule("conv/kernel", bj.bitlength(init=6.0, range="learned", granularity="per_channel")),
    bj.rule(".*/input", bj.bitlength(init=5.3)),
    bj.rule(".*/kernel", bj.bitlength(init=5.0)),
)


class Net(nn.Module):
    """A convolution, a batch normalisation and a head."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(4, (3, 3), strides=2, use_bias=False, name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn")(x))
        return nn.Dense(10, name="head")(x.reshape(len(x), -1))


class Recorded(NamedTuple):
    """The gradient that an optimizer was last given."""

    gradient: Any


def recording(inner):
    """The optimizer, with what it was given in its state."""

    def init(params):
        return Recorded(jax.tree.map(jnp.zeros_like, params)), inner.init(params)

    def update(updates, state, params=None):
        new, inner_state = inner.update(updates, state[1], params)
        return new, (Recorded(updates), inner_state)

    return optax.GradientTransformation(init, update)


def gradients(state):
    """What the optimizers of a state were last given, as one list of arrays."""
    is_it = lambda node: isinstance(node, Recorded)  # noqa: E731 - a predicate, once
    found = [n for n in jax.tree.leaves(state.opt_state, is_leaf=is_it) if is_it(n)]
    return jax.tree.leaves(found)


def preprocess(key, images):
    del key  # each device would draw for itself
    x = normalize(images, DATA.mean, DATA.std, DATA.max_value)
    return x.astype(jnp.result_type(float))  # float64 where that is enabled


def experiment(rules):
    """`(model, stage, costs, state)` at the start; of a float model if there are no rules."""
    x = preprocess(None, jnp.asarray(DATA.images[:32]))
    method = (
        bitpruning(
            rules, steps=60, fine_tune=0.0, gamma=0.2, learning_rate=0.05, bits_learning_rate=0.02
        )
        if rules
        else full_precision(steps=60, learning_rate=0.05)
    )
    stage = method.stages[0]
    stage = stage._replace(optimizers={n: recording(t) for n, t in stage.optimizers.items()})
    key = jax.random.PRNGKey(0)
    variables = Net().init(key, x)
    variables = jax.tree.map(lambda leaf: leaf.astype(x.dtype), variables)
    model = bj.Quantized(Net(), tuple(stage.rules))
    if rules:
        variables = bj.attach(model, variables, x)
    return model, stage, bj.site_costs(Net(), x), initial_state(stage, variables, key=key)


def make_codes(axis_name):
    """`(variables, batch) -> {role: [(codes, tensor, scale of 1e-5)]}` as a training step has."""

    def run(variables, batch):
        seen = {"kernel": [], "input": []}

        def watched(quantizer, role):
            def apply(params, stats, x, **options):
                codes = quantizer.encode(params, stats, x).codes
                reach = 1e-5 * jnp.max(jnp.abs(x))
                if axis_name:
                    reach = jax.lax.pmax(reach, axis_name)
                near = quantizer.encode(params, stats, x - reach).codes
                near = near != quantizer.encode(params, stats, x + reach).codes
                if role == "input" and axis_name:
                    codes, near = jax.lax.all_gather((codes, near), axis_name, tiled=True)
                seen[role].append((codes, near))
                return quantizer.apply(params, stats, x, **options)

            return quantizer._replace(apply=apply)

        rules = [
            bj.rule(rule.pattern.replace(".*/", "(conv|head)/"), watched(rule.quantizer, role))
            for rule in RULES
            for role in [rule.pattern.split("/")[1]]
        ]
        model = bj.Quantized(Net(), rules, axis_name=axis_name)
        x = preprocess(None, batch["image"])
        model.apply(variables, x, train=True, mutable=["batch_stats", "quant_stats"])
        return seen

    return run


def run_form(form, devices, folder, what):
    """Everything one form has to say, as a tree of arrays."""
    place = placement(form, devices)
    rules = {"quantized": RULES, "quick": (), "float64": ()}[what]
    length, numbers = (1, (0,)) if what == "quick" else (STEPS, STARTS)
    model, stage, costs, state = experiment(rules)
    step = place.train(make_train_step(model, stage, costs, preprocess, axis_name=place.axis_name))
    codes_of = place.evaluate(make_codes(place.axis_name)) if what == "quantized" else None

    def host(tree):
        return jax.tree.map(np.asarray, place.local(tree))

    def batch(number):
        return place.put_batch(train_batch(DATA, BATCH, number, seed=0, shard=place.shard))

    said: dict[str, Any] = {"losses": []}
    states = {}
    at = place.put_state(jax.tree.map(jnp.copy, state))
    for number in range(length):
        if number in numbers:
            states[number] = host(at)
        at, metrics = step(at, batch(number), {})
        said["losses"].append(float(metrics["task_loss"]))
    states[length] = host(at)
    said["bits"] = bits_of(variables_of(states[length]))

    given = folder / f"states-{what}.npz"
    leaves, structure = jax.tree.flatten([states[n] for n in numbers])
    if form == "none":  # its trajectory is the one
        np.savez(given, *leaves)
    with np.load(given) as saved:
        starts = jax.tree.unflatten(structure, list(saved.values()))
    for number, start in zip(numbers, starts, strict=True):
        put = place.put_state(jax.tree.map(jnp.array, start))
        codes = None
        if codes_of is not None:
            codes = jax.tree.map(np.asarray, codes_of(variables_of(put), batch(number)))
        new, metrics = step(put, batch(number), {})
        new = host(new)
        said[f"step{number}"] = {
            "metrics": {name: float(value) for name, value in metrics.items()},
            "gradients": gradients(new),
            "variables": variables_of(new),
            "codes": codes,
        }
    return said


def run_all(form, devices, folder, dies):
    """A run of the runner, which may not live to its end."""
    learning = bitpruning(RULES, steps=STEPS, gamma=0.2, learning_rate=0.05, reestimate_batches=2)
    first = learning.stages[0]

    def at_death(context, variables):
        if dies:
            while not list(folder.glob(f"run/checkpoints/{DEATH - 10}/manifest.json")):
                time.sleep(0.01)
            os._exit(9)
        return variables

    stages = (first._replace(every=(DEATH, at_death)), *learning.stages[1:])
    settings = Settings(
        batch_size=BATCH,
        eval_batch_size=50,
        calibration_size=64,
        log_every=1,
        checkpoint_every=10,
        eval_every=20,
        parallel=form,
        devices=devices,
    )
    method = learning._replace(stages=stages)
    run(make_work(method, Net(), DATA, None, settings), folder / "run", show=False)


def main(folder, what, forms, devices, port="", index=""):
    warnings.simplefilter("error")
    folder = Path(folder)
    if port:
        jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))
    if what == "float64":
        jax.config.update("jax_enable_x64", True)
    for form in forms.split(","):
        count = 1 if form == "none" else int(devices)
        if what in ("whole", "dying"):
            run_all(form, count, folder, what == "dying")
            continue
        said = run_form(form, count, folder, what)
        assert jax.process_count() == (2 if port else 1)
        leaves = jax.tree_util.tree_leaves_with_path(said)
        flat = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
        np.savez(folder / f"{form}{index}-{what}.npz", **flat)


if __name__ == "__main__":
    main(*sys.argv[1:])
