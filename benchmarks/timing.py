"""What the benchmarks share: interleaved timing, paired ratios with an interval, a table."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import flax
import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table


class Ratio(NamedTuple):
    """A median of ratios and the 95 % bootstrap interval of that median."""

    median: float
    low: float
    high: float

    def __str__(self):
        return f"{self.median:.3f}  [{self.low:.3f}, {self.high:.3f}]"


def interleave(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every function, called once in each round.

    Each round begins one function later than the last, so that none always follows the same one.
    A function must wait for its own result.

    Args:
      functions: by name.
      rounds: that count.
      warmup: rounds before them.
      clock: seconds; `time.process_time` leaves out what other processes do meanwhile.

    Returns:
      A list of `rounds` times by name.
    """
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(warmup + rounds):
        shift = i % len(names)
        for name in names[shift:] + names[:shift]:
            began = clock()
            functions[name]()
            elapsed = clock() - began
            if i >= warmup:
                seconds[name].append(elapsed)
    return seconds


def paired_ratio(seconds: Sequence[float], base: Sequence[float], draws: int = 2000) -> Ratio:
    """The median over rounds of seconds / base in the same round.

    A round's two times share the machine's load, which divides out.

    Example:
      >>> paired_ratio([2.0, 4.0, 3.0], [1.0, 2.0, 1.5]).median
      2.0
    """
    ratios = np.asarray(seconds) / np.asarray(base)
    picks = np.random.default_rng(0).integers(len(ratios), size=(draws, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), (0.025, 0.975))
    return Ratio(float(np.median(ratios)), float(low), float(high))


def ratios(seconds: Mapping[str, Sequence[float]], base: str) -> dict[str, Ratio]:
    """The paired ratio of everything to `base`."""
    return {name: paired_ratio(times, seconds[base]) for name, times in seconds.items()}


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table in Markdown's form, ready for README.md, under its title."""
    table = Table(*columns, box=box.MARKDOWN)
    for row in rows:
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row))
    console = Console(width=max(160, Console().width), highlight=False)  # rows stay whole
    console.print(f"\n{title}\n")
    console.print(table)


def median(values: Sequence[float]) -> float:
    """The median, as a float."""
    return float(statistics.median(values))


def machine() -> str:
    """One line: processor, cores, load, device, versions and commit."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), "")
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return (
        f"{cpu or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"{jax.devices()[0].device_kind}; Python {platform.python_version()}, jax "
        f"{jax.__version__}, flax {flax.__version__}; commit {commit.stdout.strip() or 'unknown'}; "
        f"{time.strftime('%Y-%m-%d')}"
    )
