"""Keeps finished runs under results/ and writes the table of all of them there.

python -m experiments.tabulate runs/digits-float runs/digits-bitpruning ...
"""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bitjax.cli.arguments import Parser
from bitjax.cli.front import front_door
from bitjax.files.writing import write_text
from bitjax.report.figures import BY_KEY, CACHE, figures_of, own_figures
from bitjax.report.statistics import summarize
from bitjax.report.tables import number
from bitjax.runs.files import Unfit
from bitjax.runs.records import RunRecord, read_run, read_runs
from bitjax.runs.rows import thinned

ROOT = Path(__file__).resolve().parent.parent
_SHOWN = ("bits_weights", "bits_activations", "bits_all", "bits_inner", "model_bytes", CACHE,
          "bops", "steps", "wall_seconds")  # fmt: skip
_CURVES = 20_000  # bytes of metrics.jsonl, that a page has curves of
NAME = "results"  # of the marks that the table of all of them stands between


def keep(run: Path, results: Path) -> Path:
    """Copies what a finished run found to `results/<name>/seed<k>/`, and gives that folder."""
    try:
        record = read_run(run)
    except Unfit as error:
        raise ValueError(f"{run} {error}: run its config again.") from None
    if os.path.isabs(record.name) or ".." in Path(record.name).parts:
        raise ValueError(f"{run} has the name {record.name!r}, which leads out of {results}.")
    folder = results / record.name / f"seed{record.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("result.json", "bits.csv", "config.json", "distortion.json"):
        if name != "distortion.json" or record.distortion is not None:
            shutil.copy(run / name, folder / name)
    metrics = folder / "metrics.jsonl"
    metrics.unlink(missing_ok=True)  # of a run that was kept here before
    if record.metrics:
        write_text(metrics, thinned(record.metrics, _CURVES))
    return folder


def read(results: Path) -> dict[str, list[RunRecord]]:
    """Results by name, each a list over seeds."""
    runs, skipped = read_runs(sorted(path.parent for path in results.glob("**/seed*/result.json")))
    if skipped:
        raise ValueError("; ".join(f"{left.folder} {left.reason}" for left in skipped))
    found: dict[str, list[RunRecord]] = {}
    for run in runs:
        found.setdefault(run.name, []).append(run)
    return found


def table(found: Mapping[str, list[RunRecord]]) -> str:
    """A Markdown table for each score, a row a config: mean over seeds, and their spread."""
    scores: dict[str, list[list[RunRecord]]] = {}
    for _, runs in sorted(found.items()):
        scores.setdefault(runs[0].score.name, []).append(runs)
    return "\n\n".join(map(_table, sorted(scores.values(), key=len, reverse=True)))


def _table(rows: Sequence[list[RunRecord]]) -> str:
    """The table of rows that have one score."""
    score = own_figures([run for runs in rows for run in runs])[0]
    figures = [[figures_of(run) for run in runs] for runs in rows]
    there = {key for seeds in figures for found in seeds for key in found}
    shown = [BY_KEY[key] for key in _SHOWN if key in there]
    head = ["config", score.title, "seeds", *(figure.title for figure in shown)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for runs, seeds in zip(rows, figures, strict=True):
        cells = []
        for figure in (score, *shown):
            values = [found[figure.key] for found in seeds if figure.key in found]
            over_seeds = summarize(values) if values else None
            if over_seeds and figure.key in ("steps", "wall_seconds"):
                over_seeds = over_seeds._replace(std=None)  # says nothing about a config
            cells.append(number(over_seeds, figure))
        cells[1:1] = [str(len(runs))]
        config = f"`configs/{runs[0].config.removeprefix('configs/')}`"
        lines.append("| " + " | ".join([config, *cells]) + " |")
    return "\n".join(lines)


def made_by(runs: Iterable[tuple[str, RunRecord]]) -> str:
    """A line for each commit, machine and set of versions, with the names of what they made."""
    seen: dict[str, list[str]] = {}
    for name, run in runs:
        shown = ", ".join(f"{package} {version}" for package, version in run.versions.items())
        seen.setdefault(f"commit {run.commit} on {run.device} ({shown})", []).append(name)
    return "\n".join(f"- {line}: {', '.join(names)}" for line, names in seen.items())


def insert(path: Path, text: str, name: str = NAME) -> None:
    """Replaces what stands between the marks of that name; a file without them stays as it is."""
    marks = f"<!-- {name}: written by a command -->", f"<!-- end of {name} -->"
    if not path.exists() or marks[0] not in (whole := path.read_text("utf-8")):
        return
    before, _, rest = whole.partition(marks[0])
    _, found, after = rest.partition(marks[1])
    if not found:
        raise ValueError(f"{path} has {marks[0]!r} but no {marks[1]!r} behind it: put it there.")
    write_text(path, f"{before}{marks[0]}\n\n{text}\n\n{marks[1]}{after}")


def rewrite(results: Path) -> str:
    """Writes the table of all that `results` keeps into its README.md, and gives it."""
    found = read(results)
    runs = (run for _, seeds in sorted(found.items()) for run in seeds)
    made = made_by((f"{run.name} seed {run.seed}", run) for run in runs)
    insert(results / "README.md", f"{table(found)}\n\nMade by:\n\n{made}")
    return table(found)


def main(argv: Sequence[str] | None = None) -> None:
    """Keeps the runs named on the command line and rewrites the table."""
    parser = Parser(__doc__, "python -m experiments.tabulate")
    parser.add_argument("runs", nargs="*", help="folders of finished runs; none: the table only")
    results = ROOT / "results"
    for run in parser.read(argv).runs:
        print(f"{run} -> {keep(Path(run), results).relative_to(ROOT)}")
    print(rewrite(results))


if __name__ == "__main__":
    with front_door():
        main()
