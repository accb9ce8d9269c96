"""Writes a finished run's model to files that other tools run, and checks them.

bitjax export runs/digits-bitpruning --to packed,qdq --check

packed      codes at their bits, in safetensors: bitjax.load_packed, or NumPy alone
qdq         ONNX with QuantizeLinear and DequantizeLinear: ONNX Runtime, OpenVINO, TensorRT, TVM
integers    ONNX whose products are of whole numbers: the sums of evaluation, exactly
qonnx       ONNX with Quant and BipolarQuant: QONNX, FINN, hls4ml
stablehlo   the integer program for CPU, CUDA and TPU: jax.export

The files lie in RUN/export, beside export.json, which says what they are and what the check found.
Instead of a run, a packed file may be named, if its model is one of bitjax.models.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from bitjax.cli.arguments import Parser, a_folder
from bitjax.cli.show import files_table
from bitjax.launch.exports import FORMATS, check_extras, export, find_source
from bitjax.runs.exports import read_listed
from bitjax.runs.records import score_of

DIVIDES = ("qdq", "qonnx")  # formats of others, which do not promise evaluation's codes


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what is wrong with it ends in one line."""
    parser = Parser(__doc__, "bitjax export")
    add = parser.add_argument
    add("run", type=a_folder, help="a finished run's folder, or a packed file")
    add("--to", default="packed,qdq", help=f"what to write, of {','.join(FORMATS)}")
    add("--out", type=a_folder, help="folder to write; RUN/export", metavar="DIR")
    add("--check", action="store_true", help="run each file in its runtime, and compare all codes")
    parser.add_count("images", "evaluation images of a check", default=1000, most=10_000_000)
    args = parser.read(argv)
    args.to = [kind.strip() for kind in args.to.split(",")]
    if bad := [kind for kind in args.to if kind not in FORMATS]:
        parser.error(f"--to takes some of {','.join(FORMATS)}, got {bad[0]!r}")
    args.to = list(dict.fromkeys(args.to))
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Exports, prints what was written, and fails where a check found what no rounding explains."""
    args = parse(argv)
    check_extras(args.to, args.check)
    source = find_source(args.run)
    out = Path(args.out) if args.out else source.folder / "export"
    images = args.images if args.check else 0
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)

        def say(text: str, done: int, of: int) -> None:
            bar.update(task, description=text, completed=done, total=of)

        listed = export(source, args.to, out, images=images, say=say)
    console.print(files_table(str(out), read_listed(out, "")))
    if "score" in listed:
        score = score_of(listed)
        text = f"result.json has {score.name} {score.shown}, on all evaluation examples."
        console.print(text, markup=False)
    failed = [
        (file, f"{file['path']} in {check['runtime']}")
        for file in listed["files"]
        for check in file.get("checks", ())
        if not check["holds"]
    ]
    if [name for file, name in failed if file["format"] in DIVIDES]:
        console.print(
            "qdq and qonnx divide by the scale, where evaluation multiplies by a rate: their codes "
            "may differ beside a boundary.",
            soft_wrap=True,
        )
    broken = [name for file, name in failed if file["format"] not in DIVIDES]
    if broken:
        why = "differs by more than rounding explains"
        print(f"error: {', '.join(broken)} {why}.", file=sys.stderr)
        sys.exit(1)
