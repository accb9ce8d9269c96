"""Compares run folders: a table, and files with all of it.

bitjax compare runs/* [--out report.html] [--csv F] [--markdown F] [--json F]
bitjax compare runs/* --watch
"""

import argparse
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path

from bitjax.cli.arguments import Parser, a_folder
from bitjax.cli.show import console_of
from bitjax.cli.watch import keys
from bitjax.files.writing import unwritten, write_text
from bitjax.launch.command import command_of
from bitjax.report.comparison import Comparison, compare
from bitjax.report.figures import COSTS
from bitjax.report.html import page
from bitjax.report.serve import PageServer, notice
from bitjax.report.tables import csv_text, json_value, markdown, terminal
from bitjax.runs.records import RunRecord, Skipped, read_runs
from bitjax.runs.rows import json_text
from bitjax.runs.watch import Watch


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
    add("--watch", action="store_true", help="serve the page here, new whenever a run ends")
    parser.add_count("port", "port to serve it at; else a free one", least=0, most=65535)
    add("--title", default="Comparison of runs", help="title of the page")
    args = parser.read(argv)
    if args.watch and (args.out or args.csv or args.markdown or args.json):
        parser.error("--watch serves the page and writes no file: leave out one of the two")
    return args


def print_comparison(comparison: Comparison) -> None:
    """Prints each group's table, its warnings below it."""
    console = console_of()
    for group in comparison.groups:
        console.print(terminal(group, comparison, console.width))
        for warning in group.warnings:
            console.print(warning, markup=False, soft_wrap=True)


def _expression(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"--only must be a regular expression, got {text!r}: {error}.") from None


def _compared(
    args: argparse.Namespace, found: Sequence[RunRecord], skipped: Sequence[Skipped]
) -> Comparison:
    """The comparison of the runs that the command line asks for."""
    wanted = _expression(args.only)
    runs = [run for run in found if wanted.search(run.name) or wanted.search(run.folder)]
    if not runs:
        only = f" and a name with {args.only!r}" if args.only else ""
        raise ValueError(
            f"nothing to compare: looked for folders with a result.json of status 'finished'"
            f"{only} in {' '.join(args.runs[:3])}{' ...' if len(args.runs) > 3 else ''}; "
            f"{len(found)} are finished, {len(skipped)} are not fit."
        )
    return compare(
        runs,
        skipped=skipped,
        group=args.group,
        cost=args.cost,
        baseline=args.baseline,
        confidence=args.confidence,
    )


def _commands(comparison: Comparison) -> dict[str, str]:
    rows = [row for group in comparison.groups for row in group.rows]
    return {run.folder: command_of(run) for row in rows for run in row.runs}


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the folders named on the command line, prints their tables and writes the files."""
    args = parse(argv)
    _expression(args.only)
    if not 0 < args.confidence < 1:
        raise ValueError(f"--confidence must be in (0, 1), got {args.confidence}.")
    if args.watch:
        _serve(page_server(args))
        return
    found, skipped = read_runs(args.runs)
    for left in skipped:
        print(f"not compared: {left.folder} {left.reason}")
    comparison = _compared(args, found, skipped)
    print_comparison(comparison)
    if args.out:
        beside = os.path.dirname(args.out) or "."
        commands = _commands(comparison)
        _write(args.out, page(comparison, commands, title=args.title, beside=beside))
    if args.csv:
        _write(args.csv, csv_text(comparison))
    if args.markdown:
        _write(args.markdown, markdown(comparison))
    if args.json:
        _write(args.json, json_text(json_value(comparison)))


def page_server(args: argparse.Namespace) -> PageServer:
    """A server of the page, which is made anew when a run begins or ends."""
    watch, seen = Watch(args.runs), []

    def state() -> object:
        seen[:] = watch.look()
        return [(run.folder, run.status, run.stamps) for run in seen]

    def make(reload: str) -> str:
        going = {run.folder for run in seen if run.status == "running"}
        found, skipped = read_runs(args.runs)
        skipped = [s._replace(reason="is under way") if s.folder in going else s for s in skipped]
        # Nothing but the page is served, so no link would lead anywhere.
        found = [r._replace(files=tuple(f._replace(there=False) for f in r.files)) for r in found]
        try:
            comparison = _compared(args, found, skipped)
        except ValueError as error:  # there are none yet, or none that go together
            return notice(args.title, str(error), reload)
        return page(comparison, _commands(comparison), title=args.title, reload=reload)

    try:
        return PageServer(make, state, args.port)
    except OSError as error:
        raise ValueError(
            f"--port={args.port} cannot be had ({error.strerror}): leave it out for a free one."
        ) from error


def _serve(server: PageServer) -> None:
    """Serves the page to this machine's browsers until q or Ctrl-C."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"{server.address} shows runs as they finish; q or Ctrl-C ends it", flush=True)
    with server, keys() as ended:
        while not ended(3600):
            pass
        server.shutdown()


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
