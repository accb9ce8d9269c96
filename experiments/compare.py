"""Compares run folders: a table, and files with all of it.

python -m experiments.compare runs/* [--out report.html] [--csv F] [--markdown F] [--json F]
"""

import re
import sys
from pathlib import Path

from absl import app, flags
from rich.console import Console

_OUT = flags.DEFINE_string("out", "", "Page to write: one file, works offline.")
_CSV = flags.DEFINE_string("csv", "", "File to write with a line a run.")
_MARKDOWN = flags.DEFINE_string("markdown", "", "File to write with the tables.")
_JSON = flags.DEFINE_string("json", "", "File to write with everything as data.")
_GROUP = flags.DEFINE_bool("group", False, "Allow several models, data or evaluation sets.")
_COST = flags.DEFINE_string("cost", "bops", "Cost of the Pareto front; a wrong name lists them.")
_ONLY = flags.DEFINE_string(
    "only", "", "Regular expression: only runs whose name or folder has it."
)
_BASELINE = flags.DEFINE_string("baseline", "", "Row that differences are to; else the float one.")
_CONFIDENCE = flags.DEFINE_float("confidence", 0.95, "Of intervals, between 0 and 1.")
_TITLE = flags.DEFINE_string("title", "Comparison of runs", "Of the page.")


def parse(argv: list[str]) -> list[str]:
    """The flags; what is wrong with them ends in one line."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(f"error: {' '.join(str(error).split())} See --help.")


def main(argv: list[str]) -> None:
    """Reads the folders named on the command line, prints their tables and writes the files."""
    from bitjax.report.comparison import compare
    from bitjax.report.html import page
    from bitjax.report.runs import read_runs
    from bitjax.report.tables import csv_text, json_value, markdown, terminal
    from bitjax.training.metrics import write_json
    from experiments.command import command_of

    if len(argv) < 2:
        sys.exit("error: no run folder is named: python -m experiments.compare runs/*")
    # Where nobody looks at a terminal, a table need not fit into one.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    try:
        wanted = re.compile(_ONLY.value)
        if not 0 < _CONFIDENCE.value < 1:
            raise ValueError(f"--confidence must be in (0, 1), got {_CONFIDENCE.value}.")
        found, skipped = read_runs(argv[1:])
        runs = [run for run in found if wanted.search(run.name) or wanted.search(run.folder)]
        for left in skipped:
            console.print(
                f"not compared: {left.folder} {left.reason}", markup=False, soft_wrap=True
            )
        if not runs:
            only = f" and a name with {_ONLY.value!r}" if _ONLY.value else ""
            raise ValueError(
                f"nothing to compare: looked for folders with a result.json of status 'finished'"
                f"{only} in {' '.join(argv[1:4])}{' ...' if len(argv) > 4 else ''}; "
                f"{len(found)} are finished, {len(skipped)} are not fit."
            )
        comparison = compare(
            runs,
            skipped=skipped,
            group=_GROUP.value,
            cost=_COST.value,
            baseline=_BASELINE.value,
            confidence=_CONFIDENCE.value,
        )
        for group in comparison.groups:
            console.print(terminal(group, comparison))
            for warning in group.warnings:
                console.print(warning, markup=False, soft_wrap=True)
        if _OUT.value:
            commands = {run.folder: command_of(run) for run in runs}
            Path(_OUT.value).write_text(page(comparison, commands, title=_TITLE.value))
        if _CSV.value:
            Path(_CSV.value).write_text(csv_text(comparison))
        if _MARKDOWN.value:
            Path(_MARKDOWN.value).write_text(markdown(comparison))
        if _JSON.value:
            write_json(_JSON.value, json_value(comparison))
    except (ValueError, OSError, re.error) as error:
        sys.exit(f"error: {error}")
    for flag in (_OUT, _CSV, _MARKDOWN, _JSON):
        if flag.value:
            print(flag.value)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
