"""What integers cost: evaluation over that of levels and of floats, and deployed models.

`evaluation` compares the compiled evaluation step on integers with the one on decoded levels, which
it was before, and with the float model's: time, compilation, temporary memory. `inference` compares
deployed models in ONNX Runtime and in JAX. Everything runs on one core, and seconds are the
processor's, so that other processes count little.

Run: python -m benchmarks.integer_inference [--rounds 25] [--compiles 3] [--only evaluation]
"""

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bitjax as bj
from benchmarks.timing import Ratio, interleave, machine, median, paired_ratio, ratios, show
from bitjax.models import SmallCNN, resnet20
from bitjax.program import run as program_run
from bitjax.training.step import make_eval_step

BOTH = bj.rule("(.*/)?kernel|stem/input", bj.lsq(bits=4)), bj.rule(".*", bj.lsq(4, signed=False))
RULES = {"lsq w4a4": BOTH, "uniform w8a8": (bj.rule(".*", bj.uniform(bits=8)),)}
OVER_FLOAT_TARGET = 1.1
EVALUATION_TARGETS = f"over levels 1.05, over float {OVER_FLOAT_TARGET}"
INFERENCE_TARGET = "qdq of ResNet-20 with sums 0.75"


def one_core() -> None:
    """Pins the process to one core; call it before JAX starts its threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


class Net(NamedTuple):
    """A float model with a batch."""

    model: Any
    variables: Any
    x: jax.Array


def net(model: Any, shape: Sequence[int]) -> Net:
    """A model at its start, which costs as much as a trained one."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))
    return Net(model, jax.jit(model.init)(jax.random.key(0), x[:2]), x)


def int8_rules() -> tuple[bj.Rule, ...]:
    """Those of `configs/cifar10/resnet20_int8.py`."""
    eight = {"bits": 8, "range": "mse", "scale": "power_of_two"}
    kernel = bj.uniform(**eight, signed=True, narrow=True, granularity="per_channel")
    return (
        bj.rule(".*/kernel", kernel),
        bj.rule("stem/input|.*/sum0/left", bj.uniform(**eight, signed=True)),
        bj.rule(".*", bj.uniform(**eight, signed=False)),
    )


# ---- the evaluation step -------------------------------------------------------------------------


class Evaluated(NamedTuple):
    """What an evaluation step costs beside another one."""

    step: Ratio
    compilation: Ratio
    temporaries: float  # bytes over bytes


def _compiled(model, variables, batch):
    """The step, and the seconds that it took to trace, lower and compile."""
    jax.clear_caches()  # as in a fresh process
    began = time.process_time()
    step = make_eval_step(model, lambda key, images: images)
    compiled = jax.jit(step).lower(variables, batch).compile()
    return compiled, time.process_time() - began


def evaluation(net: Net, rules: Sequence[Any], rounds: int, compiles: int) -> dict[str, Evaluated]:
    """The step on integers over that on levels and over the float model's, which is a control."""
    model = bj.Quantized(net.model, tuple(rules))
    quantized = bj.attach(model, net.variables, net.x)
    batch = {"image": net.x, "label": jnp.zeros(len(net.x), int), "mask": jnp.ones(len(net.x))}
    forms = {
        "float": (net.model, net.variables),
        "float again": (net.model, net.variables),
        "levels": (model, quantized),
        "integers": (model, quantized),
    }
    steps, seconds = {}, {name: [] for name in forms}
    exact = program_run.EXACT
    for _ in range(compiles):
        for name, form in forms.items():
            # Without a product that may be exact, evaluation multiplies levels as training does.
            program_run.EXACT = () if name == "levels" else exact
            try:
                steps[name], took = _compiled(*form, batch)
            finally:
                program_run.EXACT = exact
            seconds[name].append(took)

    def calls(name):
        variables = forms[name][1]
        return lambda: jax.block_until_ready(steps[name](variables, batch))

    times = interleave({n: calls(n) for n in forms}, rounds, 2, clock=time.process_time)
    room = {n: step.memory_analysis().temp_size_in_bytes for n, step in steps.items()}
    pairs = [("float again", "float"), ("levels", "float"), ("integers", "float")]
    return {
        f"{name} over {base}": Evaluated(
            paired_ratio(times[name], times[base]),
            paired_ratio(seconds[name], seconds[base]),
            room[name] / room[base],
        )
        for name, base in [*pairs, ("integers", "levels")]
    }


# ---- deployed models -----------------------------------------------------------------------------


def _session(proto, x):
    """A call of an ONNX model in ONNX Runtime, by one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: np.asarray(x)}
    return lambda: session.run(None, feed)


def _jitted(model, variables, x):
    """A call of a compiled model."""
    compiled = jax.jit(model.apply).lower(variables, x).compile()
    return lambda: jax.block_until_ready(compiled(variables, x))


def forms(net: Net, rules: Sequence[Any], sums: bool) -> dict[str, Callable[[], object]]:
    """A model's forms by name; the first one is the base of the ratios."""
    left = bj.Quantized(net.model)  # without rules it stays a float model
    floats = bj.deploy(left, net.variables, net.x)
    model = bj.Quantized(net.model, tuple(rules), sums=sums)
    deployed = bj.deploy(model, bj.attach(model, net.variables, net.x), net.x)
    integers = bj.integer_model(deployed, net.x)

    def onnx(what, profile):
        return _session(bj.to_onnx(what, net.x, profile=profile), net.x)

    return {
        "ONNX Runtime, float": onnx(floats, "qdq"),
        "ONNX Runtime, float again": onnx(floats, "qdq"),
        "ONNX Runtime, qdq": onnx(deployed, "qdq"),
        "ONNX Runtime, integers": onnx(deployed, "integers"),
        "JAX, float": _jitted(net.model, net.variables, net.x),
        "JAX, evaluation": _jitted(deployed.model, deployed.variables, net.x),
        "JAX, integer_model": lambda: jax.block_until_ready(integers(net.x)),
    }


def inference(
    net: Net, rules: Sequence[Any], rounds: int, sums: bool = False
) -> tuple[dict[str, Ratio], dict[str, float]]:
    """Ratios to the first form, and seconds."""
    ways = forms(net, rules, sums)
    times = interleave(ways, rounds, 2, clock=time.process_time)
    return ratios(times, next(iter(ways))), {name: median(t) for name, t in times.items()}


def _show_evaluation(rounds, compiles):
    nets = {"ResNet-20": net(resnet20(), (128, 32, 32, 3)),
            "SmallCNN": net(SmallCNN(10), (128, 28, 28, 1))}  # fmt: skip
    rows = []
    for name, one in nets.items():
        for quantizers, rules in RULES.items():
            found = evaluation(one, rules, rounds, compiles)
            rows += [(name, quantizers, what, *costs) for what, costs in found.items()]
    title = f"an evaluation step, batch 128, {rounds} rounds; targets: step {EVALUATION_TARGETS}"
    show(title, ("model", "quantizers", "what", "step", "compilation", "temporaries"), rows)


def _show_inference(rounds):
    models: Mapping[str, Any] = {
        **{name: (resnet20(), rules, False) for name, rules in RULES.items()},
        "int8 with sums": (resnet20(norm="none"), int8_rules(), True),
    }
    rows = []
    for name, (model, rules, sums) in models.items():
        for size in (1, 128):
            count = rounds * (4 if size == 1 else 1)
            over, took = inference(net(model, (size, 32, 32, 3)), rules, count, sums)
            rows += [(name, size, form, over[form], 1e3 * took[form]) for form in over]
    title = f"ResNet-20, one thread; target at either batch: {INFERENCE_TARGET}"
    show(title, ("quantizers", "batch", "form", "over ONNX Runtime's float", "ms"), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the flags say and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--compiles", type=int, default=3)
    parser.add_argument("--only", choices=("evaluation", "inference"))
    flags = parser.parse_args(arguments)
    one_core()
    if flags.only != "inference":
        _show_evaluation(flags.rounds, flags.compiles)
    if flags.only != "evaluation":
        _show_inference(flags.rounds)
    print(machine())


if __name__ == "__main__":
    main()
