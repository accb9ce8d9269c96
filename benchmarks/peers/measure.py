"""Measures the training steps of two families of variants: a library's, and bitjax's own.

The steps of both are interleaved in one process. A family begins with its float step as a user
writes it, and the same step with the outputs of ReLU kept: XLA's CPU library works out `relu` anew
in each loop that reads it, which costs a float step a quarter of its time, and quantizers spare it.
"""

import argparse
from collections.abc import Callable, Sequence
from importlib.metadata import version

import jax
import jax.numpy as jnp

from benchmarks.peers.linen import Batch, Family
from benchmarks.step_time import KeptResNet, prepare, stages, synthetic_batch, time_steps
from benchmarks.timing import machine, median, paired_ratio, show
from bitjax.models import resnet20

BITJAX = ("lsq w4a4", "uniform w8a8", "blend learned")
LEARNED = "bitjax blend learned"


def bitjax_family(batch: Batch) -> Family:
    """bitjax's steps, with their test for numbers that are not finite."""
    made = {name: prepare(resnet20(), stages()[name], batch) for name in ("float", *BITJAX)}
    kept = prepare(KeptResNet(), stages()["float"], batch)
    found = {"float": made.pop("float"), "float, kept": kept, **made}
    return {f"bitjax {name}": variant for name, variant in found.items()}


def main(
    packages: Sequence[str], make: Callable[[Batch], Family], arguments: Sequence[str] | None = None
) -> None:
    """Measures the family that `make` makes beside bitjax's, and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--batch", type=int, default=128)
    flags = parser.parse_args(arguments)
    batch = synthetic_batch(flags.batch)
    theirs = make(batch)
    first = next(iter(theirs))
    step, state = theirs[first]
    theirs[f"{first} again"] = step, jax.tree.map(jnp.copy, state)  # the control
    families = (theirs, bitjax_family(batch))
    prepared = {name: variant for family in families for name, variant in family.items()}
    times = time_steps(prepared, batch, flags.rounds, compiles=1)
    seconds = {name: found.step for name, found in times.items()}
    rows = []
    for family in families:
        bases = [seconds[name] for name in list(family)[:2]]
        for name in family:
            over = [paired_ratio(seconds[name], base) for base in bases]
            learned = paired_ratio(seconds[LEARNED], seconds[name])
            total = times[name].trace[0] + times[name].compile[0]
            rows.append((name, median(seconds[name]), *over, learned, total))
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    show(
        f"{versions}: ResNet-20, batch {flags.batch}, float32; {flags.rounds} rounds, interleaved; "
        "medians of paired ratios, with 95 % intervals",
        (
            "variant",
            "step s",
            "over own float",
            "over own float, kept",
            f"{LEARNED} over it",
            "compile s",
        ),
        rows,
    )
    print(machine())
