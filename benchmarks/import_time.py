"""What `import bitjax` and its names add to `import jax, flax.linen`, in fresh processes.

Run: python -m benchmarks.import_time [--rounds 9]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np

from benchmarks.timing import machine, show

TARGET = 0.1  # seconds

# The control shows what a second import statement costs when there is nothing to load.
_PROGRAM = """
import sys, time
start = time.perf_counter()
import jax, flax.linen
middle = time.perf_counter()
import {module}
getattr({module}, '__all__', None)  # which loads bitjax's names
seconds = middle - start, time.perf_counter() - middle
import json
print(json.dumps([*seconds, "tensorflow" in sys.modules]))
"""
_MODULES = {"bitjax": "bitjax", "control": "flax.linen"}


def measure(rounds: int) -> dict[str, np.ndarray]:
    """[rounds, 3] by variant: seconds of the base, seconds beyond it, whether TensorFlow came."""
    rows: dict[str, list[list[float]]] = {name: [] for name in _MODULES}
    with tempfile.TemporaryDirectory() as folder:
        # With compiled modules, as an installation has them, whatever this environment says.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for i in range(rounds + 1):
            for name, module in _MODULES.items():
                command = [sys.executable, "-c", _PROGRAM.format(module=module)]
                ran = subprocess.run(
                    command, check=True, capture_output=True, text=True, env=environment
                )
                if i:  # the first round fills the disk's cache and compiles the modules
                    rows[name].append(json.loads(ran.stdout))
    return {name: np.asarray(values, float) for name, values in rows.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the flags say and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    flags = parser.parse_args(arguments)
    rows = []
    for name, found in measure(flags.rounds).items():
        base, beyond = found[:, 0], found[:, 1]
        low, middle, high = np.quantile(beyond, (0.25, 0.5, 0.75))
        share = float(np.median(beyond / base))
        loaded = "yes" if found[:, 2].any() else "no"
        rows.append(
            (name, f"{middle:.3f}  [{low:.3f}, {high:.3f}]", float(np.median(base)), share, loaded)
        )
    show(
        f"Seconds of an import beyond jax and flax.linen: median and quartiles of {flags.rounds} "
        f"processes, in turn; target {TARGET} s",
        ("import", "seconds beyond", "jax and flax s", "beyond / jax and flax", "TensorFlow"),
        rows,
    )
    print(machine())


if __name__ == "__main__":
    main()
