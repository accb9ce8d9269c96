"""The files of a run's model as rows of a table: how large they are, and what running them gave."""

from collections.abc import Sequence

from bitjax.runs.exports import FileCheck, ModelFile

HEAD = ("file", "format", "bytes", "runtime", "images", "codes differ", "first at",
        "outputs differ", "top-1 %", "evaluation %", "holds")  # fmt: skip
UNCHECKED = 3  # columns of a file that nobody ran


def rows_of(files: Sequence[ModelFile]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The head, and a row for each file and runtime; without any check only the first columns."""
    rows: list[tuple[str, ...]] = []
    for file in files:
        first: tuple[str, ...] = (file.path, file.format, f"{file.size:,}")
        for check in file.checks:
            rows.append(first + _cells(check))
            first = ("", "", "")
        if not file.checks:
            rows.append(first + ("",) * (len(HEAD) - UNCHECKED))
    checked = any(file.checks for file in files)
    width = len(HEAD) if checked else UNCHECKED
    return HEAD[:width], [row[:width] for row in rows]


def lines_of(files: Sequence[ModelFile]) -> list[str]:
    """A line for each file and runtime."""
    lines = []
    for file in files:
        begin = f"{file.path}: {file.format}, {file.size:,} bytes"
        lines += [f"{begin}; {_said(check)}" for check in file.checks] or [begin]
    return lines


def _said(check: FileCheck) -> str:
    runtime, images, differ, first, outputs, top1, _, holds = _cells(check)
    parts = [f"in {runtime} on {images} images codes differ: {differ}"]
    parts += [f"first at {first}"] if first else []
    parts += [f"outputs by {outputs} of their spread"]
    parts += [f"top-1 {top1} %"] if top1 else []
    return ", ".join([*parts, *(() if holds == "yes" else ("which no rounding explains",))])


def _cells(check: FileCheck) -> tuple[str, ...]:
    return (
        f"{check.runtime} {check.version}".strip(),
        f"{check.images:,}",
        f"{check.differ:,} of {check.codes:,}" if check.codes else "not shown",
        f"{check.first} ({check.margin:.0e})" if check.first else "",
        f"{check.outputs:.0e}" if check.outputs else "0",
        *("" if top is None else f"{100 * top:.2f}" for top in (check.top1, check.evaluation)),
        "yes" if check.holds else "no",
    )
