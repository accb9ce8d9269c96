"""Prints a finished run, and the files of a model, as tables."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bitjax.report.files import rows_of
from bitjax.runs.exports import ModelFile
from bitjax.runs.records import CACHE, score_of


def console_of() -> Console:
    """Where a command prints; where nobody looks at a terminal, a table need not fit into one."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def print_result(result: Mapping[str, Any], workdir: str | None) -> None:
    """Prints a finished run as a table: score of each stage, bits, sizes."""
    console = Console(highlight=False)
    table = Table(title=escape(f"{result['name']}  seed {result['seed']}"), title_justify="left")
    for name in ("", "value"):
        table.add_column(name, justify="right" if name else "left")
    score = score_of(result)
    for stage in result["stages"]:
        value = score.form.format(stage[score.name])
        table.add_row(
            escape(f"{result['eval_split']} {score.name} after {stage['name']}"), escape(value)
        )
    for name, bits in result["bits"].items():
        label = {"all": "weights and activations", "inner": "without first and last layer"}
        learned = f"  (learned {bits['fractional']:.2f})"
        same = abs(bits["fractional"] - bits["integer"]) < 0.005
        table.add_row(
            f"average bits, {label.get(name, name)}",
            f"{bits['integer']:.2f}{'' if same else learned}",
        )
    cost = result["cost"]
    ratio = cost["float_model_bytes"] / cost["model_bytes"]
    table.add_row("model, kB", f"{cost['model_bytes'] / 1024:.1f}  ({ratio:.1f}x smaller)")
    table.add_row("activations, kB per example", f"{cost['activation_bytes'] / 1024:.1f}")
    if CACHE in cost:
        table.add_row("cache, bytes per token", f"{cost[CACHE]:.1f}")
    table.add_row("bit operations, M per example", f"{cost['bops'] / 1e6:.1f}")
    table.add_row("time, s", f"{result['wall_seconds']:.0f}")
    console.print(table)
    model = result.get("files", {}).get("model", {})
    if "left_out" in model:
        console.print(f"no file of the model: {model['left_out']}", markup=False, soft_wrap=True)
    if workdir:
        files = [*filter(None, [model.get("path")]), "result.json", "bits.csv", "metrics.jsonl"]
        console.print(f"run folder: {workdir}  ({', '.join(files)})", soft_wrap=True)


def files_table(title: str, files: Sequence[ModelFile]) -> Table:
    """The files of a model, and what running them gave."""
    head, rows = rows_of(files)
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 0))
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table
