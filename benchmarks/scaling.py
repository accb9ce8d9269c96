"""What a step's devices tell each other, read off the compiled program, and what that predicts.

Run: python -m benchmarks.scaling [--devices 8,256] [--variant "blend learned"] [--batch 128] ...

The devices are forced on the CPU, in a process for each count, and nothing is run. `scaling.md`
holds what it printed.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

import bitjax as bj
from benchmarks.step_time import stages
from benchmarks.timing import machine, show
from bitjax.frameworks.costs import site_costs
from bitjax.models import CifarResNet
from bitjax.training.parallel import placement
from bitjax.training.state import initial_state
from bitjax.training.step import make_train_step

# What a name in the program says about its collective; the first that is found decides.
KINDS = {
    "merge_gradients_params": "gradients of parameters",
    "merge_gradients_quant": "gradients of quantizers",
    "merge_metrics": "loss and accuracy",
    "/quantize/": "ranges of quantizers",
    "": "batch normalisations",
}
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}
# op, the shapes it gives, and the names of what was merged into it, one for each.
_COLLECTIVE = re.compile(
    r"= (?P<shapes>\(.*?\)|\S+) (?P<op>all-reduce|all-gather|reduce-scatter|all-to-all|"
    r'collective-permute)(-start)?\(.*op_name="(?P<names>[^"]*)"'
)


class Traffic(NamedTuple):
    """Tensors and bytes of one kind in one step of one device."""

    tensors: int
    bytes: int


class Program(NamedTuple):
    """A compiled step's collectives.

    Attributes:
      traffic: by kind.
      calls: all-reduces after the compiler has merged neighbours.
      parameters: bytes of the model's parameters.
      quantizers: bytes of what quantizers learn.
      macs: of an example.
    """

    traffic: Mapping[str, Traffic]
    calls: int
    parameters: int
    quantizers: int
    macs: int


class Machine(NamedTuple):
    """What the prediction assumes of an accelerator; every number is a flag.

    Attributes:
      rate: floating-point operations per second that a step achieves.
      inside: bytes per second to the others of a host, one way.
      between: bytes per second to other hosts.
      together: accelerators of a host.
      hop: seconds that the smallest message takes.
    """

    rate: float = 0.1 * 312e12
    inside: float = 300e9
    between: float = 25e9
    together: int = 8
    hop: float = 5e-6


def collectives(text: str) -> tuple[dict[str, Traffic], int]:
    """The all-reduces of a compiled program by kind, and how many calls they are.

    Raises:
      ValueError: there is another collective, or one whose parts cannot be told apart.
    """
    found = dict.fromkeys(KINDS.values(), Traffic(0, 0))
    calls = 0
    for match in _COLLECTIVE.finditer(text):
        if match["op"] != "all-reduce":
            raise ValueError(f"the step has a collective that is no all-reduce: {match[0][:200]}")
        calls += 1
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", match["shapes"])
        names = match["names"].split(":")
        if len(names) != len(shapes):
            raise ValueError(f"{len(names)} names for {len(shapes)} tensors: {match[0][:200]}")
        for (dtype, shape), name in zip(shapes, names, strict=True):
            kind = next(kind for part, kind in KINDS.items() if part in name)
            size = BYTES[dtype] * math.prod(int(n) for n in shape.split(",") if n)
            found[kind] = Traffic(found[kind].tensors + 1, found[kind].bytes + size)
    return found, calls


def compile_step(net: CifarResNet, variant: str, batch: int) -> Program:
    """Compiles a stage's step for all devices of this process, `batch` examples each."""
    stage = stages()[variant]
    model = bj.Quantized(net, tuple(stage.rules))
    x = jnp.zeros((2, 32, 32, 3))

    def fresh():
        variables = model.init(jax.random.key(0), x)
        return initial_state(stage, variables, key=jax.random.PRNGKey(0))

    state = jax.eval_shape(fresh)
    place = placement("shard_map")
    costs = site_costs(net, x)
    step = place.train(
        make_train_step(model, stage, costs, lambda key, x: x, axis_name=place.axis_name)
    )
    count = batch * len(place.devices)
    example = {
        "image": jax.ShapeDtypeStruct((count, 32, 32, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((count,), jnp.int32),
    }
    traffic, calls = collectives(step.lower(state, example, {}).compile().as_text())
    parameters, quantizers = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (state.params, state.quant)
    )
    macs = sum(cost.macs for cost in costs.values() if cost.role == "kernel")
    return Program(traffic, calls, parameters, quantizers, int(macs))


def compile_apart(devices: int, variant: str, depth: int, width: int) -> Program:
    """`compile_step` in a process that sees so many devices, two examples on each."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--inner", f"--variant={variant}"]
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [*command, f"--depth={depth}", f"--width={width}"],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    traffic, *rest = json.loads(done.stdout)
    return Program({kind: Traffic(*t) for kind, t in traffic.items()}, *rest)


def predict(program: Program, batch: int, devices: int, on: Machine) -> tuple[float, float]:
    """Seconds of a step's arithmetic and of its all-reduces, nothing of which overlaps.

    Arithmetic: 6 operations per multiply-add (forward, and both products of backward). All-reduces:
    2 (n - 1) / n * bytes / bandwidth of a ring, plus 2 log2(n) hops for each call.

    Example:
      >>> program = Program({"gradients of parameters": Traffic(1, 100)}, 1, 100, 0, 10)
      >>> on = Machine(rate=60.0, inside=100.0, between=1.0, together=8, hop=1.0)
      >>> predict(program, 2, 2, on)
      (2.0, 3.0)
    """
    arithmetic = 6 * program.macs * batch / on.rate
    if devices == 1:
        return arithmetic, 0.0
    bandwidth = on.inside if devices <= on.together else on.between
    size = sum(kind.bytes for kind in program.traffic.values())
    ring = 2 * (devices - 1) / devices * size / bandwidth
    return arithmetic, ring + program.calls * 2 * math.ceil(math.log2(devices)) * on.hop


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles what the flags say and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", default="8,256", help="counts with commas between")
    parser.add_argument("--variant", default="blend learned", help="a stage of step_time")
    parser.add_argument("--batch", default="128,1024", help="examples of a device, likewise")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--width", type=int, default=16)
    for name, value in Machine._field_defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    if flags.inner:
        net = CifarResNet(depth=flags.depth, width=flags.width)
        print(json.dumps(compile_step(net, flags.variant, batch=2)))
        return
    counts = [int(n) for n in flags.devices.split(",")]
    programs = {n: compile_apart(n, flags.variant, flags.depth, flags.width) for n in counts}
    rows = []
    for kind in KINDS.values():
        cells = [program.traffic[kind] for program in programs.values()]
        rows.append((kind, *(n for cell in cells for n in cell)))
    first = programs[counts[0]]
    show(
        f"all-reduces in a step of CifarResNet({flags.depth}), {flags.variant}; parameters "
        f"{first.parameters} bytes, learned by quantizers {first.quantizers} bytes; calls after "
        f"merging: {', '.join(f'{p.calls} on {n} devices' for n, p in programs.items())}",
        ("kind", *(f"{what}, {n} devices" for n in counts for what in ("tensors", "bytes"))),
        rows,
    )
    on = Machine(*(getattr(flags, name) for name in Machine._fields))
    program, rows = programs[counts[-1]], []
    for batch in map(int, flags.batch.split(",")):
        for n in (8, 64, 256):
            work, talk = predict(program, batch, n, on)
            share = work / (work + talk)
            rows.append((batch, n, 1e3 * work, 1e3 * talk, f"{share:.0%}"))
    show(
        f"predicted efficiency, nothing overlapping: {on}",
        ("examples per device", "accelerators", "arithmetic ms", "all-reduces ms", "efficiency"),
        rows,
    )
    print(machine())


if __name__ == "__main__":
    main()
