"""The headline measures as one table in Markdown, on the screen and in measured.md.

Run: python -m benchmarks [--only step,start]
  `make bench` does. Some parts alone (`--only`) leave measured.md as it is.

Each part runs in a fresh process: what one has compiled, allocated or pinned is nothing to others.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.headlines import PARTS, Row
from benchmarks.timing import Ratio, machine
from bitjax.files.writing import write_text

MEASURED = Path(__file__).parent / "measured.md"
INTRODUCTION = """# Headline measures

`make bench` wrote this file. Ratios are medians of paired ratios with their 95 % intervals, seconds
are medians. The network is ResNet-20 in float32, the batch 128. Rows without a target are for
comparison: float again, and a float step whose activations XLA keeps, as it does those that are
quantized (`KeptResNet` in `benchmarks/step_time.py`). The load is that at the start.
"""


def table(rows: Iterable[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| what | ratio | target | reached | command |", "|---|---|---|---|---|"]
    for row in rows:
        number = row.value.median if isinstance(row.value, Ratio) else row.value
        value = (
            str(row.value).replace("  ", " ") if isinstance(row.value, Ratio) else f"{number:.4g}"
        )
        target, reached = "", ""
        if row.target is not None:
            target = f"{row.target:g} {row.unit}".strip()
            reached = "yes" if number <= row.target else "no"
        cells = row.what, f"{value} {row.unit}".strip(), target, reached
        lines.append(f"| {' | '.join(cells)} | `python -m benchmarks.{row.command}` |")
    return "\n".join(lines) + "\n"


def apart(part: str) -> list[Row]:
    """The rows of a part, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks", "--part", part]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rows = [Row(*values) for values in json.loads(ran.stdout.splitlines()[-1])]
    return [
        row._replace(value=Ratio(*row.value)) if isinstance(row.value, list) else row
        for row in rows
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the parts that the flags name; exits with 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help=f"of {', '.join(PARTS)}, with commas between")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    if flags.part:
        return print(json.dumps(PARTS[flags.part]()))
    names = [name for name in flags.only.split(",") if name] or list(PARTS)
    if unknown := set(names) - set(PARTS):
        parser.error(f"--only must be of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    where, began, rows, failed = machine(), time.monotonic(), [], []
    for name in names:
        print(f"bench: {name} ({time.monotonic() - began:.0f} s so far)", file=sys.stderr)
        try:
            rows += apart(name)
        except subprocess.CalledProcessError:
            failed.append(name)  # it has said why
    text = f"{table(rows)}\n{where}; {(time.monotonic() - began) / 60:.0f} minutes in all.\n"
    print(text)
    if failed:
        sys.exit(f"bench: failed in {', '.join(failed)}; measured.md stays as it is")
    if set(names) == set(PARTS):
        write_text(MEASURED, f"{INTRODUCTION}\n{text}")


if __name__ == "__main__":
    main()
