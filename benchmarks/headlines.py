"""The headline measures, by part: each takes one benchmark's functions and gives rows of one table.

`python -m benchmarks` runs them, each part in a process of its own.
"""

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.timing import Ratio, paired_ratio


class Row(NamedTuple):
    """One measure.

    Attributes:
      what: it is.
      value: a ratio, with its interval if it was sampled, or a number of `unit`.
      target: the most that the value may be; None for controls.
      command: that measures it, and more beside it.
      unit: of a value that is no ratio.
    """

    what: str
    value: Ratio | float
    target: float | None
    command: str
    unit: str = ""


def step(rounds: int = 25) -> list[Row]:
    """Training steps of ResNet-20 over the float step, and over one whose activations are kept."""
    from benchmarks import step_time as own
    from bitjax.models import resnet20

    targets = {
        "lsq w4a4": own.FIXED_TARGET,
        "uniform w8a8": own.FIXED_TARGET,
        "blend learned": own.STEP_TARGET,
    }
    names = (*own.CONTROL, own.KEPT, *targets)
    chosen = {name: stage for name, stage in own.variants().items() if name in names}
    found = own.times(resnet20(), chosen, own.synthetic_batch(128), rounds, compiles=1)
    command = f"step_time --rounds {rounds}"

    def over(name, base, target):
        ratio = paired_ratio(found[name].step, found[base].step)
        return Row(f"step: {name} over {base}", ratio, target, command)

    first, again = own.CONTROL
    return [
        over(again, first, None),
        *(over(name, first, target) for name, target in targets.items()),
        over(own.KEPT, first, None),
        *(over(name, own.KEPT, None) for name in targets),
    ]


def compilation(repeats: int = 5) -> list[Row]:
    """Processors' seconds from trace to XLA of a step with learned bits."""
    import jax

    from benchmarks import compile_time as own

    jax.config.update("jax_enable_compilation_cache", False)
    names = ("float", "lsq w4a4", "blend learned")
    command = f"compile_time --depths 20 --repeats {repeats}"
    return [
        Row(f"compilation: {row.variant} over float", row.total, own.TARGET, command)
        for row in own.measure(20, names, 128, repeats)[1:]
    ]


def memory() -> list[Row]:
    """What the quantizer that keeps most keeps for its backward pass."""
    from benchmarks import backward_memory as own

    rows = []
    for dtype in ("float32", "bfloat16"):
        kept = own.relative_residuals(own.SHAPE, dtype)
        del kept[own.NAIVE]
        most = max(kept.values())
        what = f"backward memory over the tensor's, the most of {len(kept)} quantizers, {dtype}"
        rows.append(Row(what, most, own.TARGET, "backward_memory --no-step"))
    return rows


def evaluation(rounds: int = 15) -> list[Row]:
    """An evaluation step on integers over the float model's, on one core."""
    from benchmarks import integer_inference as own
    from bitjax.models import resnet20

    own.one_core()
    net = own.net(resnet20(), (128, 32, 32, 3))
    command = f"integer_inference --only evaluation --rounds {rounds}"
    rows = []
    for name, rules in own.RULES.items():
        found = own.evaluation(net, rules, rounds, compiles=1)
        for what, target in {
            "float again over float": None,
            "integers over float": own.OVER_FLOAT_TARGET,
        }.items():
            rows.append(Row(f"evaluation, {name}: {what}", found[what].step, target, command))
    return rows


def calibration(rounds: int = 25) -> list[Row]:
    """A pass that counts activations over a forward pass."""
    from benchmarks import bottleneck as own
    from benchmarks.timing import ratios

    found = ratios(own.calibration(128, rounds), "forward")
    command = f"bottleneck --rounds {rounds}"
    return [
        Row(f"calibration: {name} over a forward pass", found[name], target, command)
        for name, target in {"forward again": None, own.COUNTED: own.COUNTED_TARGET}.items()
    ]


def start(repeats: int = 3) -> list[Row]:
    """From the command to the end of a short demo, and to ResNet-20's first step."""
    from benchmarks import start as own

    demos = [own.demo() for _ in range(repeats)]
    steps = [own.first_step() for _ in range(repeats)]
    command = f"start --repeats {repeats}"
    rows = []
    for when, target in {"first": own.FIRST_TARGET, "again": own.AGAIN_TARGET}.items():
        seconds = paired_ratio([demo[when].seconds for demo in demos], [1.0] * repeats)
        what = f"start: demo of 40 steps, {when}, processors"
        rows.append(Row(what, seconds, target, command, "s"))
    programs = float(max(demo["first"].programs for demo in demos))
    rows.append(Row("start: the demo's programs", programs, own.PROGRAMS_TARGET, command))
    by_hand = [found["by hand"].seconds for found in steps]
    for when, target in own.STEP_TARGETS.items():
        ratio = paired_ratio([found[when].seconds for found in steps], by_hand)
        what = f"start: ResNet-20's first step, {when}, over a float loop by hand, nothing kept"
        rows.append(Row(what, ratio, target, command))
    return rows


def solving() -> list[Row]:
    """`solve_layers` of ResNet-20, its first call."""
    from benchmarks import solving as own

    wall, processors, reports = own.solving()
    what = f"solve_layers: {len(reports)} layers of ResNet-20, 1,024 images"
    return [
        Row(what, wall, own.TARGET, "solving", "s"),
        Row(f"{what}, processors", processors, None, "solving", "s"),
    ]


PARTS: dict[str, Callable[[], list[Row]]] = {
    "step": step,
    "compilation": compilation,
    "memory": memory,
    "evaluation": evaluation,
    "calibration": calibration,
    "start": start,
    "solving": solving,
}
