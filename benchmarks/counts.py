"""Counts what XLA made of ResNet-20's steps, and fails where a count has grown by more than 2 %.

Run: python -m benchmarks.counts [--write]
  `make counts` and `.ci/run` compare with counts.json, which --write brings up to date.

Nothing is run, and nothing is timed: a count is the same on a busy machine and on any number of
cores. It is not the same in another version of JAX, so that counts.json has a section for each.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

import bitjax as bj
from benchmarks.compile_time import count
from benchmarks.integer_inference import RULES
from benchmarks.step_time import prepare, stages, synthetic_batch
from benchmarks.timing import show
from bitjax.files.writing import write_text
from bitjax.models import resnet20
from bitjax.training.step import make_eval_step

COMMITTED = Path(__file__).parent / "counts.json"
SLACK = 0.02
STEPS = ("float", "lsq w4a4", "blend learned")
EVALUATED = "lsq w4a4"

Counts = Mapping[str, Mapping[str, int]]  # by program, by what is counted


def counted(compiled: jax.stages.Compiled) -> dict[str, int]:
    """The counts of one compiled program."""
    memory = compiled.memory_analysis()
    return {
        "bytes accessed": int(compiled.cost_analysis()["bytes accessed"]),
        "bytes of temporaries": memory.temp_size_in_bytes,
        **count(compiled.as_text() or "")._asdict(),
    }


def programs(batch_size: int = 128) -> dict[str, dict[str, int]]:
    """The counts of the training steps and of an evaluation step, from shapes alone."""
    net, batch, every = resnet20(), synthetic_batch(batch_size), stages()
    found = {}
    for name in STEPS:
        step, state = prepare(net, every[name], batch, shapes=True)
        compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
        found[f"{name}, training step"] = counted(compiled)
    model = bj.Quantized(net, tuple(RULES[EVALUATED]))
    variables = jax.eval_shape(model.init, jax.random.key(0), batch["image"])
    step = make_eval_step(model, lambda key, images: images)
    lowered = jax.jit(step).lower(variables, {**batch, "mask": jnp.ones(batch_size)})
    return {**found, f"{EVALUATED}, evaluation step": counted(lowered.compile())}


def grown(found: Counts, committed: Counts, slack: float = SLACK) -> list[str]:
    """A line for every count that is larger than the committed one, or that has none.

    Example:
      >>> grown({"step": {"fusions": 110}}, {"step": {"fusions": 100}})
      ['step: fusions grew from 100 to 110, by 10.0 %']
    """
    lines = []
    for program, numbers in found.items():
        for what, number in numbers.items():
            before = committed.get(program, {}).get(what)
            if before is None:
                lines.append(f"{program}: {what} has no committed count, it is {number:,}")
            elif number > before * (1 + slack):
                more = f"by {number / before - 1:.1%}".replace("%", " %")
                lines.append(f"{program}: {what} grew from {before:,} to {number:,}, {more}")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the counts beside the committed ones; exits with 1 if one has grown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="make these the committed counts")
    flags = parser.parse_args(arguments)
    os.environ.pop("XLA_FLAGS", None)  # read with the first program: counts are those of users
    jax.config.update("jax_enable_compilation_cache", False)
    every = json.loads(COMMITTED.read_text())
    committed, found = every.get(jax.__version__, {}), programs()
    rows = [
        (program, what, f"{number:,}", f"{committed.get(program, {}).get(what, 0):,}")
        for program, numbers in found.items()
        for what, number in numbers.items()
    ]
    show(f"jax {jax.__version__}, batch 128", ("program", "count", "now", "committed"), rows)
    if flags.write:
        every = {**every, jax.__version__: found}
        write_text(COMMITTED, json.dumps(every, indent=1, sort_keys=True) + "\n")
    elif lines := grown(found, committed):
        print(*lines, sep="\n", file=sys.stderr)
        sys.exit(
            f"counts: {len(lines)} new or grown by more than {100 * SLACK:.0f} %. Accept them, if "
            "there is a good reason, by `make counts WRITE=--write`, and give it in the commit."
        )


if __name__ == "__main__":
    main()
