"""Compares run folders: a table, and files with all of it.

bitjax compare runs/* [--out report.html] [--csv F] [--markdown F] [--json F]
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bitjax.cli.arguments import Parser, a_folder
from bitjax.files.writing import unwritten, write_text
from bitjax.launch.command import command_of
from bitjax.report.comparison import Comparison, compare
from bitjax.report.figures import COSTS
from bitjax.report.html import page
from bitjax.report.tables import csv_text, json_value, markdown, terminal
from bitjax.runs.records import read_runs
from bitjax.runs.rows import json_text


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what is wrong with it ends in one line."""
    parser = Parser(__doc__, "bitjax compare")
    add = parser.add_argument
    add("runs", nargs="+", type=a_folder, help="run folders, or folders that hold some")
    parser.add_file("out", "page to write: one file, works offline")
    parser.add_file("csv", "file to write with a line a run")
    parser.add_file("markdown", "file to write with the tables")
    parser.add_file("json", "file to write with everything as data")
    add("--group", action="store_true", help="allow several models, data or evaluation sets")
    add(
        "--cost",
        default="bops",
        choices=COSTS,
        help="cost axis of the Pareto front",
        metavar="COST",
    )
    add("--only", default="", help="regular expression that a run's name or folder has")
    add("--baseline", default="", help="row that differences are to; else the float one")
    add("--confidence", type=float, default=0.95, help="confidence level of intervals, in (0, 1)")
    add("--title", default="Comparison of runs", help="title of the page")
    return parser.read(argv)


def print_comparison(comparison: Comparison) -> None:
    """Prints each group's table, its warnings below it."""
    # Where nobody looks at a terminal, a table need not fit into one.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    for group in comparison.groups:
        console.print(terminal(group, comparison))
        for warning in group.warnings:
            console.print(warning, markup=False, soft_wrap=True)


def _expression(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"--only must be a regular expression, got {text!r}: {error}.") from None


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the folders named on the command line, prints their tables and writes the files."""
    args = parse(argv)
    wanted = _expression(args.only)
    if not 0 < args.confidence < 1:
        raise ValueError(f"--confidence must be in (0, 1), got {args.confidence}.")
    found, skipped = read_runs(args.runs)
    runs = [run for run in found if wanted.search(run.name) or wanted.search(run.folder)]
    for left in skipped:
        print(f"not compared: {left.folder} {left.reason}")
    if not runs:
        only = f" and a name with {args.only!r}" if args.only else ""
        raise ValueError(
            f"nothing to compare: looked for folders with a result.json of status 'finished'"
            f"{only} in {' '.join(args.runs[:3])}{' ...' if len(args.runs) > 3 else ''}; "
            f"{len(found)} are finished, {len(skipped)} are not fit."
        )
    comparison = compare(
        runs,
        skipped=skipped,
        group=args.group,
        cost=args.cost,
        baseline=args.baseline,
        confidence=args.confidence,
    )
    print_comparison(comparison)
    if args.out:
        commands = {run.folder: command_of(run) for run in runs}
        beside = os.path.dirname(args.out) or "."
        _write(args.out, page(comparison, commands, title=args.title, beside=beside))
    if args.csv:
        _write(args.csv, csv_text(comparison))
    if args.markdown:
        _write(args.markdown, markdown(comparison))
    if args.json:
        _write(args.json, json_text(json_value(comparison)))


def _write(path: str, text: str) -> None:
    """Writes a file and prints its name; a pipe or a device that is named takes the text."""
    if os.path.exists(path) and not os.path.isfile(path):
        try:
            Path(path).write_text(text, "utf-8")
        except OSError as error:
            raise unwritten(path, len(text), error) from error
    else:
        write_text(path, text)
    print(path)
