"""What the runner's loop costs beside the compiled step: batches, dispatch, rows, checkpoints.

Run: python -m benchmarks.loop_overhead [--rounds 20] [--steps 10] [--batch 128]
"""

import argparse
import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import rich.console

from benchmarks.timing import Ratio, machine, median, paired_ratio, show
from bitjax.data import Dataset, train_batch
from bitjax.methods import full_precision
from bitjax.models import resnet20
from bitjax.training.progress import Progress
from bitjax.training.runner import run
from bitjax.training.settings import Settings
from bitjax.training.work import Work, make_work

TARGET = 1.02


class Overhead(NamedTuple):
    """The loop's time over that of the bare steps.

    Attributes:
      loop: of the runner's loop.
      control: of bare steps again.
      work: of the loop, in seconds that all processors worked; these say less of what else the
        machine did than the wall's do.
      work_control: likewise, of bare steps again.
      step_seconds: of one bare step, by the wall's clock.
      host_seconds: that the loop's own thread worked per step, beyond what it did in bare steps.
    """

    loop: Ratio
    control: Ratio
    work: Ratio
    work_control: Ratio
    step_seconds: float
    host_seconds: float


Seconds = tuple[float, float, float]  # by the wall, of all processors, of this thread


def _now() -> Seconds:
    return time.perf_counter(), time.process_time(), time.thread_time()


def _since(began: Seconds) -> Seconds:
    wall, work, thread = (b - a for a, b in zip(began, _now(), strict=True))
    return wall, work, thread


def synthetic_data(examples: int = 10_000) -> Dataset:
    """Images and labels of CIFAR-10's shapes."""
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(examples, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(10, size=examples).astype(np.int32)
    moments = (0.5, 0.5, 0.5)
    return Dataset(
        "synthetic", images, labels, images[:500], labels[:500], "test", 10, moments, moments, 255.0
    )


class _BareSteps:
    """Calls the same compiled step on batches that are on the device already."""

    def __init__(self, work: Work, steps: int):
        step = work.train_step(0)
        batches = [train_batch(work.dataset, work.settings.batch_size, i, 0) for i in range(steps)]
        self.batches = jax.device_put(batches)
        self.state: Any = work.place.join([work.first_state(0, work.start)])
        self.step = jax.jit(step, donate_argnums=0)
        self()  # compiles

    def __call__(self) -> Seconds:
        began, metrics = _now(), None
        for batch in self.batches:
            self.state, metrics = self.step(self.state, batch)
        jax.block_until_ready(metrics)
        return _since(began)


class _Pauses(Progress):
    """A run's progress that now and then has the loop wait for as many bare steps."""

    def __init__(self, bare: _BareSteps, steps: int):
        # Drawn as often as in a log, but out of sight.
        super().__init__(console=rich.console.Console(file=io.StringIO()))
        self.bare, self.block = bare, steps
        self.loop: list[Seconds] = []
        self.before: list[Seconds] = []
        self.after: list[Seconds] = []
        self.began = _now()

    def update(self, step: int, **values: Any) -> None:
        super().update(step, **values)
        if step % self.block:
            return
        jax.block_until_ready(values)
        seconds = _since(self.began)
        if step > self.block:  # the first block compiles
            self.loop.append(seconds)
            self.after.append(self.bare())
        self.before.append(self.bare())
        self.began = _now()


def measure(net: nn.Module, batch_size: int, rounds: int, steps: int) -> Overhead:
    """Runs the runner's own loop, interrupted every `steps` steps by as many bare ones.

    A block of the loop is compared with the mean of the bare blocks before and after it, and these
    two with each other, which is the control.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = make_work(
            full_precision(steps=steps * (rounds + 1), learning_rate=0.01),
            net,
            synthetic_data(),
            settings=Settings(batch_size=batch_size, augmentation="crop_flip"),
        )
        pauses = _Pauses(_BareSteps(work, steps), steps)
        run(work, Path(folder), show=False, progress=pauses)
    loop, after = np.asarray(pauses.loop), np.asarray(pauses.after)  # [rounds, clocks]
    before = np.asarray(pauses.before[: len(loop)])
    around = (before + after) / 2
    return Overhead(
        paired_ratio(loop[:, 0], around[:, 0]),
        paired_ratio(after[:, 0], before[:, 0]),
        paired_ratio(loop[:, 1], around[:, 1]),
        paired_ratio(after[:, 1], before[:, 1]),
        median(around[:, 0]) / steps,
        float(np.mean(loop[:, 2] - around[:, 2])) / steps,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the flags say and prints the table."""
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=128 if on_cpu else 1024)
    flags = parser.parse_args(arguments)
    net = resnet20() if on_cpu else resnet20(dtype=jnp.bfloat16)
    found = measure(net, flags.batch, flags.rounds, flags.steps)
    show(
        f"ResNet-20, batch {flags.batch}; blocks of {flags.steps} steps, {flags.rounds} rounds; a "
        f"row every {Settings().log_every} steps, a checkpoint every "
        f"{Settings().checkpoint_every}; target {TARGET}",
        ("what", "over bare steps", "the same of processors' seconds"),
        [
            ("the runner's loop", found.loop, found.work),
            ("bare steps again (control)", found.control, found.work_control),
        ],
    )
    print(
        f"a bare step takes {found.step_seconds:.3f} s; the loop's thread works "
        f"{1000 * found.host_seconds:.2f} ms a step beside it, "
        f"{found.host_seconds / found.step_seconds:.1%}"
    )
    print(machine())


if __name__ == "__main__":
    main()
