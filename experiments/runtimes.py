"""Runs ResNet-20 from its files in other runtimes on all test images: results/runtimes.md.

python -m experiments.runtimes       # trains what is missing, then takes some minutes a model

Finished runs of `python -m experiments.reproduce cifar10-resnet20` are taken from its folder, and
so are exports that were checked on as many images.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from bitjax.cli.arguments import Parser
from bitjax.cli.front import front_door
from bitjax.files.writing import write_text
from bitjax.launch.devices import find_devices, make_slots
from bitjax.launch.exports import check_extras, export, find_source
from bitjax.runs.exports import EXPORT, FileCheck, ModelFile
from bitjax.runs.folder import check_holds_runs
from bitjax.runs.records import RunRecord, read_run
from experiments.reproduce import run_table
from experiments.results_tables import plan_of
from experiments.tabulate import made_by

_POINTS = ("lsq_w4a4", "bitpruning_4", "bitpruning_3", "tsq_w2a4", "bottleneck_w8a4")
TABLE: Mapping[str, Any] = {
    "title": "ResNet-20 on CIFAR-10 from its files, in three runtimes",
    "about": "Top-1 of one deployed model. `result.json` has what training left, evaluated by JAX "
    "on integers. *Packed* is the packed file, read back by NumPy and evaluated by JAX; *integers* "
    "and *QDQ* are two profiles of ONNX in ONNX Runtime on a CPU, with its optimizations. Of each "
    "file in ONNX Runtime the images are counted that have all codes equal and outputs within 1e-5 "
    "of their spread / that part at a value within 1e-6 of the boundary of two codes / that do "
    "neither.",
    "seeds": (0,),
    "configs": (
        "configs/cifar10/resnet20_uniform.py:w8a8",
        *map("configs/cifar10/resnet20_250.py:{}".format, _POINTS),
    ),
}
FORMATS = ("packed", "integers", "qdq")
_HEAD = ("config", "result.json %", "packed %", "integers %", "QDQ %", "integers: same / border / "
         "neither", "QDQ: same / border / neither", "payload, bytes", "header, bytes",
         "integers, bytes", "QDQ, bytes")  # fmt: skip


class Row(NamedTuple):
    """A run with the files of its model, by format."""

    record: RunRecord
    files: dict[str, ModelFile]

    def check(self, kind: str) -> FileCheck:
        """What the file of a format gave on all images."""
        return self.files[kind].checks[0]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what is wrong with it ends in one line."""
    parser = Parser(__doc__, "python -m experiments.runtimes")
    parser.add_argument("--workdir", default="runs/cifar10-resnet20", help="the runs' folders")
    parser.add_argument("--results", default="results", help="folder that keeps the table")
    parser.add_count("images", "test images", default=10_000, most=10_000)
    return parser.read(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is missing, exports and checks every run, then writes the table."""
    args = parse(argv)
    check_extras(FORMATS, check=True)  # before an hour of training
    jax.config.update("jax_platforms", "cpu")  # where ONNX Runtime computes, too
    workdir = Path(args.workdir)
    check_holds_runs(workdir)
    table = plan_of("runtimes", dict(TABLE), workdir)
    if code := run_table(table, make_slots(find_devices(), 1)):
        again = shlex.join(["python", "-m", "experiments.runtimes", *(argv or sys.argv[1:])])
        print(f"not all runs are finished: no table. To go on: {again}")
        sys.exit(code)
    rows = [row_of(run.folder, args.images) for run in table.runs]
    path = Path(args.results) / "runtimes.md"
    write_text(path, document(rows))
    print(path)


def row_of(folder: Path, images: int) -> Row:
    """A run's files, exported and checked unless they are there, checked on as many images."""
    if not _is_whole(row := _row(folder), images):
        with Console().status(f"{folder.name}: ...") as status:

            def say(text: str, done: int, of: int) -> None:
                status.update(f"{folder.name}: {text}, {done} of {of}")

            export(find_source(folder), FORMATS, folder / EXPORT, images=images, say=say)
        row = _row(folder)
    for kind in FORMATS:
        check = row.check(kind)
        print(f"{folder.name}: {kind} {check.top1:.2%}, evaluation {check.evaluation:.2%}")
    return row


def _row(folder: Path) -> Row:
    record = read_run(folder)
    files = {f.format: f for f in record.files if Path(f.path).parent.name == EXPORT}
    return Row(record, files)


def _is_whole(row: Row, images: int) -> bool:
    files = [row.files.get(kind) for kind in FORMATS]
    return all(f and f.there and f.checks and f.checks[0].images == images for f in files)


def document(rows: Sequence[Row]) -> str:
    """The page results/runtimes.md."""
    checks = [row.check(kind) for row in rows for kind in FORMATS]
    images = max(check.images for check in checks)
    runtimes = sorted({f"{check.runtime} {check.version}" for check in checks})
    lines = ["| " + " | ".join(_HEAD) + " |", "|---" * len(_HEAD) + "|"]
    return "\n\n".join(
        [
            f"# {TABLE['title']}",
            TABLE["about"],
            "```\npython -m experiments.runtimes\n```",
            f"On {images:,} test images, by {', '.join(runtimes)}. The payload of a packed file is "
            "what `model_bytes` counts. A file of ONNX has the graph, too.",
            "\n".join(lines + [_line(row) for row in rows]),
            "Made by:",
            made_by((Path(row.record.folder).name, row.record) for row in rows),
        ]
    ) + "\n"  # fmt: skip


def _line(row: Row) -> str:
    packed = row.files["packed"]
    cells = [
        f"`{row.record.config.removeprefix('configs/')}`",
        f"{100 * row.record.score.value:.2f}",
    ]
    cells += [f"{100 * (row.check(kind).top1 or 0):.2f}" for kind in FORMATS]
    for kind in FORMATS[1:]:
        check = row.check(kind)
        cells.append(f"{check.same:,} / {check.border:,} / {check.broken:,}")
    cells += [f"{packed.payload:,}", f"{packed.size - packed.payload:,}"]
    cells += [f"{row.files[kind].size:,}" for kind in FORMATS[1:]]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    with front_door(compiles=True):
        main()
