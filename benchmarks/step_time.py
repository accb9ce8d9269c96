"""Time and compile time of one training step of ResNet-20 or a Llama, as ratios to the float step.

Run: python -m benchmarks.step_time [--rounds 15] [--batch 128] [--compiles 3] [--variants lsq,...]
  --model llama takes the stories' network, and its configs' learned bits.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import bitjax as bj
from benchmarks.timing import Ratio, interleave, machine, median, ratios, show
from bitjax import methods
from bitjax.frameworks.compiled import compile_quickly
from bitjax.frameworks.costs import site_costs
from bitjax.launch.build import build_rules
from bitjax.launch.schema import plain
from bitjax.methods.base import Stage
from bitjax.models import CifarResNet, Llama, resnet20
from bitjax.training.state import TrainState, initial_state
from bitjax.training.step import make_train_step
from bitjax.training.task import Task, classification, next_token
from configs.cifar10.resnet20_bitpruning import get_config
from configs.stories.bitpruning_w import get_config as weights_config
from configs.stories.bitpruning_wa import get_config as both_config

CONTROL = ("float", "float again")
KEPT = "float, activations kept"
STEP_TARGET, FIXED_TARGET, COMPILE_TARGET = 1.05, 1.02, 2.0


_relu = nn.relu


def kept_relu(x: jax.Array) -> jax.Array:
    """ReLU, which XLA's CPU library works out once; `grid.once` of the quantizers does the same."""
    return jnp.where(x == x, _relu(x), x)


class KeptResNet(CifarResNet):
    """A ResNet whose activations XLA works out once, as it does those that are quantized.

    XLA's CPU compiler repeats a chain that ends in an operation on one array, such as a ReLU, in
    each loop that reads it. A float step gets faster without that, which a comparison has to show.
    """

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """As a ResNet, while its trace finds another ReLU."""
        with mock.patch.object(nn, "relu", kept_relu):
            return super().__call__(x, train)


class Cost(NamedTuple):
    """What a variant costs beside the float step; seconds are medians."""

    step: Ratio
    trace: Ratio
    compile: Ratio
    total: Ratio
    step_seconds: float
    compile_seconds: float


def stages() -> dict[str, Stage]:
    """The stages to compare, as the methods make them; all learn by SGD with momentum."""
    steps = {"steps": 100, "learning_rate": 0.01}
    weights_and_inputs = (
        ("(.*/)?kernel|stem/input", {"signed": True}),
        (".*/input", {"signed": False}),
    )
    lsq = [bj.rule(p, bj.lsq(bits=4, **form)) for p, form in weights_and_inputs]
    minmax = [bj.rule(".*", bj.bitlength(init=6.0))]
    learned = build_rules(plain(get_config()["rules"]))
    float_stage = methods.full_precision(**steps).stages[0]
    return {
        **dict.fromkeys(CONTROL, float_stage),
        "lsq w4a4": methods.lsq(lsq, **steps).stages[0],
        "uniform w8a8": methods.uniform([bj.rule(".*", bj.uniform(bits=8))], **steps).stages[0],
        "blend minmax": methods.bitpruning(minmax, gamma=0.1, **steps).stages[0],
        "blend learned": methods.bitpruning(learned, gamma=0.1, **steps).stages[0],
        "frozen": methods.bitpruning(learned, gamma=0.1, **steps).stages[1],
    }


def variants() -> dict[str, Stage]:
    """`stages`, and the float step of `KeptResNet`."""
    found = stages()
    return {**found, KEPT: found[CONTROL[0]]}


def language_stages() -> dict[str, Stage]:
    """The stages to compare on a Llama; all learn by Adam, without a teacher."""
    steps = {"steps": 100, "learning_rate": 1e-3, "optimizer": "adamw"}
    float_stage = methods.full_precision(**steps).stages[0]
    found = dict.fromkeys(CONTROL, float_stage)
    for name, get in (("weights", weights_config), ("weights and inputs", both_config)):
        rules = build_rules(plain(get()["rules"]))
        learn, frozen, *_ = methods.bitpruning(rules, gamma=0.1, **steps).stages
        found |= {f"learned {name}": learn, f"frozen {name}": frozen}
    return found


def synthetic_tokens(size: int) -> dict[str, jax.Array]:
    """Token batches of the stories' shapes in training."""
    tokens = np.random.default_rng(0).integers(512, size=(size, 256))
    return {"tokens": jnp.asarray(tokens), "scored": jnp.ones((size, 256), jnp.float32)}


def synthetic_batch(size: int) -> dict[str, jax.Array]:
    """Images and labels of CIFAR's shapes."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((size, 32, 32, 3), np.float32)
    return {"image": jnp.asarray(image), "label": jnp.asarray(rng.integers(10, size=size))}


def prepare(
    net: nn.Module,
    stage: Stage,
    batch: dict[str, jax.Array],
    task: Task | None = None,
    *,
    shapes: bool = False,
) -> tuple[Any, TrainState]:
    """`(step, state)` of a stage, the step neither jitted nor traced before.

    With `shapes` the state is one of shapes, and nothing is compiled for it.
    """
    task = task or classification()
    (sample,), _ = task.inputs(lambda key, images: images, None, batch)
    model = bj.Quantized(net, tuple(stage.rules))
    costs = site_costs(net, sample[:2])
    step = make_train_step(model, stage, costs, lambda key, images: images, task=task)

    def begin(variables):
        return initial_state(stage, variables, key=jax.random.PRNGKey(0))

    key = jax.random.key(0)
    if shapes:
        return step, jax.eval_shape(begin, jax.eval_shape(model.init, key, sample))
    variables = jax.jit(net.init, **compile_quickly(exact=True))(key, sample[:2])
    if stage.rules:
        variables = bj.attach(model, variables, sample)
    return step, jax.tree.map(jnp.copy, begin(variables))


class _Runner:
    """Calls a compiled step on its own, donated state, and waits for it."""

    def __init__(self, compiled, state, batch):
        self.compiled, self.state, self.batch = compiled, state, batch

    def __call__(self):
        self.state, metrics = self.compiled(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))


class Seconds(NamedTuple):
    """Seconds of a variant by round, and of its compilations."""

    step: list[float]
    trace: list[float]
    compile: list[float]


def times(
    net: nn.Module,
    chosen: Mapping[str, Stage],
    batch: dict[str, jax.Array],
    rounds: int,
    compiles: int,
    task: Task | None = None,
) -> dict[str, Seconds]:
    """Compiles every stage's step `compiles` times and runs it `rounds` times, interleaved."""
    kept = net
    if KEPT in chosen:
        kept = KeptResNet(**{name: getattr(net, name) for name in ("depth", "width", "dtype")})
    prepared = {
        name: prepare(kept if name == KEPT else net, stage, batch, task)
        for name, stage in chosen.items()
    }
    return time_steps(prepared, batch, rounds, compiles)


def time_steps(
    prepared: Mapping[str, tuple[Any, Any]], batch: dict[str, jax.Array], rounds: int, compiles: int
) -> dict[str, Seconds]:
    """Compiles every `(step, state)` `compiles` times and runs it `rounds` times, interleaved."""
    found = {name: Seconds([], [], []) for name in prepared}
    runners = {}
    for _ in range(compiles):
        for name, (step, state) in prepared.items():
            jax.clear_caches()  # as in a fresh process: nothing traced before
            began = time.perf_counter()
            lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
            middle = time.perf_counter()
            runners[name] = lowered.compile()
            found[name].compile.append(time.perf_counter() - middle)
            found[name].trace.append(middle - began)
    runners = {n: _Runner(run, prepared[n][1], batch) for n, run in runners.items()}
    for name, seconds in interleave(runners, rounds, warmup=2).items():
        found[name].step.extend(seconds)
    return found


def measure(found: Mapping[str, Seconds]) -> dict[str, Cost]:
    """The costs of every variant beside those of the float step."""
    step, trace, compiled = ({n: s[i] for n, s in found.items()} for i in range(3))
    total = {n: [a + b for a, b in zip(trace[n], compiled[n], strict=True)] for n in found}
    by_kind = [ratios(seconds, CONTROL[0]) for seconds in (step, trace, compiled, total)]
    return {
        name: Cost(*(r[name] for r in by_kind), median(step[name]), median(total[name]))
        for name in found
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the flags say and prints the table."""
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compiles", type=int, default=3)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--model", choices=("resnet20", "llama"), default="resnet20")
    parser.add_argument("--variants", default="", help="names with commas between; all if empty")
    flags = parser.parse_args(arguments)
    images = flags.model == "resnet20"
    every = variants() if images else language_stages()
    size = flags.batch or ((128 if on_cpu else 1024) if images else 8)
    names = [name for name in flags.variants.split(",") if name] or list(every)
    if unknown := set(names) - set(every):
        parser.error(f"--variants must be of {list(every)}, got {sorted(unknown)}")
    chosen = {name: stage for name, stage in every.items() if name in (*CONTROL, *names)}
    net = (resnet20 if images else Llama)(dtype=None if on_cpu else jnp.bfloat16)
    task, batch = (
        (classification(), synthetic_batch(size))
        if images
        else (next_token(), synthetic_tokens(size))
    )
    found = measure(times(net, chosen, batch, flags.rounds, flags.compiles, task))
    show(
        f"{flags.model}, batch {size}, {'float32' if on_cpu else 'bfloat16'}; median of ratios "
        f"to float in the same round, {flags.rounds} rounds, {flags.compiles} compilations; "
        f"targets: step {STEP_TARGET}, of fixed bits {FIXED_TARGET}; compilation {COMPILE_TARGET}",
        ("variant", "step", "trace + lower", "XLA", "trace to XLA", "step s", "compile s"),
        [(name, *cost) for name, cost in found.items()],
    )
    print(machine())


if __name__ == "__main__":
    main()
