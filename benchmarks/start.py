"""What a user waits for before training: processors' seconds of whole processes, first and again.

Run: python -m benchmarks.start [--repeats 1] [--steps 40]

`bitjax train digits/bitpruning`, a few steps of it, runs twice in new folders: with no program
kept, and with those of the first time (`bitjax.keep_programs`). `bitjax train` of ResNet-20 with
learned bits, from scratch on images of noise, ends with its first step, and so does the float loop
that one writes by hand with Flax and Optax. Seconds are those of the whole process, imports
included.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

FIRST_TARGET, AGAIN_TARGET, PROGRAMS_TARGET = 30.0, 12.0, 40
STEP_TARGETS = {"first": 3.0, "again": 1.5}
BATCH = 128


class Start(NamedTuple):
    """Processors' seconds of a process, and the programs that it compiled or read from a file."""

    seconds: float
    programs: int


# ---- in the process that is measured ---------------------------------------------------------


def _train(arguments: Sequence[str], first_step: bool) -> None:
    """`bitjax train` as a user has it, to its end or until its first step is done."""
    from bitjax.cli.main import main
    from bitjax.training.progress import Progress

    class Done(BaseException):
        """Raised behind the first step; nothing in the loop catches it."""

    def stop(self, step, /, **values):
        np.asarray(values["loss"])  # waits for it
        raise Done

    if first_step:
        Progress.update = stop
    try:
        main(["train", *arguments])
    except Done:
        pass


def _by_hand(path: str) -> None:
    """The first step of a float ResNet-20 in a loop without bitjax, but for the network."""
    import jax
    import jax.numpy as jnp
    import optax

    from bitjax.models import resnet20

    with np.load(path) as data:
        images, labels = data["x_train"][:BATCH] / np.float32(255.0), data["y_train"][:BATCH]
    net, tx = resnet20(), optax.sgd(0.01, momentum=0.9)
    variables = jax.jit(net.init)(jax.random.key(0), images[:1])
    params, stats = variables["params"], variables["batch_stats"]
    state = jax.jit(tx.init)(params)

    def step(params, stats, state, x, y):
        def loss_of(params):
            logits, new = net.apply(
                {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
            )
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return jnp.mean(loss), new["batch_stats"]

        (loss, stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, state = tx.update(gradients, state)
        return optax.apply_updates(params, updates), stats, state, loss

    jitted = jax.jit(step, donate_argnums=(0, 1, 2))
    jax.block_until_ready(jitted(params, stats, state, images, labels.astype(np.int32)))


def _measured(what: str, arguments: Sequence[str]) -> None:
    """Does it, and says on the last line how many programs there were."""
    from tests.counted import compiling

    with compiling() as programs:
        if what == "by hand":
            _by_hand(*arguments)
        else:
            _train(arguments, first_step=what == "first step")
    print(json.dumps(len(programs)), flush=True)
    if what == "first step":
        os._exit(0)  # nothing waits for what a run that was broken off has begun


# ---- around it -------------------------------------------------------------------------------


def spent(what: str, arguments: Sequence[str], cache: Path) -> Start:
    """Runs it in a fresh process that keeps its programs in `cache`."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS" and "CACHE" not in k}
    environment["BITJAX_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-m", "benchmarks.start", "--measured", what, *arguments]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {ran.stderr[-2000:]}")
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Start(seconds, int(ran.stdout.splitlines()[-1]))


def demo(steps: int = 40) -> dict[str, Start]:
    """`bitjax train digits/bitpruning` the first time and again."""
    with tempfile.TemporaryDirectory() as folder:
        name, room = "digits/bitpruning", Path(folder)
        return {
            time: spent(
                "train",
                [name, f"--workdir={room / time}", f"--config.method.steps={steps}"],
                room / "cache",
            )
            for time in ("first", "again")
        }


def first_step() -> dict[str, Start]:
    """ResNet-20 until its first step: the loop by hand; with learned bits the first time, again."""
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        data, rng = room / "noise.npz", np.random.default_rng(0)
        images = rng.integers(256, size=(2048, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(2048) % 10
        parts = {"train": slice(0, 1536), "test": slice(1536, None)}
        arrays = {f"x_{k}": images[s] for k, s in parts.items()}
        np.savez(data, **arrays, **{f"y_{k}": labels[s] for k, s in parts.items()})
        own = [
            "cifar10/resnet20_bitpruning",
            f"--config.data.name=npz:{data}",
            "--config.init_from=",
            "--config.method.distill=0.0",
        ]
        found = {"by hand": spent("by hand", [str(data)], room / "none")}
        for time in ("first", "again"):
            found[time] = spent("first step", [*own, f"--workdir={room / time}"], room / "cache")
        return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the flags say and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--measured", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    if flags.measured:
        return _measured(flags.measured[0], flags.measured[1:])
    from benchmarks.timing import machine, show  # which load what the measured process shall

    rows = []
    for _ in range(flags.repeats):
        rows += [(f"demo, {k}", *start) for k, start in demo(flags.steps).items()]
        rows += [(f"ResNet-20's first step, {k}", *s) for k, s in first_step().items()]
    show(
        f"processors' seconds of a process; targets: demo {FIRST_TARGET:.0f}, again "
        f"{AGAIN_TARGET:.0f}, {PROGRAMS_TARGET} programs; first step over the loop by hand "
        f"{STEP_TARGETS['first']}, again {STEP_TARGETS['again']}",
        ("what", "seconds", "programs"),
        rows,
    )
    print(machine())


if __name__ == "__main__":
    main()
