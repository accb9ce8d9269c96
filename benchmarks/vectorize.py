"""Throughput of K runs as rows of one program, against the same K runs one after another.

Run: python -m benchmarks.vectorize [--rows 2,8] [--rounds 15] [--models mlp,small_cnn]
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.timing import Ratio, interleave, machine, median, paired_ratio, show
from bitjax.data import train_batch
from bitjax.launch.build import build_work
from bitjax.launch.config_files import load_config
from bitjax.training.rows import stack
from bitjax.training.work import Work

CONFIGS = {
    "mlp": ("configs/digits/float.py", ["--config.model.name=mlp"]),
    "small_cnn": ("configs/digits/bitpruning.py", []),
    "resnet20": ("configs/cifar10/resnet20_bitpruning.py", []),
}


class Measured(NamedTuple):
    """Throughput of a group over that of its runs one after another, and seconds of each step."""

    gain: Ratio
    alone: float
    together: float


class _Steps:
    """Takes steps of states of its own, of one run after the other, or of all at once."""

    def __init__(self, step, states, batches):
        self.step = jax.jit(step, donate_argnums=0)
        self.states, self.batches = states, batches

    def __call__(self):
        for i, batch in enumerate(self.batches):
            self.states[i], metrics = self.step(self.states[i], batch)
            jax.block_until_ready((self.states[i], metrics))


def measure(runs: Sequence[Work], rounds: int) -> Measured:
    """Steps of the first stage of some runs, alone and as rows, in the same rounds."""
    first = runs[0]
    size = first.settings.batch_size
    states, batches = [], []
    for work in runs:
        variables = work.enter(work.method.stages[0], work.start)
        states.append(work.place.join([work.first_state(0, variables)]))
        batches.append(train_batch(first.dataset, size, 0, work.settings.seed))
    one = first.train_step(0)
    stacked = stack(states), {k: jnp.stack([b[k] for b in batches]) for k in batches[0]}
    batches = jax.tree.map(jnp.asarray, batches)
    seconds = interleave(
        {
            "alone": _Steps(one, states, batches),
            "together": _Steps(jax.vmap(one), [stacked[0]], [stacked[1]]),
        },
        rounds,
        warmup=2,
    )
    gain = paired_ratio(seconds["alone"], seconds["together"])
    return Measured(gain, median(seconds["alone"]) / len(runs), median(seconds["together"]))


def vectorized(models: Sequence[str], rows: Sequence[int], rounds: int) -> list[tuple]:
    """A row of the table for each model and each number of runs, seeds and strengths varying."""
    table = []
    for name in models:
        path, fixed = CONFIGS[name]
        runs = []
        for seed in range(max(rows)):
            vary = [f"--config.seed={seed}", f"--config.method.learning_rate={0.01 * (seed + 1)}"]
            work = build_work(load_config(path, [*fixed, *vary]))
            runs.append(work._replace(dataset=(runs or [work])[0].dataset))
        for count in rows:
            found = measure(runs[:count], rounds)
            table.append((name, count, found.gain, 1e3 * found.alone, 1e3 * found.together))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the flags say and prints the table."""
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="2,8", help="numbers of runs, with commas between")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--models", default="mlp,small_cnn" + ("" if on_cpu else ",resnet20"))
    flags = parser.parse_args(arguments)
    models = [name for name in flags.models.split(",") if name]
    if unknown := set(models) - set(CONFIGS):
        parser.error(f"--models must be of {list(CONFIGS)}, got {sorted(unknown)}")
    rows = [int(count) for count in flags.rows.split(",")]
    show(
        "K runs as rows of one program; throughput over that of the runs one after another, median "
        f"of {flags.rounds} rounds and its 95 % interval",
        ("model", "K", "gain", "step alone ms", "step of K rows ms"),
        vectorized(models, rows, flags.rounds),
    )
    print(machine())


if __name__ == "__main__":
    main()
