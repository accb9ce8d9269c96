"""Seconds of the processors to trace and compile a training step, by depth, and what XLA compiled.

Run: python -m benchmarks.compile_time [--depths 20,56] [--repeats 3] [--variants lsq w4a4,...]

XLA's CPU compiler compiles equal fusions once. So what a step costs is counted beside its seconds:
instructions (every pass goes through all of them), fusions, and different fusions (each goes
through MLIR and LLVM).
"""

import argparse
import re
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.step_time import prepare, stages, synthetic_batch
from benchmarks.timing import Ratio, machine, median, paired_ratio, show
from bitjax.models import CifarResNet

VARIANTS = ("float", "lsq w4a4", "frozen", "blend minmax", "blend learned")
TARGET = 2.0


class Program(NamedTuple):
    """Counts of a compiled program."""

    instructions: int
    fusions: int
    different: int  # fusions of which no other has the same instructions


class Row(NamedTuple):
    """What a variant's compilation takes: seconds, those over float's, and counts."""

    depth: int
    variant: str
    trace: float
    xla: float
    total: Ratio
    program: Program


def count(text: str) -> Program:
    """Counts a compiled program's text.

    Example:
      >>> two = jax.jit(lambda x, y: (2 * x + 1, 2 * y + 1))
      >>> count(two.lower(1.0, 2.0).compile().as_text())[1:]
      (2, 1)
    """
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if opened := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            lines = bodies.setdefault(opened[1], [])
        elif " = " in line and line.startswith(" "):
            lines.append(line)
    called = [found for line in text.splitlines() if (found := re.search(r" fusion\(.*", line))]
    names = [re.search(r"calls=%?([\w.\-]+)", found[0]) for found in called]
    bare = {_bare(bodies.get(name[1], [])) for name in names if name}
    return Program(sum(map(len, bodies.values())), len(called), len(bare))


def _bare(body: Sequence[str]) -> str:
    """A fusion without what does not make it another one: names and where they came from."""
    names: dict[str, str] = {}
    text = re.sub(r", (metadata|backend_config)=\{.*", "", "\n".join(body))
    return re.sub(r"%[\w.\-]+", lambda name: names.setdefault(name[0], f"%{len(names)}"), text)


def measure(depth: int, names: Sequence[str], batch: int, repeats: int) -> list[Row]:
    """The table's rows of one depth; the variants take turns."""
    images, every = synthetic_batch(batch), stages()
    net = CifarResNet(depth=depth)
    prepared = {name: prepare(net, every[name], images) for name in names}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    programs = {}
    for _ in range(repeats):
        for name, (step, state) in prepared.items():
            jax.clear_caches()  # as in a fresh process: nothing traced before
            began = time.process_time()  # of all threads: XLA compiles in several
            lowered = jax.jit(step, donate_argnums=0).lower(state, images)
            middle = time.process_time()
            compiled = lowered.compile()
            seconds[name].append((middle - began, time.process_time() - middle))
            programs[name] = count(compiled.as_text() or "")
    totals = {name: [sum(pair) for pair in pairs] for name, pairs in seconds.items()}
    rows = []
    for name in names:
        traced, compiled = (median(part) for part in zip(*seconds[name], strict=True))
        ratio = paired_ratio(totals[name], totals[names[0]])
        rows.append(Row(depth, name, traced, compiled, ratio, programs[name]))
    return rows


def sharing(size: int = 200) -> list[tuple]:
    """Seconds of XLA for `size` small fusions that are equal, or differ in a number or a place."""

    def chain(x: jax.Array, add: float) -> jax.Array:
        return jnp.maximum(1.5 * x + add, 0.5 * x - add)

    many, vector = [jnp.float32(1.0)] * size, jnp.ones(size)
    functions = {
        "equal": (lambda *xs: [chain(x, 1.0) for x in xs], many),
        "another constant in each": (
            lambda *xs: [chain(x, 1.0 + i) for i, x in enumerate(xs)],
            many,
        ),
        "another slice of one vector in each": (
            lambda v: [chain(v[i], 1.0) for i in range(size)],
            [vector],
        ),
    }
    rows = []
    for name, (function, inputs) in functions.items():
        lowered = jax.jit(function).lower(*inputs)
        began = time.process_time()
        compiled = lowered.compile()
        spent = time.process_time() - began
        rows.append((name, spent, *count(compiled.as_text() or "")))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the flags say and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depths", default="20,56")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    flags = parser.parse_args(arguments)
    names = flags.variants.split(",")
    if unknown := set(names) - set(stages()):
        parser.error(f"--variants must be of {list(stages())}, got {sorted(unknown)}")
    names = ["float", *(name for name in names if name != "float")]
    jax.config.update("jax_enable_compilation_cache", False)
    counted = ("instructions", "fusions", "different")
    show("small fusions, processors' seconds", ("they are", "XLA s", *counted), sharing())
    rows = []
    for depth in map(int, flags.depths.split(",")):
        found = measure(depth, names, flags.batch, flags.repeats)
        rows += [(*row[:-1], *row.program) for row in found]
    columns = ("depth", "variant", "trace s", "XLA s", "trace to XLA", *counted)
    show(f"processors' seconds, medians of {flags.repeats}; target {TARGET}", columns, rows)
    print(machine())


if __name__ == "__main__":
    main()
